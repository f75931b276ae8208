"""Fusion of teachers' next-token distributions: sparse targets, MinCE and AvgCE, and divergences from them.

FuseLLM (arXiv 2401.10491) and FuseChat (arXiv 2408.07990); sections 8 and 9 of the specification. A target is the few
entries that a teacher gave mass to: no array over the vocabulary exists. The divergences read the student's log-probs
of these entries, which `ops.linear_logprobs` makes in chunks of the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError
from fusion_jax.losses.reductions import Mean, combined, weighted

Array = jax.Array
Rounding = Literal["none", "bfloat16"]
Tail = Literal["none", "renormalise", "bucket", "ignore"]
Kind = Literal["ce", "kl", "reverse_kl", "jsd", "tv"]
Ties = Literal["first", "last"]
Function = Literal["mince", "avgce"]
Schedule = Literal["hard", "hard_and_decay"]
Order = Literal["progressive", "simul", "reverse"]
LEAST_MASS = 1e-6  # what 1 - sum p is held above: float32 does not tell less from rounding


class Target(NamedTuple):
    """A sparse distribution a position. ids: int32[...,K], different within a position where probs [...,K] is not 0."""

    ids: Array
    probs: Array


def _check(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be {' or '.join(map(repr, get_args(choices)))}, not {value!r}")


class _Compared(NamedTuple):
    """The classes [...,C] that a divergence compares: the teacher's mass, the student's log-probs and mass, all 0 where
    the teacher gives none; least: what log t is held above in reverse_kl, 0 where nothing is.

    astray: [...], the student's mass on ids that the teacher gives 0 and that count.
    """

    probs: Array
    logprobs: Array
    student: Array
    least: Array
    astray: Array


def _rounded(x: Array, rounding: Rounding) -> Array:
    """To bfloat16 and back, as the official code stores it, or as it is."""
    _check("rounding", rounding, Rounding)
    return jax.lax.reduce_precision(x, 8, 7) if rounding == "bfloat16" else x


def teacher_target(
    ids: Array, logits: Array, counts: Array, *, temperature: float = 1.0, rounding: Rounding = "none"
) -> Target:
    """softmax(logits / temperature) over the first `counts` [...] of the K entries of each position (section 8).

    A position of count 0 has no mass: see `filled`.
    """
    exists = jnp.arange(ids.shape[-1]) < counts[..., None]
    scaled = _rounded(_rounded(logits.astype(jnp.float32), rounding) / temperature, rounding)
    weights = jax.nn.softmax(jnp.where(exists, scaled, jnp.finfo(jnp.float32).min), -1)
    return Target(ids, jnp.where(exists, _rounded(weights, rounding), 0.0))


def filled(target: Target, pivot: Target, where: Array | bool = True) -> Target:
    """The target with the pivot's own distribution where it is empty and may be filled, bool[...]; the wider K of the
    two."""
    width = max(target.ids.shape[-1], pivot.ids.shape[-1])
    target, pivot = _widened(target, width), _widened(pivot, width)
    empty = (target.probs == 0).all(-1, keepdims=True) & jnp.asarray(where)[..., None]
    return Target(*(jnp.where(empty, p, t) for p, t in zip(pivot, target, strict=True)))


def _widened(target: Target, width: int) -> Target:
    pad = [(0, 0)] * (target.ids.ndim - 1) + [(0, width - target.ids.shape[-1])]
    return Target(jnp.pad(target.ids, pad), jnp.pad(target.probs, pad))


def rewards(metrics: Array, *, rounding: Rounding = "none") -> Array:
    """1 / exp(metric) of every teacher: its mean cross-entropy on the text turned into a score (section 9)."""
    return _rounded(1.0 / _rounded(jnp.exp(_rounded(metrics, rounding)), rounding), rounding)


def _usable(scores: Array, targets: list[Target]) -> Array:
    """The scores, the least that there is where one is not finite: such a teacher is chosen or weighted last."""
    if not isinstance(targets, list | tuple) or isinstance(targets, Target):
        problem = f"is of type {type(targets).__name__}, not a list of targets"
        raise InputError(problem, field="targets", cure="Give a list, also for one target: [target]")
    if not targets:
        raise ValueError("there is no target: give at least one teacher's")
    if len(targets) != len(scores):
        raise ValueError(f"{len(targets)} targets but scores of {len(scores)} teachers")
    return jnp.where(jnp.isfinite(scores), scores, jnp.finfo(scores.dtype).min)


def min_ce(targets: list[Target], scores: Array, *, ties: Ties = "first") -> Target:
    """The target of the teacher with the highest score (MinCE).

    Args:
      targets: n targets of shape [B,T,K].
      scores: float[n,B], one choice a sample, or float[n,B,T], one a token; see `rewards`. One that is not finite
        never wins against one that is.
      ties: which of equal teachers wins; "last" is what the official code does for two sources without the pivot.

    >>> one, two = (Target(jnp.asarray([[[i, 9]]]), jnp.asarray([[[0.75, 0.25]]])) for i in (3, 4))
    >>> print(min_ce([one, two], jnp.asarray([[-2.0], [-1.0]])).ids)  # the second knows the text better
    [[[4 9]]]
    """
    _check("ties", ties, Ties)
    scores = _usable(scores, targets)
    width = max(t.ids.shape[-1] for t in targets)
    best = jnp.argmax(scores, 0) if ties == "first" else len(targets) - 1 - jnp.argmax(scores[::-1], 0)
    best = best.reshape(*best.shape, *(1,) * (targets[0].ids.ndim - best.ndim))
    chosen = _widened(targets[0], width)
    for number, target in enumerate(targets[1:], 1):
        chosen = Target(*(jnp.where(best == number, t, c) for t, c in zip(_widened(target, width), chosen)))
    return chosen


def avg_ce(targets: list[Target], scores: Array, *, rounding: Rounding = "none") -> Target:
    """The mean of the targets under softmax(scores) over the teachers (AvgCE); entries of one id become one.

    Args:
      targets: n targets of shape [B,T,K].
      scores: float[n,B] or [n,B,T]; see `rewards`. One that is not finite weighs nothing beside one that is.

    >>> one, two = (Target(jnp.asarray([[[i, 9]]]), jnp.asarray([[[0.75, 0.25]]])) for i in (3, 4))
    >>> fused = avg_ce([one, two], jnp.asarray([[-1.0], [-1.0]]))
    >>> print(fused.ids, fused.probs)  # 9 has both shares at its first place
    [[[3 9 4 9]]] [[[0.375 0.25  0.375 0.   ]]]
    """
    weights = _rounded(jax.nn.softmax(_usable(scores, targets), 0), rounding)
    weights = weights.reshape(*weights.shape, *(1,) * (targets[0].ids.ndim + 1 - weights.ndim))
    ids = jnp.concatenate([t.ids for t in targets], -1)
    probs = jnp.zeros(ids.shape, weights.dtype)
    for target, weight in zip(targets, weights, strict=True):
        share = _rounded(weight * target.probs, rounding)
        same = ids[..., :, None] == target.ids[..., None, :]
        probs = _rounded(probs + (same * share[..., None, :]).sum(-1), rounding)
    earlier = jnp.tril(jnp.ones((ids.shape[-1],) * 2, bool), -1)
    repeats = ((ids[..., :, None] == ids[..., None, :]) & earlier).any(-1)
    return Target(ids, jnp.where(repeats, 0.0, probs))


def fused_targets(
    targets: list[Target],
    scores: Array,
    *,
    function: Function = "mince",
    rounding: Rounding = "none",
    ties: Ties = "first",
) -> Target:
    """One target from several teachers' by `min_ce` or `avg_ce` (section 9).

    Args:
      targets: n targets of shape [B,T,K].
      scores: float[n,B] or [n,B,T], higher is better; `rewards` makes them of mean cross-entropies.

    >>> one, two = (Target(jnp.asarray([[[i, 9]]]), jnp.asarray([[[0.75, 0.25]]])) for i in (3, 4))
    >>> print(fused_targets([one, two], rewards(jnp.asarray([[1.5], [2.0]]))).ids)  # the first needs fewer nats a token
    [[[3 9]]]
    """
    _check("function", function, Function)
    if function == "mince":
        return min_ce(targets, scores, ties=ties)
    return avg_ce(targets, scores, rounding=rounding)


def sparse_kl(logprobs: Array, target: Target, mask: Array, *, tail: Tail = "none") -> Mean:
    """Forward KL from a sparse target to the student: `divergence` of kind "kl".

    Args:
      logprobs: float[...,K], the student's log-probs of `target.ids`, for instance of `ops.linear_logprobs`.
      target: ids and probs [...,K]; see `teacher_target`. mask: [...], which positions count. tail: see `divergence`.

    Returns:
      Sum and weight; `losses.divide` makes the mean.

    >>> target = Target(jnp.asarray([[3, 9]]), jnp.asarray([[0.75, 0.25]]))
    >>> sums = sparse_kl(jnp.log(jnp.asarray([[0.5, 0.25]])), target, jnp.asarray([1.0]))
    >>> print(f"{sums.total:.4f} {sums.weight:.0f}")  # 0.75 log(0.75 / 0.5)
    0.3041 1
    """
    return divergence(logprobs, target, mask, kind="kl", tail=tail)


def divergence(
    logprobs: Array,
    target: Target,
    mask: Array,
    *,
    kind: Kind = "ce",
    tail: Tail = "none",
    beta: float = 0.5,
    rounding: Rounding = "none",
) -> Mean:
    """How far the student p is from the teacher t, as a sum over the positions where `mask` is positive.

    With m = beta t + (1 - beta) p, and sums over the classes that `tail` says, 0 log 0 = 0:

      ce          -sum t log p
      kl          sum t (log t - log p), forward KL: the student covers what the teacher may say
      reverse_kl  sum p (log p - log t): the student keeps to what the teacher finds probable
      jsd         beta KL(t || m) + (1 - beta) KL(p || m), generalised Jensen-Shannon (GKD, arXiv 2306.13649, eq. 1)
      tv          0.5 sum |t - p|, total variation, at most 1

    beta is the teacher's weight: jsd / beta tends to kl as beta falls to 0, and jsd / (1 - beta) to reverse_kl as it
    rises to 1; at 0.5 it is the symmetric one.

    Args:
      logprobs: float[...,K], the student's log-probs of `target.ids`, of any value, -inf too, where the target has no
        mass; mask: [...].
      tail: what becomes of the ids that the target does not list.
        "none": the teacher gives them 0 and is taken as it is, the student is whole (the published form, whose targets
          `teacher_target` renormalises). Their student's mass counts in jsd and tv; in reverse_kl, where it costs
          infinitely much, it is left out, so that a student who leaves the list pays nothing: take another tail.
        "renormalise": both sides are renormalised over the list: they are compared given that the token is on it.
        "bucket": all of them are one more class, of the teacher and of the student; its mass is held above
          `LEAST_MASS` where a logarithm is taken of it.
        "ignore": no term. Neither side is renormalised, so a divergence can be negative.
      rounding: of the entropy in "kl".

    Where the list is the whole vocabulary and both sum to 1, all tails give the textbook's divergence.

    >>> t, p = Target(jnp.asarray([[3, 9]]), jnp.asarray([[0.5, 0.25]])), jnp.log(jnp.asarray([[0.25, 0.25]]))
    >>> for tail in ("none", "renormalise", "bucket", "ignore"):
    ...     print(tail, f"{divergence(p, t, jnp.ones(1), kind='tv', tail=tail).total:.3f}")
    none 0.375
    renormalise 0.167
    bucket 0.250
    ignore 0.125
    """
    _check("kind", kind, Kind)
    _check("tail", tail, Tail)
    if not 0 < beta < 1:
        raise InputError(f"{beta} is out of range", field="beta", cure="Give more than 0 and less than 1")
    probs, logprobs, student, least, astray = _compared(logprobs, target.probs, tail)
    finite = jnp.where(student > 0, logprobs, 0.0)
    match kind:
        case "ce":
            values = -(probs * logprobs).sum(-1)
        case "kl":
            values = -(probs * logprobs).sum(-1)
            values += _rounded(probs * _rounded(_log(probs), rounding), rounding).sum(-1)
        case "reverse_kl":
            values = (student * (finite - _log(jnp.maximum(probs, least)))).sum(-1)
        case "jsd":
            mixture = _log(beta * probs + (1.0 - beta) * student)
            values = beta * (probs * (_log(probs) - mixture)).sum(-1)
            values += (1.0 - beta) * ((student * (finite - mixture)).sum(-1) - astray * math.log(1.0 - beta))
        case "tv":
            values = 0.5 * (jnp.abs(probs - student).sum(-1) + astray)
    return weighted(values, mask)


def _compared(logprobs: Array, probs: Array, tail: Tail) -> _Compared:
    """logprobs and probs [...,K] as `divergence` gets them."""
    listed = probs > 0
    logprobs = jnp.where(listed, logprobs, 0.0)
    if tail == "renormalise":
        mass = probs.sum(-1, keepdims=True)
        probs = probs / jnp.where(mass > 0, mass, 1.0)
        whole = jax.nn.logsumexp(jnp.where(listed, logprobs, jnp.finfo(logprobs.dtype).min), -1, keepdims=True)
        logprobs = jnp.where(listed, logprobs - whole, 0.0)
    student = jnp.where(listed, jnp.exp(logprobs), 0.0)
    rest = jnp.clip(1.0 - student.sum(-1, keepdims=True), 0.0, 1.0)
    least = jnp.zeros_like(student)
    if tail == "bucket":
        unlisted = jnp.clip(1.0 - probs.sum(-1, keepdims=True), 0.0, 1.0)
        probs, student = jnp.concatenate([probs, unlisted], -1), jnp.concatenate([student, rest], -1)
        logprobs = jnp.concatenate([logprobs, jnp.log(jnp.maximum(rest, LEAST_MASS))], -1)
        least = jnp.concatenate([least, jnp.full_like(rest, LEAST_MASS)], -1)
    return _Compared(probs, logprobs, student, least, rest[..., 0] if tail == "none" else jnp.zeros_like(rest[..., 0]))


def _log(mass: Array) -> Array:
    """log, and 0 where there is no mass."""
    return jnp.log(jnp.where(mass > 0, mass, 1.0))


def fused_loss(language: Mean, fusion: Mean, weights: tuple[Array | float, Array | float]) -> Mean:
    """weights[0] * L_LM + weights[1] * L_fuse of a micro-batch, each its own mean; it counts as one (section 9)."""
    return combined((weights[0], language), (weights[1], fusion))


def scheduled_weights(
    step: Array | int, *, weight: float, num_steps: Array | int, schedule: Schedule = "hard"
) -> tuple[Array | float, Array | float]:
    """(lambda, 1 - lambda) of a step: constant, or lambda rising linearly to 1, when the fusion loss has faded out."""
    _check("schedule", schedule, Schedule)
    progress = step / jnp.maximum(num_steps, 1) if schedule == "hard_and_decay" else 0.0
    now = weight + (1.0 - weight) * progress
    return now, 1.0 - now


def progressive_weights(
    step: Array | int, *, first_steps: int, order: Order = "progressive", kept: float = 0.1
) -> tuple[Array, Array]:
    """ProFuser's (w1, w2) of a step, the weights of inference and training mode (arXiv 2408.04998).

    (1, 0) in the first stage and (kept, 1) behind it; "reverse" with the modes exchanged; "simul" (1, 1) throughout.

    >>> print(*(tuple(map(float, progressive_weights(step, first_steps=1, kept=0.25))) for step in (0, 1)))
    (1.0, 0.0) (0.25, 1.0)
    """
    _check("order", order, Order)
    later = jnp.asarray(step) >= first_steps
    one = jnp.ones(later.shape)
    if order == "simul":
        return one, one
    before, behind = jnp.where(later, kept, 1.0), jnp.where(later, 1.0, 0.0)
    return (before, behind) if order == "progressive" else (behind, before)


def soft_weights(scores: Array, fusion: Function, *, rounding: Rounding = "none") -> tuple[Array, Array]:
    """(1 - m, m) with m the maximum (MinCE) or mean (AvgCE) of the teachers' scores [n] of one sample (batch 1)."""
    _check("fusion", fusion, Function)
    share = scores.max(0) if fusion == "mince" else _rounded(scores.mean(0), rounding)
    return complement(share, rounding), share


def complement(share: Array, rounding: Rounding = "none") -> Array:
    """1 - m, the language-model loss's weight beside a fusion weight of m."""
    return _rounded(1.0 - share, rounding)
