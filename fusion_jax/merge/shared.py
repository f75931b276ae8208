"""Small things the merge methods share: numbers a recipe gives each model, checks of shapes, sums of whole tensors."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import Round, as_math, task_vectors

Array = jax.Array
PerModel = float | Sequence[float]


def per_model(
    value: PerModel, count: int, name: str, *, least: float = -math.inf, most: float = math.inf
) -> tuple[float, ...]:
    """One finite number for each of `count` models from one for all or a sequence; InputError names the parameter."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(numbers) != count:
        raise InputError(
            f"{len(numbers)} values for {count} models", field=name, cure="Give one, or one for each model"
        )
    for number in numbers:
        if not (math.isfinite(number) and least <= number <= most):
            allowed = f"from {least:g} to {most:g}" if math.isfinite(least) else "that is finite"
            raise InputError(f"{number!r} is out of range", field=name, cure=f"Give a number {allowed}")
    return numbers


def check_shapes(models: Array, base: Array) -> None:
    """InputError where models [K,...] are not K >= 1 tensors of the base's shape."""
    if not models.shape[:1] or models.shape[0] == 0 or models.shape[1:] != base.shape:
        problem = f"models of shape {tuple(models.shape)} do not fit a base of shape {tuple(base.shape)}"
        raise InputError(problem, cure="Stack one or more tensors of the base's shape")


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
    """uint32 scalars: how many of each of two or more bool[...] are true, in one reading.

    Rows first, with a barrier, so that a CPU counts on all cores; a lone mask it would first write out as numbers.
    """
    zeros, axis = (jnp.uint32(0),) * len(masks), masks[0].ndim - 1
    numbers = tuple(mask.astype(jnp.uint32) for mask in masks)
    rows = jax.lax.reduce(numbers, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), (axis,))
    return tuple(row.sum(dtype=jnp.uint32) for row in jax.lax.optimization_barrier(rows))


def count(mask: Array) -> Array:
    """uint32 scalar: how many of bool[...] are true."""
    return counts(mask, ~mask)[0]


def model_sum(xs: Sequence[Array]) -> Array:
    """float32[...]: K arrays float32[...] summed in the order of models.

    A sequence, not a stack: elementwise sums fuse into one pass, where a reduction over a stack takes many on a CPU.
    """
    return functools.reduce(operator.add, xs)


def erased(votes: Sequence[Array], stays: Sequence[Array]) -> Array:
    """float32[K]: the share of nonzero entries of K task vectors float32[...] that do not stay; no zero stays."""
    nonzero, staying = jnp.asarray([counts(v != 0, s) for v, s in zip(votes, stays, strict=True)]).T
    return (nonzero - staying) / jnp.maximum(nonzero, 1)


def winners(votes: Sequence[Array], rounded: Round) -> list[Array]:
    """K bool[...]: entries of the sign of the sum over models, in which 0 counts as positive; no zero wins."""
    positive = rounded(model_sum(votes)) >= 0
    return [jnp.where(positive, v > 0, v < 0) for v in votes]


def divide(x: Array, divisor: Array) -> Array:
    """x / divisor (not 0), rounded once: XLA multiplies with the reciprocal of a lone number, not of a choice."""
    return x / jnp.where(x == 0, 1.0, divisor)
