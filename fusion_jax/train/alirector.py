"""Alirector (arXiv 2402.04601): a corrector and two frozen alignment models on the same corrections, and its loss.

The alignment models see the source and a draft, one of them the source first, the other the draft first; all three
predict the correction's tokens behind the same ones. Specification sections 4.1 to 4.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax import losses
from fusion_jax.data.batches import TokenBatch
from fusion_jax.keeping import kept
from fusion_jax.losses import Mean, combined
from fusion_jax.losses.alirector import Alignment, Kind, Normalise, aligned_rows, alignment_kl, distilled
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, encode, forward, head_kernel, looking, padded_positions
from fusion_jax.ops.copying import copied_logprobs, copy_gate
from fusion_jax.ops.linear_kl import linear_kl
from fusion_jax.settings import bounded
from fusion_jax.sharding import constrain, data_ways, tensor_shards
from fusion_jax.train.objective import Given, Metrics, Objective, Progress
from fusion_jax.train.scores import Scores, hidden_states, noise_of, scores_from

Array = jax.Array
TEACHERS = ("source_first", "draft_first")
"""The alignment models, as the arrays of an example and the weights of `Given.arrays` are called."""


@dataclass(frozen=True)
class AlirectorSettings:
    """How a corrector learns from its alignment models, besides the corrections."""

    beta: float = 0.5
    """Weight of the divergence from the alignment models beside the cross-entropy; 0: they are not there. The published
    script passes 1.0, the paper says 0.5."""
    alpha: float = 0.5
    """Share of the alignment model that reads the source first; the one that reads the draft first has the rest."""
    kind: Kind = "forward"
    """KL(alignment model || corrector) (forward), the other way round (reverse), or the mean of both."""
    average: Literal["loss", "logits"] = "loss"
    """Whether both alignment models have a divergence of their own, or one of their averaged logits."""
    normalise: Normalise = "micro_batch"
    """The mean over the tokens of each micro-batch, as published, or over all of the optimizer step (token)."""
    compat_reverse_mask: bool = False
    """Of decoders: take the draft-first model's rows by the other one's mask, as the published code does."""
    compat_drop_batch: bool = False
    """Of decoders: teach nothing in a micro-batch where the models do not have as many targets, as published."""

    def __post_init__(self) -> None:
        bounded(self, "beta", least=0)
        bounded(self, "alpha", least=0, most=1)


class Apart(NamedTuple):
    """How far a corrector is from its alignment models, float[B,1,T], and where they say something, bool[B,1,T]; None:
    everywhere."""

    divergence: Array
    taught: Array | None


@kept
def corrector(normalise: Normalise = "micro_batch") -> Objective:
    """Cross-entropy of corrections, of correctors and of alignment models."""

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        mean, metrics = losses.sft(scores.logprobs, scores.mask)
        return (combined((1.0, mean)) if normalise == "micro_batch" else mean), metrics

    held = None if normalise == "token" else corrector("token")
    return Objective("corrector", ("correction",), loss, held=held)


@kept
def alirector(settings: AlirectorSettings, *, judged_alone: bool = True) -> Objective:
    """Cross-entropy + beta KL, the alignment models' weights in `Given.arrays` under the names of `TEACHERS`.

    Of an encoder-decoder an example has beside its row what each alignment model's encoder reads, int[S]; of a decoder
    the model's whole row, int[L], and under "NAME_start" where the correction begins in it, int[1].

    Args:
      judged_alone: whether held-out corrections are judged by their cross-entropy alone, as published for
        encoder-decoders; for decoders the whole loss is.
    """
    s = settings

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        apart: Apart = scores.found
        return distilled(
            scores.logprobs, scores.mask, apart.divergence, beta=s.beta, taught=apart.taught, normalise=s.normalise
        )

    return Objective(
        "alirector", ("correction",), loss, scores=partial(_scores, settings=s),
        held=corrector("token") if judged_alone else None,
    )  # fmt: skip


def _scores(
    params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute, given: Given,
    *, settings: AlirectorSettings,
) -> Scores:  # fmt: skip
    """The corrector's log-probs of the labels, and how far it is from the alignment models over the vocabulary."""
    weights = {name: given.arrays[name] for name in TEACHERS if name in given.arrays}
    hidden, routing = hidden_states(params, config, batch, compute)
    seen, taught = _taught(weights, config, batch, compute, settings)
    heads = [head_kernel(one, config) for one in weights.values()]
    both = settings.average == "logits" and len(weights) == 2
    found = linear_kl(
        hidden, head_kernel(params, config), batch.labels, tuple(zip(seen, heads, strict=True)),
        mix=(settings.alpha, 1.0 - settings.alpha) if both else None, soft_cap=config.head.soft_cap,
        teacher_caps=(config.head.soft_cap,) * len(weights), vocab_shards=tensor_shards(compute.mesh),
        row_shards=data_ways(compute.mesh), elements=compute.logits,
    )  # fmt: skip
    kl = alignment_kl(found.forward, found.reverse, kind=settings.kind, alpha=settings.alpha)
    scores = scores_from(found.logprobs, batch, routing)
    return scores._replace(found=Apart(jnp.where(batch.scored, kl, 0.0), taught))


