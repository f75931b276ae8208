"""Sums and inner products over a stack of models, and the checks that the methods' public functions share.

Sums over models are written out model by model: reduced over a leading axis they take XLA hundreds of times longer on
a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.merge.arithmetic import Round

Array = jax.Array
PerModel = float | Sequence[float] | np.ndarray


def number(value: float, field: str) -> np.float32:
    """A parameter of the tensor as float32. Raises InputError where it is no finite number."""
    return per_model(value, 1, field)[0]


def one_or_each(value: PerModel, count: int, field: str, dtype: type[np.floating]) -> np.ndarray:
    """A number [], or one for each of `count` models. Raises InputError for another number of values."""
    if np.asarray(value).dtype.kind in "USO":
        raise InputError(f"{quoted(value)} is no number", field=field, cure="Give one number, or one for each model")
    values = np.asarray(value, dtype)
    if values.ndim and values.shape != (count,):
        problem = f"{values.size} values for {count} models"
        raise InputError(problem, field=field, cure="Give one number, or one for each model")
    return values


def per_model(value: PerModel, count: int, field: str) -> np.ndarray:
    """A per-model parameter as float32[count]; one number holds for all models.

    Raises InputError for another number of values and for values that are not finite.
    """
    values = one_or_each(value, count, field, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{values.tolist()} is not finite", field=field, cure="Give a finite number")
    return np.broadcast_to(values, (count,))


def count_models(models: Array, method: str, least: int = 1, most: int | None = None) -> int:
    """K of a stack [K,...]. Raises InputError where the method does not merge that many."""
    if not hasattr(models, "shape") or not models.shape:
        problem = f"is of type {type(models).__name__}, not one array [K,...] of K models"
        raise InputError(problem, field="models", cure="Give jnp.stack([first, second])")
    count = len(models)
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        problem = f"{method} merges {wanted} models beside the base, not {count}"
        raise InputError(problem, field="models", cure="List another number of models, or take another method")
    return count


def need_base(models: Array, base: Array | None, method: str) -> Array:
    """The base. Raises InputError where there is none, or one of another shape."""
    if base is None:
        raise InputError(f"{method} needs a base model", field="base_model", cure="Name the model the others came from")
    check_shapes(models, base)
    return base


def check_shapes(models: Array, base: Array | None) -> None:
    """Raises InputError where there is a base and its shape is not that of the models."""
    if base is not None and base.shape != models.shape[1:]:
        problem = f"models of shape {models.shape[1:]} do not fit a base of shape {base.shape}"
        raise InputError(problem, field="base_model", cure="Merge models of one architecture and vocabulary")


def normalized(weight: np.ndarray, field: str = "weight") -> np.ndarray:
    """weight / sum of weight, float32[K]. Raises InputError where the sum is 0."""
    if weight.sum() == 0:
        cure = "Change a weight, or do not normalise"
        raise InputError(f"weights {weight.tolist()} sum to 0 and cannot be normalised", field=field, cure=cure)
    return weight / weight.sum()


def total(stack: Array | Sequence[Array]) -> Array:
    """Sum over models, [K,...] or K arrays [...] -> [...], added in model order."""
    return reduce(add, stack)


def weighted_sum(weight: Array, stack: Array, rounded: Round) -> Array:
    """sum_j weight[j] stack[j]: each product rounded, the sum accumulated in float32 and rounded once."""
    return rounded(reduce(add, [rounded(w * x) for w, x in zip(weight, stack, strict=True)]))


def row_sums(tensors: Sequence[Array]) -> tuple[Array, ...]:
    """[...] each: sums over the last axis of tensors [...,D] of one shape and dtype, in one reading."""
    zeros, axis = (jnp.zeros((), tensors[0].dtype),) * len(tensors), tensors[0].ndim - 1
    return tuple(jax.lax.reduce(tuple(tensors), zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), (axis,)))


def sums_of(tensors: Sequence[Array]) -> tuple[Array, ...]:
    """Scalars: the sums of tensors [...] of one shape and dtype, in one reading of what they are made of.

    Rows first, with a barrier that keeps the compiler from joining both sums into one loop, which a CPU would run on
    one core.
    """
    return tuple(row.sum(dtype=row.dtype) for row in jax.lax.optimization_barrier(row_sums(tensors)))


def divide(x: Array, divisor: Array) -> Array:
    """x / divisor (a scalar, not 0) rounded as a division: XLA multiplies with the reciprocal of a lone scalar."""
    return x / jnp.where(x == 0, 1.0, divisor)


def dots(stack: Array, axis: int | None = None) -> Array:
    """Inner products of all pairs of models over one axis, or over whole tensors: [K,...] -> float32[K,K,...]."""
    count = len(stack)
    pairs = {(i, j): (stack[i] * stack[j]).sum(axis) for i in range(count) for j in range(i + 1)}
    return jnp.stack([jnp.stack([pairs[max(i, j), min(i, j)] for j in range(count)]) for i in range(count)])


def norms(stack: Array) -> Array:
    """Euclidean norms of whole tensors: [K,...] -> float32[K]."""
    return jnp.stack([jnp.sqrt((x * x).sum()) for x in stack])
