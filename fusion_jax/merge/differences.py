"""What task-vector methods share: differences from the base, sums and counts of whole tensors, the vote on signs."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import Round, as_math, task_vectors
from fusion_jax.merge.stacks import PerModel, one_or_each, row_sums, sums_of, total

Array = jax.Array


def doubles(value: PerModel, count: int, field: str, least: float, most: float) -> tuple[float, ...]:
    """A parameter of `count` models in double precision, which counts are made of; one number holds for all models.

    Raises InputError for another number of values and for values outside [least, most].
    """
    values = one_or_each(value, count, field, np.float64)
    if not ((least <= values) & (values <= most)).all():
        cure = f"Give numbers from {least:g} to {most:g}"
        raise InputError(f"{values.tolist()} is out of range", field=field, cure=cure)
    return tuple(np.broadcast_to(values, count).tolist())


def differences(models: Array, base: Array, rounded: Round) -> tuple[list[Array], Array]:
    """K task vectors and the base, float32[...] of the math dtype and of at least one axis."""
    base = as_math(jnp.atleast_1d(base), rounded)
    models = models.reshape(len(models), *base.shape)
    return [task_vectors(as_math(model, rounded), base, rounded) for model in models], base


def tensor_sums(tensors: Sequence[Array]) -> list[Array]:
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
        total = a + b
        share_b = total - a
        sums.append(total)
        errors.append(error_a + error_b + ((a - (total - share_b)) + (b - share_b)))
    return *sums, *errors


def counts(*masks: Array) -> tuple[Array, ...]:
    """uint32 scalars: how many of each of two or more bool[...] are true."""
    return sums_of([mask.astype(jnp.uint32) for mask in masks])


def count(mask: Array) -> Array:
    """uint32 scalar: how many of bool[...] are true."""
    return counts(mask, ~mask)[0]  # a lone mask a CPU would first write out, then count on one core


def row_counts(mask: Array) -> Array:
    """uint32[...]: how many of each row (the last axis) of bool[...,D] are true."""
    return row_sums([mask.astype(jnp.uint32), (~mask).astype(jnp.uint32)])[0]


def erased(votes: Sequence[Array], stays: Sequence[Array]) -> Array:
    """float32[K]: the share of nonzero entries of K task vectors float32[...] that do not stay; no zero stays."""
    nonzero, staying = jnp.asarray([counts(v != 0, s) for v, s in zip(votes, stays, strict=True)]).T
    return (nonzero - staying) / jnp.maximum(nonzero, 1)


def winners(votes: Sequence[Array], rounded: Round) -> list[Array]:
    """K bool[...]: entries of the sign of the sum over models, in which 0 counts as positive; no zero wins."""
    positive = rounded(total(votes)) >= 0
    return [jnp.where(positive, v > 0, v < 0) for v in votes]
