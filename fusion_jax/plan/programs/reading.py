"""A teacher that reads texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.int8 import Weights
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.plan.flops import forward_flops, kernel_computed
from fusion_jax.plan.programs.program import Program, check_rows
from fusion_jax.plan.programs.shapes import array, tpu_compute, traced
from fusion_jax.teachers.reading import make_topk_step


@dataclass(frozen=True)
class TeacherStep(Program):
    """The k most probable entries of every token of `rows` texts; weights: of the teacher's layers."""

    rows: int
    tokens: int
    k: int = 10
    attention: Kernel = "splash"
    weights: Weights = "stored"
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        check_rows(self.rows, ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        compute = tpu_compute(mesh, "bfloat16", kernel=self.attention)
        step = make_topk_step(config, compute, self.k, config.vocab_size)
        tokens = array(mesh, (), (self.rows, self.tokens), jnp.int32)
        lengths = array(mesh, (), (self.rows,), jnp.int32)
        params = abstract_params(config, jnp.bfloat16, mesh, int8=self.weights == "int8")
        return traced(step, params, tokens, tokens, lengths)

    def flops(self, config: ModelConfig) -> float:
        return forward_flops(config, 0, self.tokens, 1, False) * self.rows

    def tokens_computed(self) -> int:
        return self.rows * self.tokens

    def kernel_share(self, config: ModelConfig) -> float:
        return kernel_computed(config, self.tokens, None)
