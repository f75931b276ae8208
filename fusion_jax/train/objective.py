"""What a method trains on and minimises, as one record that the training step, the desk and the plan read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax

from fusion_jax.data.batches import TokenBatch
from fusion_jax.losses.reductions import Count, Mean
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.train.scores import Scores, score

Array = jax.Array
Metrics = dict[str, Mean | Count]


class Progress(NamedTuple):
    """How far a run is. step: optimizer steps that are done, a scalar array; total: those of the whole run.

    tokens: float[groups], the tokens of each group in the whole optimizer step (`Objective.groups`).
    """

    step: Array
    total: int
    tokens: Array | None = None


@dataclass(frozen=True)
class Objective:
    """Rows, reference and loss of a method.

    name: what reports and plans call it.
    slots: what the rows of an example are, in their order, for instance ("chosen", "rejected"). A row is one sequence
      of tokens, G of them an example; records of the kind that a stage reads have as many responses.
    loss: (scores, progress) -> (loss, metrics), all as (sum, weight) or as counts, which micro-batches add; one place
      divides them at the end of the optimizer step.
    reference: whether the loss reads `Scores.reference`, log-probs under the model that training starts from.
    targets: whether the loss reads teachers' distributions, `Scores.targets`.
    head: which head of the model is read, the language model's or that of a reward model, with one score.
    groups: how many groups of tokens the loss takes means of its own of; it finds their sizes in `Progress.tokens`.
    scores: the forward pass; a method with another one (an encoder, a retriever, frozen teachers) brings its own.
    """

    name: str
    slots: tuple[str, ...]
    loss: Callable[[Scores, Progress], tuple[Mean, Metrics]]
    reference: bool = False
    targets: bool = False
    head: Literal["language", "reward"] = "language"
    groups: int = 0
    scores: Callable[[Params, ModelConfig, TokenBatch, Compute], Scores] = score
