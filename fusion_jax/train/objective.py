"""What a method trains on and minimises, as one record that the training step, the desk and the plan read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from fusion_jax.data.batches import TokenBatch
from fusion_jax.losses.reductions import Count, Mean
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.train.scores import Scores, score
from fusion_jax.train.state import OptimizerSettings

Array = jax.Array
Metrics = dict[str, Mean | Count]


class Progress(NamedTuple):
    """How far a run is. step: int32[], optimizer steps that are done; total: int32[], those of the whole run.

    tokens: float[n], what `Objective.counts` counts, of the whole optimizer step.
    """

    step: Array | int
    total: Array | int
    tokens: Array | None = None


class Given(NamedTuple):
    """What a forward pass reads besides the weights that train and the batch: nothing of it has a gradient.

    arrays: what the run was given (`optimise`): frozen models' weights, candidates' tokens. memory: of `Memory`.
    """

    arrays: Any = None
    memory: Any = None


@dataclass(frozen=True)
class Memory:
    """What is computed from the weights now and then, such as the index of a retriever, and kept in between.

    make: (params, config, arrays, compute) -> a pytree of arrays. every: optimizer steps from one making to the next,
      the first before the first step.
    """

    make: Callable[[Params, ModelConfig, Any, Compute], Any]
    every: int


@dataclass(frozen=True)
class Objective:
    """Rows, reference and loss of a method: what its functions need besides settings is in `Given.arrays`, since the
    record is hashed and kept.

    name: what reports and plans call it.
    slots: what the rows of an example are, in their order, for instance ("chosen", "rejected"). A row is one sequence
      of tokens, G of them an example; records of the kind that a stage reads have as many responses.
    loss: (scores, progress) -> (loss, metrics), all as (sum, weight) or as counts, which micro-batches add; one place
      divides them at the end of the optimizer step.
    reference: whether the loss reads `Scores.reference`, log-probs under the model that training starts from.
    targets: whether the loss reads teachers' distributions, `Scores.targets`.
    head: which head of the model is read, the language model's or that of a reward model, with one score.
    counts: of a micro-batch, float[n], how many tokens each mean that the loss takes by itself is over; the loss finds
      their sums over the optimizer step in `Progress.tokens`.
    scores: the forward pass; a method with another one (an encoder, a retriever, frozen teachers) brings its own,
      (params, config, batch, compute, given) -> Scores, where `given` is left out unless there is something.
    held: what held-out examples are judged by in its place, which is given nothing; None: by the objective itself.
    memory: what it keeps between steps, `Given.memory`.
    companion: how the weights of `ModelConfig.companion` are trained, which have an optimizer of their own.
    """

    name: str
    slots: tuple[str, ...]
    loss: Callable[[Scores, Progress], tuple[Mean, Metrics]]
    reference: bool = False
    targets: bool = False
    head: Literal["language", "reward"] = "language"
    counts: Callable[[TokenBatch], Array] | None = None
    scores: Callable[..., Scores] = score
    held: Objective | None = None
    memory: Memory | None = None
    companion: OptimizerSettings | None = None
