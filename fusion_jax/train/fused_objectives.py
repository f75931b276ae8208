"""Objectives over the responses of several sources: InfiFPO's fused reference, FuseRL's weights, SEFT's two means.

They stand beside those of `train.objectives` and read `Scores.values`: what each row brings along from the sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from fusion_jax import losses
from fusion_jax.errors import InputError
from fusion_jax.keeping import kept
from fusion_jax.losses import Mean, Pair, Quad, weighted
from fusion_jax.losses.infifpo import Distance, Fused, Fusion, fused_reference
from fusion_jax.settings import bounded
from fusion_jax.train.objective import Metrics, Objective, Progress
from fusion_jax.train.objectives import means_of
from fusion_jax.train.scores import Scores, group_tokens

Array = jax.Array


@dataclass(frozen=True)
class InfifpoSettings:
    """InfiFPO (arXiv 2505.13878): a preference loss whose reference is fused from the sources' log-probs."""

    loss: Literal["dpo", "ipo", "wrpo"] = "dpo"
    """The loss of a pair (dpo, ipo) or of a quadruple (wrpo)."""
    beta: float = 2.5
    """How strongly the model is held to the fused reference; tau of ipo. Published: 2.5, without length_norm 0.1."""
    fusion: Fusion = "max_margin"
    """Whose value counts: that farthest from the initial model's, all alike (average), by confidence."""
    clip: bool = True
    """Whether no source may make the reference's margin less than the initial model's."""
    length_norm: bool = True
    """Whether log-probs are divided by the tokens of their scorer."""
    distance_to: Literal["initial", "current"] = "initial"
    """What max_margin measures distances to: the model at the start, or as it is now."""
    distance: Distance = "prob"
    """In what it measures them: probabilities, or log-probs (which length_norm False needs)."""
    alpha: float = 0.1
    """Final weight of the source's response in a quadruple."""
    dynamic: bool = True
    """Whether alpha rises linearly from 0; else it is constant."""
    label_smoothing: float = 0.0
    """Share of the preferences that are assumed to be labelled the wrong way round."""

    def __post_init__(self) -> None:
        bounded(self, "beta", above=0)
        bounded(self, "alpha", least=0, most=1)
        bounded(self, "label_smoothing", least=0, most=0.5)
        if not self.length_norm and (self.fusion, self.distance) == ("max_margin", "prob"):
            problem = "is of probabilities of whole responses, which are too small to tell apart"
            raise InputError(problem, field="distance", cure="Set it to logp where length_norm is False")


@kept
def infifpo(settings: InfifpoSettings) -> Objective:
    """A loss on pairs or quadruples, whose reference is fused from `Scores.values`.

    These are the sources' log-probs, float[B,G,N], each divided by its scorer's tokens where `length_norm` is set; NaN
    where a source has none.
    """
    s = settings

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        assert scores.values is not None
        counts = jnp.maximum(scores.lengths, 1) if s.length_norm else jnp.ones_like(scores.lengths)
        policy, initial = scores.sequence / counts, scores.reference / counts
        fused = fused_reference(
            initial, scores.values, fusion=s.fusion, clip=s.clip, distance=s.distance,
            beside=policy if s.distance_to == "current" else None,
        )  # fmt: skip
        if s.loss == "wrpo":
            now = losses.alpha_at(progress.step, alpha_end=s.alpha, num_steps=progress.total, dynamic=s.dynamic)
            present = (scores.lengths[:, 0] > 0).astype(policy.dtype)
            each, metrics = losses.wrpo(
                Quad(*policy.T), Quad(*fused.values.T), alpha=now * present, beta=s.beta,
                label_smoothing=s.label_smoothing,
            )  # fmt: skip
        elif s.loss == "ipo":
            each, metrics = losses.ipo(Pair(*policy.T), Pair(*fused.values.T), tau=s.beta)
        else:
            each, metrics = losses.dpo(
                Pair(*policy.T), Pair(*fused.values.T), beta=s.beta, label_smoothing=s.label_smoothing
            )
        metrics |= _fusion_metrics(fused, policy, initial)
        return weighted(each, scores.weights), means_of(metrics, scores.weights)

    return Objective(f"infifpo_{s.loss}", (Quad if s.loss == "wrpo" else Pair)._fields, loss, reference=True)


def _fusion_metrics(fused: Fused, policy: Array, initial: Array) -> dict[str, Array]:
    """What fusing did to each example; the last preferred response and the rejected one make the margins."""

    def margin(values: Array) -> Array:
        return values[:, -2] - values[:, -1]

    clipped = fused.changed.astype(policy.dtype).mean(-1)
    sides, sources = {"chosen": -2, "rejected": -1}, range(fused.weights.shape[-1])
    chosen = {f"selected_source/{i}/{name}": fused.weights[:, at, i] for name, at in sides.items() for i in sources}
    metrics = {
        "clip_rate/chosen": clipped[:, -2],
        "clip_rate/rejected": clipped[:, -1],
        "reference_margin": margin(fused.values),
        "initial_margin": margin(initial),
        "accuracies_without_reference": (margin(policy) > 0).astype(policy.dtype),
    }
    return jax.lax.stop_gradient(metrics | chosen)


