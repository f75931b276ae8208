"""FuseRL (arXiv 2504.06562): losses over the responses of all sources, weighted by their rewards.

The paper's body could not be had: the equations are this project's, fitted to its abstract and to published reviews.
Shapes: B prompts, K sources, J samples of each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fusion_jax.losses.reductions import Mean, weighted

Array = jax.Array


def weighted_sft(sequence: Array, lengths: Array, shares: Array, weights: Array, *, length_norm: bool = True) -> Mean:
    """Mean over prompts of sum_i w_i NLL(y_i) / |y_i|, or without the division by |y_i|.

    Args:
      sequence, lengths: float[B,R], log-probs of a prompt's responses and their tokens. shares: float[B,R], w, whose
        sum over a prompt is 1. weights: float[B], of prompts; 0 for one that only fills the batch.

    >>> sequence, shares = jnp.asarray([[-2.0, -6.0]]), jnp.asarray([[0.75, 0.25]])
    >>> mean = weighted_sft(sequence, jnp.full((1, 2), 2.0), shares, jnp.ones(1))
    >>> print(mean.total / mean.weight)
    1.5
    """
    nll = -sequence / jnp.maximum(lengths, 1) if length_norm else -sequence
    return weighted((shares * nll).sum(-1), weights)


def over_sources(losses: Array, shares: Array) -> Array:
    """sum_k w_k L_k, float[B], of the sources' losses and weights, float[B,K] each; weight 0 leaves a source out.

    >>> print(over_sources(jnp.asarray([[1.0, 3.0, jnp.nan]]), jnp.asarray([[0.5, 0.5, 0.0]])))
    [2.]
    """
    return (jnp.where(shares > 0, losses, 0.0) * shares).sum(-1)


def leave_one_out(sequence: Array, advantages: Array) -> Array:
    """-(1/J) sum_j A_j log p(y_j), float[...], of log-probs and advantages, float[...,J] (REINFORCE, leave-one-out).

    The advantage of a sample is its reward less the mean of the other samples' (`rewards.weights.advantages`). Where it
    is negative the loss has no lower bound.

    >>> print(leave_one_out(jnp.asarray([-2.0, -4.0]), jnp.asarray([1.0, -1.0])))
    -1.0
    """
    return -(jax.lax.stop_gradient(advantages) * sequence).mean(-1)