def _taught(
    weights: Mapping[str, Params], config: ModelConfig, batch: TokenBatch, compute: Compute, s: AlirectorSettings
) -> tuple[list[Array], Array | None]:
    """States [B,1,T,D] of each alignment model at the corrector's places, and where they have some (None: all over)."""
    assert batch.beside is not None
    still = batch._replace(noise=None)
    if config.encoder:
        texts = [batch.beside[name] for name in weights]
        read = [still._replace(prompts=jnp.maximum(t, 0), prompt_lengths=(t >= 0).sum(1)) for t in texts]
        pairs = zip(weights.values(), read, strict=True)
        return [hidden_states(one, config, texts, compute)[0] for one, texts in pairs], None
    rows = [batch.beside[name] for name in weights]
    starts = [batch.beside[f"{name}_start"] for name in weights]
    longest = max(row.shape[1] for row in rows)
    rows = [jnp.pad(row, ((0, 0), (0, longest - row.shape[1])), constant_values=-1) for row in rows]
    scored = [_scored(row, start) for row, start in zip(rows, starts, strict=True)]
    student = batch.scored[:, 0]
    places = aligned_rows(
        student, scored[0], scored[-1], student.shape[1], compat_reverse_mask=s.compat_reverse_mask,
        compat_drop_batch=s.compat_drop_batch,
    )  # fmt: skip
    order = jnp.maximum(jnp.cumsum(student, 1) - 1, 0)  # of each place, which target it predicts
    states = [
        _states(one, config, row, compute)[jnp.arange(len(row))[:, None], jnp.take_along_axis(at, order, 1)]
        for one, row, at in zip(weights.values(), rows, _places(places, len(rows)), strict=True)
    ]
    taught = jnp.take_along_axis(places.taught, order, 1) & student
    return [state[:, None] for state in states], taught[:, None]


def _places(places: Alignment, teachers: int) -> tuple[Array, ...]:
    return (places.source_first, places.draft_first)[:teachers]


def _scored(row: Array, start: Array) -> Array:
    """bool[B,L], the places whose next token is of the correction; row: int[B,L], start: int[B,1]."""
    at = jnp.arange(row.shape[1])
    return (at >= start - 1) & (at + 1 < (row >= 0).sum(1, keepdims=True))


def _states(params: Params, config: ModelConfig, row: Array, compute: Compute) -> Array:
    """Hidden states [B,L,D] of an alignment model's whole rows."""
    lengths = (row >= 0).sum(1)
    tokens = constrain(jnp.maximum(row, 0), compute.mesh, ("batch", None))
    states: Array = forward(
        params, config, tokens, positions=padded_positions(tokens, config, lengths), mesh=compute.mesh,
        dtype=compute.dtype, remat=compute.remat, kernel=compute.kernel,
    )  # fmt: skip
    return states


@kept
def copying(normalise: Normalise = "micro_batch") -> Objective:
    """`corrector` of an encoder-decoder that may copy its source's tokens (section 5.2, `Head.copying`)."""
    plain = corrector(normalise)
    held = None if plain.held is None else replace(plain.held, scores=_copied)
    return replace(plain, name="copying", scores=_copied, held=held)


def _copied(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute) -> Scores:
    how = {"mesh": compute.mesh, "dtype": compute.dtype, "remat": compute.remat, "kernel": compute.kernel}
    noise, texts = noise_of(batch, compute), batch.prompts
    encoded = encode(params, config, texts, batch.prompt_lengths, noise=noise, **how)
    tokens = constrain(batch.tokens[:, 0], compute.mesh, ("batch", None))
    hidden, attention = looking(params, config, tokens, encoded, noise=noise, **how)
    gate = copy_gate(attention, encoded.hidden, hidden, params["copy"]["kernel"], params["copy"]["bias"][0])
    exists = jnp.arange(texts.shape[1]) < batch.prompt_lengths[:, None]
    logprobs = copied_logprobs(
        hidden, head_kernel(params, config), gate, attention, texts, exists, batch.labels[:, 0],
        vocab_shards=tensor_shards(compute.mesh), row_shards=data_ways(compute.mesh), elements=compute.logits,
    )  # fmt: skip
    return scores_from(logprobs[:, None], batch, None)
