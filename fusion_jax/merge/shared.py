"""Small things the merge methods share: numbers a recipe gives each model, checks of shapes, sums of whole tensors."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError

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


def count(mask: Array) -> Array:
    """uint32 scalar: how many of bool[...] are true."""
    # The barrier keeps the compiler from joining both sums into one loop, which a CPU would run on one core.
    return jax.lax.optimization_barrier(mask.sum(-1, dtype=jnp.uint32)).sum(dtype=jnp.uint32)


def model_sum(x: Array) -> Array:
    """float32[...]: float32[K,...] summed in the order of models, as elementwise sums.

    XLA's reduction over a leading axis becomes, fused, many times slower on a CPU than reading the array.
    """
    return functools.reduce(operator.add, [x[i] for i in range(len(x))])


def divide(x: Array, divisor: Array) -> Array:
    """x / divisor (not 0), rounded once: XLA multiplies with the reciprocal of a lone number, not of a choice."""
    return x / jnp.where(x == 0, 1.0, divisor)
