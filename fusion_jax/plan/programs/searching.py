"""A search for blocks: candidates through a layer, and what they lose on the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.plan.flops import forward_flops, head_parameters, kernel_computed
from fusion_jax.plan.programs.program import Place, Program, check_rows
from fusion_jax.plan.programs.shapes import spread, tpu_compute, traced
from fusion_jax.prune import scoring


@dataclass(frozen=True)
class SearchLayer(Program):
    """One layer of `states` candidates on `rows` rows of `tokens` tokens. waiting: bytes of the other states that the
    run holds; beside: of weights that are none of the layers'; over all chips."""

    rows: int
    tokens: int
    states: int
    waiting: int = 0
    beside: int = 0
    attention: Kernel = "splash"
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        check_rows(self.rows, ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        params = abstract_params(config, jnp.bfloat16, mesh)
        name, stack = next(iter(config.stacks.items()))
        shape = (self.rows, self.states, self.tokens, config.width)
        states, place = spread(mesh, scoring.STATES, shape, jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.int32)
        step = scoring.layer_step(tpu_compute(mesh, "bfloat16", kernel=self.attention))
        return traced(step, config, stack, params[name], place, params, states)

    def flops(self, config: ModelConfig) -> float:
        whole = forward_flops(config, 0, self.tokens, 1, False) - 2.0 * head_parameters(config) * self.tokens
        return whole / config.layers * self.rows * self.states

    def tokens_computed(self) -> int:
        return self.rows * self.states * self.tokens

    def kernel_share(self, config: ModelConfig) -> float:
        return kernel_computed(config, self.tokens, None)

    def weights_beside(self, weights: int, place: Place) -> int:
        return _held(self.waiting, self.beside, place)


@dataclass(frozen=True)
class SearchLoss(Program):
    """What `states` candidates lose on `rows` rows. waiting: as in `SearchLayer`; beside: bytes of the layers."""

    rows: int
    tokens: int
    states: int
    waiting: int = 0
    beside: int = 0
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        check_rows(self.rows, ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        params = abstract_params(config, jnp.bfloat16, mesh)
        states = spread(mesh, scoring.STATES, (self.rows, self.states, self.tokens, config.width), jnp.bfloat16)
        labels = spread(mesh, ("batch", "tokens"), (self.rows, self.tokens), jnp.int32)
        counted = spread(mesh, ("batch", "tokens"), (self.rows, self.tokens), jnp.bool_)
        step = scoring.loss_step(tpu_compute(mesh, "bfloat16"))
        return traced(step, config, params, states, labels, counted)

    def flops(self, config: ModelConfig) -> float:
        return 2.0 * head_parameters(config) * self.tokens * self.rows * self.states

    def tokens_computed(self) -> int:
        return self.rows * self.states * self.tokens

    def weights_beside(self, weights: int, place: Place) -> int:
        return _held(self.waiting, self.beside, place)


def _held(states: int, weights: int, place: Place) -> int:
    """Bytes a chip: states are split by rows, weights over fsdp and tensor."""
    data, fsdp, tensor = place.mesh
    return states // (data * fsdp) + weights // (fsdp * tensor)