@dataclass(frozen=True)
class FuseRLSettings:
    """FusePO of FuseRL (arXiv 2504.06562); the equations are this project's, see `losses.fuserl`."""

    loss: Literal["dpo", "simpo", "rloo"] = "dpo"
    """The loss of a source's best and worst response (dpo, simpo), or of all its samples (rloo)."""
    beta: float = 0.01
    """How strongly the model is held to its reference; the scale of simpo, usually 10."""
    gamma: float = 1.0
    """SimPO's target margin."""

    def __post_init__(self) -> None:
        bounded(self, "beta", above=0)
        bounded(self, "gamma", least=0)


@kept
def fuse_sft(responses: int, *, length_norm: bool = True) -> Objective:
    """FuseSFT: the cross-entropy of a prompt's responses, weighted by `Scores.values` float[B,R,1].

    Args:
      responses: R, of a prompt. length_norm: whether each response counts its token mean, else its sum.
    """

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        assert scores.values is not None
        shares = scores.values[..., 0]
        mean = losses.weighted_sft(scores.sequence, scores.lengths, shares, scores.weights, length_norm=length_norm)
        return mean, means_of({"effective_responses": _effective(shares)}, scores.weights)

    return Objective("fuse_sft", tuple(f"response_{i + 1}" for i in range(responses)), loss)


@kept
def fuse_po(settings: FuseRLSettings, sources: int, samples: int = 2) -> Objective:
    """FusePO: the losses of K sources, weighted by `Scores.values[..., 0]`, the same for all rows of a source.

    A source has the rows (chosen, rejected) or, for rloo, its `samples`, with advantages in `Scores.values[..., 1]`.
    """
    s = settings
    if s.loss == "rloo":
        slots = tuple(f"source_{k + 1}/sample_{j + 1}" for k in range(sources) for j in range(samples))
    else:
        slots = tuple(f"source_{k + 1}/{side}" for k in range(sources) for side in Pair._fields)
    rows = len(slots) // sources

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        assert scores.values is not None
        policy, reference, lengths = (
            x.reshape(-1, sources, rows) for x in (scores.sequence, scores.reference, scores.lengths)
        )
        values = scores.values.reshape(-1, sources, rows, scores.values.shape[-1])
        shares = values[:, :, 0, 0]
        if s.loss == "rloo":
            each, metrics = losses.leave_one_out(policy, values[..., 1]), dict[str, Array]()
        else:
            ours, theirs, counts = (Pair(x[..., 0], x[..., 1]) for x in (policy, reference, lengths))
            if s.loss == "simpo":
                each, found = losses.simpo(ours, lengths=counts, beta=s.beta, gamma=s.gamma)
            else:
                each, found = losses.dpo(ours, theirs, beta=s.beta)
            metrics = {name: losses.over_sources(value, shares) for name, value in found.items()}
        metrics["effective_sources"] = _effective(shares)
        metrics |= {f"weight/source_{k + 1}": shares[:, k] for k in range(sources)}
        return weighted(losses.over_sources(each, shares), scores.weights), means_of(metrics, scores.weights)

    return Objective(f"fuse_po_{s.loss}", slots, loss, reference=s.loss == "dpo")


def _effective(shares: Array) -> Array:
    """1 / sum of squares: how many of equal weight would be as concentrated; 0 where all weights are."""
    squares = (shares**2).sum(-1)
    return jnp.where(squares > 0, 1.0 / jnp.where(squares > 0, squares, 1.0), 0.0)


LABEL, REVISION = 1, 2  # groups of a reviser's tokens


@kept
def reviser(label_weight: float = 1.0) -> Objective:
    """SEFT's adaptive reviser (arXiv 2406.10813): the token mean of labels, weighted, plus that of revisions.

    The tokens of an example say by `Example.groups` whether they are of its label (1) or of its revision (2).
    """

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        assert scores.groups is not None and progress.tokens is not None
        groups = jnp.where(scores.mask > 0, scores.groups, 0)
        mean = losses.by_group(scores.logprobs, groups, progress.tokens, (label_weight, 1.0))
        kinds = {"label": LABEL, "revision": REVISION}
        return mean, {f"nll/{name}": losses.sft(scores.logprobs, groups == g)[0] for name, g in kinds.items()}

    return Objective("reviser", ("response",), loss, counts=partial(group_tokens, groups=2))
