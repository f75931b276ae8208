"""Generation: prompts read, and a batch of samples grown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.models.attention import Crossed, cache_specs
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.decode import DecodeParams, LayerCache
from fusion_jax.models.decoder import stacks_of
from fusion_jax.models.int8 import Weights
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.plan.flops import body_parameters, forward_flops, head_parameters, query_flops
from fusion_jax.plan.programs.program import BYTES, Place, Program, Situation, Start
from fusion_jax.plan.programs.shapes import spread
from fusion_jax.sampling import ids
from fusion_jax.sampling.prompts import How, prefill
from fusion_jax.sampling.samplers import GREEDY, Sampler

_GIB = 2**30


def _held(kept: str, held: Weights, weights: int, place: Place) -> int:
    """The layers stacked, to read prompts, and taken apart, to decode, and the weights that the run had before."""
    return BYTES[held] * weights // place.mesh[2] + BYTES[kept] * weights // place.chips


@dataclass(frozen=True)
class Prefill(Program):
    """Keys and values of `rows` prompts of `prompt` tokens, as generation reads them; kept: dtype of the weights that
    the run holds on its training mesh besides, "" for none; weights: of the layers as generation reads them."""

    rows: int
    prompt: int
    kept: Literal["", Start] = ""
    attention: Kernel = "splash"
    weights: Weights = "stored"
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        """Any number of rows: `sampling.ids` fills them up."""

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        how = How(config, Sampler(), 1, jnp.dtype(jnp.bfloat16), mesh, self.attention)
        tokens = spread(mesh, ("batch", "tokens"), (self.rows, self.prompt), jnp.int32)
        lengths = spread(mesh, ("batch",), (self.rows,), jnp.int32)
        params = abstract_params(config, jnp.bfloat16, mesh, int8=self.weights == "int8")
        return prefill(how).trace(params, tokens, lengths)

    def flops(self, config: ModelConfig) -> float:
        return forward_flops(config, self.prompt, 0, 1, True) * self.rows

    def tokens_computed(self) -> int:
        return self.rows * self.prompt

    def weights_beside(self, weights: int, place: Place) -> int:
        return _held(self.kept, self.weights, weights, place)


@dataclass(frozen=True)
class Decode(Program):
    """`capacity` more tokens of `samples` continuations of each of `rows` prompts: the loop that grows all rows;
    kept, weights: see `Prefill`."""

    rows: int
    prompt: int
    capacity: int
    samples: int = 1
    sampler: Sampler = GREEDY
    kept: Literal["", Start] = ""
    weights: Weights = "stored"
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        """Any number of rows: `sampling.ids` fills them up."""

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        dtype, rows = jnp.dtype(jnp.bfloat16), self.rows * self.samples
        how = How(config, self.sampler, self.samples, dtype, mesh)
        params = abstract_params(config, dtype, mesh, int8=self.weights == "int8")

        def of_layer(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

        layers = tuple(
            jax.tree.map(of_layer, params[name])
            for name, stack in stacks_of(config, "decoder").items()
            for _ in range(stack.layers)
        )
        ready = DecodeParams(layers, {name: value for name, value in params.items() if name not in config.stacks})
        fixed = ids.Fixed(
            spread(mesh, ("batch",), (self.rows,), jnp.int32), spread(mesh, ("batch", None), (rows, 2), jnp.uint32),
            spread(mesh, (None,), (4,), jnp.int32),
        )  # fmt: skip
        last = spread(mesh, ("batch", None), (self.rows, config.width), dtype)
        seen = None
        if self.sampler.penalises:
            seen = spread(mesh, ("batch", None), (self.rows, config.vocab_size), jnp.bool_)
        state = jax.eval_shape(ids.start_rows(how, self.capacity), ready, fixed, last, seen)

        def placed(x: Any) -> Any:
            return spread(mesh, ("batch", *(None,) * (x.ndim - 1)) if x.ndim else (), x.shape, x.dtype)

        def kept(stack: Stack, rows: int, tokens: int) -> Any:
            specs = cache_specs(stack)
            return jax.tree.map(lambda one: spread(mesh, one.all_axes, one.shape(rows, tokens), dtype), specs)

        every = [stack for stack in config.decoder for _ in range(stack.layers)]
        caches = tuple(LayerCache(kept(stack, rows, self.capacity), kept(stack, rows, 1)) for stack in every)
        state = jax.tree.map(placed, state._replace(caches=()))._replace(caches=caches)
        prompts = tuple(self._read(stack, kept) for stack in every)
        limit = spread(mesh, (), (), jnp.int32)
        return ids.continue_rows(how, self.capacity).trace(ready, prompts, fixed, state, limit)

    def _read(self, stack: Stack, kept: Callable[[Stack, int, int], Any]) -> Any:
        """What a layer keeps of the prompts."""
        if not stack.cross:
            return kept(stack, self.rows, self.prompt)
        return Crossed(kept(stack, self.rows, 1), kept(stack, self.rows, self.prompt))

    def flops(self, config: ModelConfig) -> float:
        parameters = body_parameters(config) + head_parameters(config)
        a_token = 2.0 * parameters + query_flops(config, self.prompt + self.capacity // 2)
        return self.rows * self.samples * self.capacity * a_token

    def tokens_computed(self) -> int:
        return self.rows * self.samples * self.capacity

    def weights_beside(self, weights: int, place: Place) -> int:
        return _held(self.kept, self.weights, weights, place)

    def advice(self, now: Situation) -> str:
        if now.place.mesh[1] != 1:
            heads = math.gcd(now.heads, now.place.chips)
            split = f": split the model by heads (mesh-fsdp 1, mesh-tensor {heads})" if heads > 1 else ""
            return f". Every token gathers the weights{split}"
        if now.bound == "the link to the host":
            return ""
        if now.bound == "communication":
            return f". {now.room / _GIB:.1f} GiB are free: try more rows at once, or a smaller slice"
        return ". Try a larger batch: weights are read once for all rows" if now.room > _GIB else "."
