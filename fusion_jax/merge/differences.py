"""What task-vector methods share: differences from the base, sums and counts of whole tensors, the vote on signs."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import Round, as_math, task_vectors
from fusion_jax.merge.stacks import PerModel, one_or_each, sums_of, total

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


def tensor_sum(x: Array) -> Array:
    """float32 scalar: the sum of float32[...] with its rounding errors, right to the last bit in any order of devices.

    A vote between opposite task vectors hangs on that bit where both are rescaled by their own sums.
    """
    error = jnp.zeros_like(x)
    while x.ndim:
        x, error = jax.lax.optimization_barrier(jax.lax.reduce((x, error), (0.0, 0.0), _add_exactly, (x.ndim - 1,)))
    return x + error


def _add_exactly(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    """Knuth's two-sum: the rounded sum of two sums, and all errors so far."""
    (a, error_a), (b, error_b) = left, right
    total = a + b
    share_b = total - a
    return total, error_a + error_b + ((a - (total - share_b)) + (b - share_b))


def counts(*masks: Array) -> tuple[Array, ...]:
    """uint32 scalars: how many of each of two or more bool[...] are true; a lone mask a CPU would first write out."""
    return sums_of([mask.astype(jnp.uint32) for mask in masks])


def count(mask: Array) -> Array:
    """uint32 scalar: how many of bool[...] are true."""
    return counts(mask, ~mask)[0]


def erased(votes: Sequence[Array], stays: Sequence[Array]) -> Array:
    """float32[K]: the share of nonzero entries of K task vectors float32[...] that do not stay; no zero stays."""
    nonzero, staying = jnp.asarray([counts(v != 0, s) for v, s in zip(votes, stays, strict=True)]).T
    return (nonzero - staying) / jnp.maximum(nonzero, 1)


def winners(votes: Sequence[Array], rounded: Round) -> list[Array]:
    """K bool[...]: entries of the sign of the sum over models, in which 0 counts as positive; no zero wins."""
    positive = rounded(total(votes)) >= 0
    return [jnp.where(positive, v > 0, v < 0) for v in votes]
