"""Sums that carry their weight. Micro-batches and devices add them; `divide` is the one place that divides."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Mean(NamedTuple):
    """A weighted sum and its weight, both scalars; adding two of them is exact."""

    total: Array
    weight: Array


class Count(NamedTuple):
    """How many of something there are in all, a scalar; micro-batches and devices add it, nothing divides it."""

    total: Array


def weighted(values: Array, weights: Array) -> Mean:
    """Sum of `values` under `weights` (same shape); entries of weight 0 are left out even when not finite.

    >>> print(*weighted(jnp.asarray([1.0, 3.0, jnp.nan]), jnp.asarray([1.0, 0.5, 0.0])))
    2.5 1.5
    """
    kept = jnp.where(weights > 0, values, 0.0)
    return Mean(jnp.sum(kept * weights), jnp.sum(weights))


def divide(mean: Mean | Count) -> Array:
    """The mean, 0 where nothing was weighed; of a count all of it.

    >>> print(divide(Mean(jnp.asarray(3.0), jnp.asarray(2.0))), divide(Mean(jnp.asarray(0.0), jnp.asarray(0.0))))
    1.5 0.0
    """
    if isinstance(mean, Count):
        return mean.total
    return jnp.where(mean.weight > 0, mean.total / jnp.where(mean.weight > 0, mean.weight, 1.0), 0.0)


def combined(*terms: tuple[Array | float, Mean]) -> Mean:
    """sum_i w_i m_i of terms (w_i, m_i), each the mean of this micro-batch, which then counts as one whatever its size.

    >>> one, two = Mean(jnp.asarray(6.0), jnp.asarray(3.0)), Mean(jnp.asarray(4.0), jnp.asarray(1.0))
    >>> print(*combined((1.0, one), (0.5, two)))
    4.0 1.0
    """
    total = jnp.asarray(sum(weight * divide(mean) for weight, mean in terms))
    return Mean(total, jnp.ones_like(total))
