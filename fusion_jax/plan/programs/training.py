"""An optimizer step, and the scoring of its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.data.batches import TokenBatch
from fusion_jax.losses import Mean, weighted
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.int8 import Weights
from fusion_jax.models.lora import Lora, abstract_adapters
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.ops.remat import Remat
from fusion_jax.plan.flops import forward_flops, kernel_computed, row_tokens
from fusion_jax.plan.programs.program import BYTES, SMALLER, Dtype, Place, Program, Situation, Start, check_rows
from fusion_jax.plan.programs.shapes import array, batch, pace, targets, tpu_compute, traced
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train import objectives
from fusion_jax.train.objective import Metrics, Objective, Progress
from fusion_jax.train.objectives import PairSettings, RewardSettings, WrpoSettings
from fusion_jax.train.scores import Scores
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, state_shardings
from fusion_jax.train.step import make_score_step, make_train_step

ObjectiveName = Literal["sft", "dpo", "wrpo", "fusion", "reward", "several"]
OBJECTIVES: dict[ObjectiveName, Objective] = {
    "sft": objectives.sft(),
    "dpo": objectives.pair(PairSettings()),
    "wrpo": objectives.wrpo(WrpoSettings()),
    "fusion": objectives.fusion(FusionSettings()),
    "reward": objectives.rewards(RewardSettings()),
}  # settings of a loss do not change what is planned


def objective_of(name: ObjectiveName, rows: int) -> Objective:
    """A known objective, or for "several" a plain one on that many rows, which takes as long as any other."""

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        return weighted(-scores.sequence.sum(-1), scores.weights), {}

    if name == "several":
        return Objective(name, tuple(f"row_{number + 1}" for number in range(rows)), loss)
    return OBJECTIVES[name]


_GIB = 2**30


@dataclass(frozen=True)
class TrainStep(Program):
    """One optimizer step. examples: of a micro-batch, over all chips; prompt: tokens that an example's rows share;
    tokens: of each row behind them; k: entries of a fusion target; reference: "none" for losses that read none; dtype:
    of the computation; start: dtype of the weights that training starts from, which the run keeps; rows: of an example,
    for the objective "several"; lora: the adapters that are trained in the place of the weights; teachers: bytes of
    other models' weights that the run holds, sharded as the model's are; dropout, source_dropout: see
    `train.settings`."""

    objective: ObjectiveName
    examples: int
    tokens: int
    prompt: int = 0
    micro_batches: int = 1
    reference: Literal["none", "stored", "in-step"] = "none"
    remat: Remat = "full"
    shared_prompt: bool = True
    k: int = 10
    attention: Kernel = "splash"
    dtype: Dtype = "bfloat16"
    start: Start = "bfloat16"
    rows: int = 0
    lora: Lora | None = None
    teachers: int = 0
    dropout: float = 0.0
    source_dropout: float = 0.0
    needs_model: ClassVar[bool] = True

    @property
    def groups(self) -> int:
        """Rows of an example."""
        return len(objective_of(self.objective, self.rows).slots)

    def check(self, ways: int) -> None:
        check_rows(self.examples, ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        objective, rows = objective_of(self.objective, self.rows), self.batch(mesh)
        if objective.targets:
            rows = rows._replace(targets=targets(mesh, (self.micro_batches, self.examples), self.tokens, self.k))
        return self.traced_with(objective, config, mesh, rows)

    def batch(self, mesh: Mesh) -> TokenBatch:
        """The rows of the step, and the numbers that dropout is drawn from where there is any."""
        leading = (self.micro_batches,)
        rows = batch(mesh, leading, self.examples, self.groups, self.prompt, self.tokens)
        if not (self.dropout or self.source_dropout):
            return rows
        return rows._replace(noise=array(mesh, leading, (self.examples,), jnp.int32))

    def traced_with(
        self, objective: Objective, config: ModelConfig, mesh: Mesh, rows: TokenBatch, *given: Any
    ) -> jax.stages.Traced:
        """The step of an objective on these rows; given: what its forward pass reads besides, see `Given.arrays`."""
        compute = tpu_compute(
            mesh, self.dtype, kernel=self.attention, remat=self.remat, shared_prompt=self.shared_prompt,
            dropout=self.dropout, source_dropout=self.source_dropout,
        )  # fmt: skip
        optimizer = make_optimizer(OptimizerSettings())
        params = abstract_params(config, jnp.float32, mesh)
        if self.lora is not None:
            params = abstract_adapters(config, self.lora, mesh)
        state = jax.eval_shape(lambda params: init_state(params, optimizer), params)
        placed = state_shardings(state, jax.tree.map(lambda p: p.sharding, params), mesh)
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
        in_step = self.reference == "in-step"
        start = abstract_params(config, jnp.dtype(self.start), mesh) if in_step or self.lora is not None else None
        step = make_train_step(config, objective, optimizer, compute, lora=self.lora, in_step=in_step)
        return traced(step, state, rows, pace(mesh), start, *given)

    def flops(self, config: ModelConfig) -> float:
        forward = forward_flops(config, self.prompt, self.tokens, self.groups, self.shared_prompt)
        passes = 3 if self.lora is None else 2  # without the gradients of the weights; those of adapters are small
        return forward * (passes + (self.reference == "in-step")) * self.examples * self.micro_batches

    def tokens_computed(self) -> int:
        a_row = row_tokens(self.prompt, self.tokens, self.groups, self.shared_prompt)
        return a_row * self.examples * self.micro_batches

    def kernel_share(self, config: ModelConfig) -> float:
        rows = self.groups if self.shared_prompt else 1
        branches = (self.prompt, rows) if self.prompt else None
        return kernel_computed(config, self.prompt + rows * self.tokens, branches)

    def weights_beside(self, weights: int, place: Place) -> int:
        """The weights that training starts from, and other models; as a reference in the step, or beneath adapters,
        the first are the program's own."""
        _, fsdp, tensor = place.mesh
        own = self.reference == "in-step" or self.lora is not None
        return (self.teachers + (0 if own else BYTES[self.start] * weights)) // (fsdp * tensor)

    def advice(self, now: Situation) -> str:
        if now.bound in ("the link to the host", "communication"):
            return ""
        if self.micro_batches > 1 and now.room > now.temporaries:
            return f". {now.room / _GIB:.1f} GiB are free: try half the micro-batches"
        if self.remat == "full" and now.room > 4 * _GIB:
            return f'. {now.room / _GIB:.1f} GiB are free: try remat "dots", which computes less again'
        if not self.prompt and self.groups > 1:
            return ". Prompts that rows share are computed once: say their length (--plan-prompt N)"
        return ""

    def smaller(self, now: Situation) -> str:
        each = self.examples // max(now.place.chips // max(now.place.mesh[2], 1), 1)
        if not now.state_fits:
            return "The state alone is too large: take a larger slice"
        if self.remat != "full":
            return 'Try remat "full"'
        if each > 1:
            return "Try more micro-batches, so that fewer examples are on a chip at once"
        return SMALLER


