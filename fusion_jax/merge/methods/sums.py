"""Sums over models and over whole tensors: exact ones, counts, inner products.

Sums over models are written out model by model: reduced over a leading axis they take XLA hundreds of times longer on
a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp

from fusion_jax.merge.methods.arithmetic import Round

Array = jax.Array


def total(stack: Array | Sequence[Array]) -> Array:
    """Sum over models, [K,...] or K arrays [...] -> [...], added in model order."""
    return reduce(add, stack)


def weighted_sum(weight: Array, stack: Array, rounded: Round) -> Array:
    """sum_j weight[j] stack[j]: each product rounded, the sum accumulated in float32 and rounded once."""
    return rounded(reduce(add, [rounded(w * x) for w, x in zip(weight, stack, strict=True)]))


def dots(stack: Array, axis: int | None = None) -> Array:
    """Inner products of all pairs of models over one axis, or over whole tensors: [K,...] -> float32[K,K,...]."""
    count = len(stack)
    pairs = {(i, j): (stack[i] * stack[j]).sum(axis) for i in range(count) for j in range(i + 1)}
    return jnp.stack([jnp.stack([pairs[max(i, j), min(i, j)] for j in range(count)]) for i in range(count)])


def norms(stack: Array) -> Array:
    """Euclidean norms of whole tensors: [K,...] -> float32[K]."""
    return jnp.stack([jnp.sqrt((x * x).sum()) for x in stack])


def sums_of(tensors: Sequence[Array]) -> tuple[Array, ...]:
    """Scalars: the sums of tensors [...] of one shape and dtype, in one reading of what they are made of.

    Rows first, with a barrier that keeps the compiler from joining both sums into one loop, which a CPU would run on
    one core.
    """
    return tuple(row.sum(dtype=row.dtype) for row in jax.lax.optimization_barrier(_row_sums(tensors)))


def _row_sums(tensors: Sequence[Array]) -> tuple[Array, ...]:
    """[...] each: sums over the last axis of tensors [...,D] of one shape and dtype, in one reading."""
    zeros, axis = (jnp.zeros((), tensors[0].dtype),) * len(tensors), tensors[0].ndim - 1
    return tuple(jax.lax.reduce(tuple(tensors), zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), (axis,)))


def exact_sums(tensors: Sequence[Array]) -> list[Array]:
    """float32 scalars: sums of float32[...] with their rounding errors, right to the last bit on any devices.

    A vote between opposite task vectors hangs on that bit where both are rescaled by their own sums.
    """
    count, sums = len(tensors), [*tensors, *map(jnp.zeros_like, tensors)]
    while sums[0].ndim:
        sums = jax.lax.reduce(tuple(sums), (0.0,) * (2 * count), _add_exactly, (sums[0].ndim - 1,))
        sums = list(jax.lax.optimization_barrier(sums))
    return [x + error for x, error in zip(sums[:count], sums[count:])]


def _add_exactly(left: Sequence[Array], right: Sequence[Array]) -> tuple[Array, ...]:
    """Knuth's two-sum of N pairs: the rounded sums, then for each all errors so far."""
    count = len(left) // 2
    sums, errors = [], []
    for a, b, error_a, error_b in zip(left[:count], right[:count], left[count:], right[count:]):
        both = a + b
        share_b = both - a
        sums.append(both)
        errors.append(error_a + error_b + ((a - (both - share_b)) + (b - share_b)))
    return *sums, *errors


def counts(*masks: Array) -> tuple[Array, ...]:
    """uint32 scalars: how many of each of two or more bool[...] are true."""
    return sums_of([mask.astype(jnp.uint32) for mask in masks])


def count(mask: Array) -> Array:
    """uint32 scalar: how many of bool[...] are true."""
    return counts(mask, ~mask)[0]  # a lone mask a CPU would first write out, then count on one core


def row_counts(mask: Array) -> Array:
    """uint32[...]: how many of each row (the last axis) of bool[...,D] are true."""
    return _row_sums([mask.astype(jnp.uint32), (~mask).astype(jnp.uint32)])[0]
