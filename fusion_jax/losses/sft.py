"""Supervised fine-tuning: cross-entropy of the scored tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fusion_jax.losses.reductions import Count, Mean, weighted

Array = jax.Array


def sft(logprobs: Array, mask: Array) -> tuple[Mean, dict[str, Mean | Count]]:
    """Token-mean cross-entropy -log pi(label), as a (sum, weight) of tokens.

    Args:
      logprobs: float[..., S] log-probabilities of the labels.
      mask: float[..., S] 1 where a token is scored (the response, or every token in the packed official form).

    Returns:
      (loss, metrics): `loss` is over all scored tokens of the optimizer step, however they fall into micro-batches, and
        `tokens` counts them.

    >>> loss, metrics = sft(jax.numpy.asarray([[-1.0, -2.0, -9.0]]), jax.numpy.asarray([[1.0, 1.0, 0.0]]))
    >>> print(*loss, metrics["tokens"].total)
    3.0 2.0 2.0
    """
    loss = weighted(-logprobs, mask)
    return loss, {"tokens": Count(loss.weight)}


def by_group(logprobs: Array, groups: Array, sizes: Array, scales: tuple[float, ...]) -> Mean:
    """sum_g s_g (mean of -log pi over the tokens of group g in the whole optimizer step), g from 1.

    Each group has a mean of its own, so that many tokens of one do not drown the few of another. As a (sum, weight):
    micro-batches add their shares of every group's mean, and their shares of the step's tokens.

    Args:
      logprobs: float[..., S]; groups: int[..., S], 0 where a token is not scored. sizes: float[len(scales)], tokens of
        each group in the step; one without tokens counts nothing.

    >>> logprobs, groups = jnp.asarray([-1.0, -2.0, -4.0]), jnp.asarray([1, 2, 2])
    >>> print(*by_group(logprobs, groups, jnp.asarray([1.0, 2.0]), (1.0, 0.5)))
    2.5 1.0
    """
    total, weight = jnp.zeros((), logprobs.dtype), jnp.zeros((), logprobs.dtype)
    for g, scale in enumerate(scales, 1):
        here = groups == g
        total += scale * jnp.where(here, -logprobs, 0.0).sum() / jnp.maximum(sizes[g - 1], 1)
        weight += here.sum() / jnp.maximum(sizes.sum(), 1)
    return Mean(total, weight)