@dataclass(frozen=True)
class ScoreStep(Program):
    """Reference log-probs of a micro-batch of examples of `groups` rows; start: dtype of the weights; weights: of the
    layers, "stored" as `start` says."""

    examples: int
    tokens: int
    groups: int
    prompt: int = 0
    shared_prompt: bool = True
    attention: Kernel = "splash"
    dtype: Dtype = "bfloat16"
    start: Start = "bfloat16"
    weights: Weights = "stored"
    needs_model: ClassVar[bool] = True

    def check(self, ways: int) -> None:
        check_rows(self.examples, ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        rows = batch(mesh, (), self.examples, self.groups, self.prompt, self.tokens)
        compute = tpu_compute(mesh, self.dtype, kernel=self.attention, shared_prompt=self.shared_prompt)
        params = abstract_params(config, jnp.dtype(self.start), mesh, int8=self.weights == "int8")
        return traced(make_score_step(config, compute), params, rows)

    def flops(self, config: ModelConfig) -> float:
        return forward_flops(config, self.prompt, self.tokens, self.groups, self.shared_prompt) * self.examples

    def tokens_computed(self) -> int:
        return row_tokens(self.prompt, self.tokens, self.groups, self.shared_prompt) * self.examples

    def kernel_share(self, config: ModelConfig) -> float:
        rows = self.groups if self.shared_prompt else 1
        branches = (self.prompt, rows) if self.prompt else None
        return kernel_computed(config, self.prompt + rows * self.tokens, branches)
