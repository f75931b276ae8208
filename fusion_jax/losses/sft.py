"""Supervised fine-tuning: cross-entropy of the scored tokens."""

from __future__ import annotations

import jax

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
