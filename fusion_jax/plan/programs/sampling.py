"""Generation: prompts read, and a batch of samples grown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.models.attention import cache_specs
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decode import DecodeParams, Encoder, Kept
from fusion_jax.models.decoder import stacks_of
from fusion_jax.models.int8 import Weights
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.plan.flops import forward_flops, token_flops
from fusion_jax.plan.programs.program import BYTES, Place, Program, Situation, Start
from fusion_jax.plan.programs.shapes import spread
from fusion_jax.sampling import beams
from fusion_jax.sampling.beams import Searching
from fusion_jax.sampling.drafts import Rules, Writing, empty_draft, go_on
from fusion_jax.sampling.prompts import How, Read, prefill
from fusion_jax.sampling.samplers import GREEDY, Sampler
from fusion_jax.sampling.sizes import BLOCK, written_width

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
        how = How(config, jnp.dtype(jnp.bfloat16), mesh, self.attention)
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


def _kept(config: ModelConfig, mesh: Mesh, rows: int, tokens: int) -> tuple[Kept, ...]:
    """What every layer keeps of so many tokens."""
    return tuple(
        jax.tree.map(lambda s: spread(mesh, s.all_axes, s.shape(rows, tokens), jnp.bfloat16), specs)
        for stack in config.decoder
        for specs in (cache_specs(stack),) * stack.layers
    )


def _ready(config: ModelConfig, mesh: Mesh, weights: Weights) -> DecodeParams:
    """A model whose layers are apart, as decoding reads it."""
    params = abstract_params(config, jnp.bfloat16, mesh, int8=weights == "int8")

    def of_layer(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

    layers = tuple(
        jax.tree.map(of_layer, params[name])
        for name, stack in stacks_of(config, "decoder").items()
        for _ in range(stack.layers)
    )
    return DecodeParams(layers, {name: value for name, value in params.items() if name not in config.stacks})


def _texts(config: ModelConfig, mesh: Mesh, rows: int, prompt: int) -> Read:
    """Texts of `prompt` tokens that were read."""
    lengths = spread(mesh, ("batch",), (rows,), jnp.int32)
    last = spread(mesh, ("batch", None), (rows, config.width), jnp.bfloat16)
    kept = _kept(config, mesh, rows, prompt)
    if not config.encoder:
        return Read(lengths, last, kept)
    return Read(lengths, last, _kept(config, mesh, rows, 1), Encoder(kept, lengths))


def _placed(mesh: Mesh, tree: Any) -> Any:
    """Shapes of rows of a batch, placed."""
    return jax.tree.map(lambda x: spread(mesh, ("batch", *(None,) * (x.ndim - 1)), x.shape, x.dtype), tree)


def _decoding_advice(now: Situation) -> str:
    if now.place.mesh[1] != 1:
        heads = math.gcd(now.heads, now.place.chips)
        split = f": split the model by heads (mesh-fsdp 1, mesh-tensor {heads})" if heads > 1 else ""
        return f". Every token gathers the weights{split}"
    if now.bound == "the link to the host":
        return ""
    if now.bound == "communication":
        return f". {now.room / _GIB:.1f} GiB are free: try more rows at once, or a smaller slice"
    return ". Try a larger batch: weights are read once for all rows" if now.room > _GIB else "."


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
        how, rows = How(config, jnp.dtype(jnp.bfloat16), mesh), self.rows * self.samples
        ready, texts = _ready(config, mesh, self.weights), _texts(config, mesh, self.rows, self.prompt)
        keys, stops = spread(mesh, ("batch", None), (rows, 2), jnp.uint32), spread(mesh, (None,), (4,), jnp.int32)
        rules = Rules(keys, stops, spread(mesh, (), (), jnp.int32))
        writing = Writing(written_width(self.capacity), self.sampler, self.samples, BLOCK)
        draft = jax.eval_shape(empty_draft(how, writing, self.rows, 0))

        draft = _placed(mesh, draft._replace(block=()))._replace(
            block=_kept(config, mesh, rows, BLOCK), cache=_kept(config, mesh, rows, self.capacity)
        )
        many = spread(mesh, (), (), jnp.int32)
        return go_on(how, writing).trace(ready, texts, rules, draft, many, many)

    def flops(self, config: ModelConfig) -> float:
        return self.tokens_computed() * token_flops(config, self.prompt, self.capacity // 2)

    def tokens_computed(self) -> int:
        return self.rows * self.samples * self.capacity

    def weights_beside(self, weights: int, place: Place) -> int:
        return _held(self.kept, self.weights, weights, place)

    def advice(self, now: Situation) -> str:
        return _decoding_advice(now)

    def in_turn(self) -> int:
        return self.capacity


@dataclass(frozen=True)
class BeamDecode(Program):
    """`capacity` more tokens of `beams` hypotheses of each of `rows` prompts: the loop of a beam search; stops: tokens
    that end a hypothesis; kept, weights: see `Prefill`."""

    rows: int
    prompt: int
    capacity: int
    beams: int
    stops: int = 1
    kept: Literal["", Start] = ""
    weights: Weights = "stored"
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        """Any number of rows: `sampling.beam_search` fills them up."""

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        how, rows = How(config, jnp.dtype(jnp.bfloat16), mesh), self.rows
        search = Searching(self.beams, written_width(self.capacity), BLOCK)
        ready, texts = _ready(config, mesh, self.weights), _texts(config, mesh, rows, self.prompt)
        by_length = spread(mesh, (None,), (search.tokens + 1,), jnp.float32)
        stops = spread(mesh, (None,), (self.stops,), jnp.int32)
        limit, early = spread(mesh, (), (), jnp.int32), spread(mesh, (), (), jnp.bool_)
        rules = beams.Rules(stops, limit, by_length, by_length, early)
        grown = jax.eval_shape(beams.no_beams(how, search, rows, 0))
        grown = _placed(mesh, grown._replace(block=()))._replace(
            block=_kept(config, mesh, rows, BLOCK * self.beams),
            cache=_kept(config, mesh, rows, self.capacity * self.beams),
        )
        return beams.go_on(how, search).trace(ready, texts, rules, grown, spread(mesh, (), (), jnp.int32))

    def flops(self, config: ModelConfig) -> float:
        """A hypothesis sees its own tokens, whatever the search compares besides."""
        return self.tokens_computed() * token_flops(config, self.prompt, self.capacity // 2)

    def tokens_computed(self) -> int:
        return self.rows * self.beams * self.capacity

    def weights_beside(self, weights: int, place: Place) -> int:
        return _held(self.kept, self.weights, weights, place)

    def advice(self, now: Situation) -> str:
        return _decoding_advice(now)

    def in_turn(self) -> int:
        return self.capacity
