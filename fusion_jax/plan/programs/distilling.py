"""An optimizer step beside frozen models that lie in the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.parameters import abstract_params
from fusion_jax.plan.flops import forward_flops, head_parameters
from fusion_jax.plan.programs.program import Place, Program, Situation
from fusion_jax.plan.programs.shapes import array
from fusion_jax.plan.programs.training import TrainStep
from fusion_jax.train.alirector import TEACHERS, AlirectorSettings, alirector


@dataclass(frozen=True)
class DistilStep(Program):
    """One step of a corrector beside its two alignment models (`train.alirector`), whole frozen models of the same
    architecture in the dtype of the computation.

    student: the step without them. beside: tokens that each of them reads of an example: its encoder, or, of a decoder,
    in its whole row.
    """

    student: TrainStep
    beside: int
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        self.student.check(ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        student = self.student
        rows = student.batch(mesh)._replace(beside=self._beside(config, mesh))
        frozen = abstract_params(config, jnp.dtype(student.dtype), mesh)
        objective = alirector(AlirectorSettings())  # settings of a loss do not change what is planned
        return student.traced_with(objective, config, mesh, rows, dict.fromkeys(TEACHERS, frozen))

    def _beside(self, config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
        """What the alignment models read, as `runs.correctors` makes it."""

        def of(size: int) -> jax.ShapeDtypeStruct:
            return array(mesh, (self.student.micro_batches,), (self.student.examples, size), jnp.int32)

        texts = {name: of(self.beside) for name in TEACHERS}
        return texts if config.encoder else texts | {f"{name}_start": of(1) for name in TEACHERS}

    def flops(self, config: ModelConfig) -> float:
        """The student's, and a forward pass of each alignment model, whose heads serve the student's places."""
        tokens = self.student.tokens
        if config.encoder:
            one = forward_flops(config, self.beside, tokens, 1, True)
        else:
            one = forward_flops(config, self.beside, 0, 1, True) + 2.0 * head_parameters(config) * tokens
        return self.student.flops(config) + len(TEACHERS) * one * self.student.examples * self.student.micro_batches

    def tokens_computed(self) -> int:
        """The student's alone, as of a reference in the step."""
        return self.student.tokens_computed()

    def kernel_share(self, config: ModelConfig) -> float:
        return self.student.kernel_share(config)

    def weights_beside(self, weights: int, place: Place) -> int:
        return self.student.weights_beside(weights, place)

    def advice(self, now: Situation) -> str:
        return self.student.advice(now)

    def smaller(self, now: Situation) -> str:
        return self.student.smaller(now)
