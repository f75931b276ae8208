"""Alirector (arXiv 2402.04601): a corrector learns from two alignment models, which see the source and a draft.

One teacher reads source and draft in this order, the other in the reverse order; "forward" and "reverse" below are the
directions of the divergence, not these orders. Shapes: B items, T rows of a model, N targets of an item.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from fusion_jax.losses.reductions import Count, Mean, combined, weighted

Kind = Literal["forward", "reverse", "both"]
Normalise = Literal["micro_batch", "token"]


class Alignment(NamedTuple):
    """The rows of three models that predict the same targets. student, source_first, draft_first: int32[B,N], places.

    exists: bool[B,N], the student's targets. taught: bool[B,N], those of items of which all three have as many targets.
    """

    student: Array
    source_first: Array
    draft_first: Array
    exists: Array
    taught: Array


def alignment_kl(forward: Array, reverse: Array, *, kind: Kind = "forward", alpha: float = 0.5) -> Array:
    """float[...]: alpha d(first teacher) + (1 - alpha) d(second), d a divergence of a token.

    Args:
      forward, reverse: float[...,2], KL(teacher || student) and KL(student || teacher) as `ops.linear_kl` gives them;
        or float[...,1] of teachers whose logits were averaged (mix=(alpha, 1 - alpha)), where alpha is not used here.
      kind: which of the two d is, or their mean.

    >>> print(alignment_kl(jnp.asarray([1.0, 3.0]), jnp.asarray([2.0, 2.0]), kind="both", alpha=0.25))
    2.25
    """
    apart = {"forward": forward, "reverse": reverse, "both": 0.5 * (forward + reverse)}[kind]
    return apart[..., 0] if apart.shape[-1] == 1 else alpha * apart[..., 0] + (1.0 - alpha) * apart[..., 1]


def distilled(
    logprobs: Array,
    mask: Array,
    kl: Array,
    *,
    beta: float,
    taught: Array | None = None,
    normalise: Normalise = "micro_batch",
) -> tuple[Mean, dict[str, Mean | Count]]:
    """Mean over tokens of -log p(label) + beta KL; the cross-entropy is not scaled by 1 - beta.

    Args:
      logprobs: float[...], of the labels; mask: float[...], 1 where a token is scored; kl: float[...], `alignment_kl`.
      taught: bool[...], scored tokens without it have no KL, and still count in the mean; by default all are taught.
      normalise: over which tokens the mean is. "micro_batch", as published: each micro-batch has its own, and counts as
        one. "token": all of the optimizer step.

    Returns:
      (loss, metrics): the means of the two terms, each over the tokens that have it, and the number of tokens.

    >>> logprobs, mask, kl = jnp.asarray([-1.0, -3.0, -9.0]), jnp.asarray([1.0, 1.0, 0.0]), jnp.asarray([0.5, 1.5, 9.0])
    >>> print(*distilled(logprobs, mask, kl, beta=0.5)[0])
    2.5 1.0
    >>> print(*distilled(logprobs, mask, kl, beta=0.5, normalise="token")[0])
    5.0 2.0
    """
    language = weighted(-logprobs, mask)
    apart = weighted(kl, mask if taught is None else mask * taught)
    loss = Mean(language.total + beta * apart.total, language.weight)
    metrics: dict[str, Mean | Count] = {
        "loss/language": language, "loss/alignment": apart, "tokens": Count(language.weight)
    }  # fmt: skip
    return (combined((1.0, loss)) if normalise == "micro_batch" else loss), metrics


def target_rows(scored: Array, size: int) -> tuple[Array, Array]:
    """The places of the first `size` scored rows of each item, in order, and which of them exist: [B,size] both.

    Args:
      scored: bool[B,T]. Of a decoder whose row t predicts token t + 1, labels[:, 1:] != -100.

    >>> places, exists = target_rows(jnp.asarray([[False, True, True], [False, False, True]]), 2)
    >>> print(places[0], places[1, :1], exists[1])
    [1 2] [2] [ True False]
    """
    places = jnp.argsort(~scored, 1, stable=True).astype(jnp.int32)[:, :size]
    places = jnp.pad(places, ((0, 0), (0, size - places.shape[1])))
    return places, jnp.arange(size) < scored.sum(1, keepdims=True)


def aligned_rows(
    student: Array,
    source_first: Array,
    draft_first: Array,
    size: int,
    *,
    compat_reverse_mask: bool = False,
    compat_drop_batch: bool = False,
) -> Alignment:
    """Which rows of decoder-only models predict the same target, though their prompts differ in length.

    An item that is cut at different targets in the three models is not taught. The states of the rows are
    jnp.take_along_axis(hidden, rows[..., None], 1).

    Args:
      student, source_first, draft_first: bool[B,T], each model's own scored rows (`target_rows`); T may differ.
      size: N, at least the targets of any item.
      compat_reverse_mask: the second teacher's rows are taken by the first one's mask, as in the published code, which
        is wrong where their prompts differ in length; both have the same T then.
      compat_drop_batch: where the student and the first teacher do not have as many targets in all, nothing in the
        micro-batch is taught, as in the published code; which would take rows of other targets for the same where
        the totals are equal by chance: such items are not taught here either.

    >>> rows = [jnp.arange(6) >= 6 - n for n in (3, 2, 2)]  # three targets, of which the teachers lost one
    >>> print(aligned_rows(*(r[None] for r in rows), 3).taught)
    [[False False False]]
    """
    models = (student, source_first, source_first if compat_reverse_mask else draft_first)
    (ours, exists), *others = [target_rows(scored, size) for scored in models]
    counts = jnp.stack([scored.sum(1) for scored in models])
    same = (counts == counts[0]).all(0)
    if compat_drop_batch:
        totals = counts.sum(1)
        same &= totals[0] == totals[1]
    return Alignment(ours, others[0][0], others[1][0], exists, exists & same[:, None])
