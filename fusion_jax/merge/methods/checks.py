"""The arguments of the methods' public functions: checked, and numbers brought to the form that kernels take."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from fusion_jax.errors import InputError, quoted

Array = jax.Array
PerModel = float | Sequence[float] | np.ndarray


def number(value: float, field: str) -> np.float32:
    """A parameter of the tensor as float32. Raises InputError where it is no finite number."""
    return per_model(value, 1, field)[0]


def per_model(value: PerModel, count: int, field: str) -> np.ndarray:
    """A per-model parameter as float32[count]; one number holds for all models.

    Raises InputError for another number of values and for values that are not finite.
    """
    values = _one_or_each(value, count, field, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{values.tolist()} is not finite", field=field, cure="Give a finite number")
    return np.broadcast_to(values, (count,))


def doubles(value: PerModel, count: int, field: str, least: float, most: float) -> tuple[float, ...]:
    """A parameter of `count` models in double precision, which counts are made of; one number holds for all models.

    Raises InputError for another number of values and for values outside [least, most].
    """
    values = _one_or_each(value, count, field, np.float64)
    if not ((least <= values) & (values <= most)).all():
        cure = f"Give numbers from {least:g} to {most:g}"
        raise InputError(f"{values.tolist()} is out of range", field=field, cure=cure)
    return tuple(np.broadcast_to(values, count).tolist())


def _one_or_each(value: PerModel, count: int, field: str, dtype: type[np.floating]) -> np.ndarray:
    """A number [], or one for each of `count` models. Raises InputError for another number of values."""
    if np.asarray(value).dtype.kind in "USO":
        raise InputError(f"{quoted(value)} is no number", field=field, cure="Give one number, or one for each model")
    values = np.asarray(value, dtype)
    if values.ndim and values.shape != (count,):
        problem = f"{values.size} values for {count} models"
        raise InputError(problem, field=field, cure="Give one number, or one for each model")
    return values


def normalized(weight: np.ndarray, field: str = "weight") -> np.ndarray:
    """weight / sum of weight, float32[K]. Raises InputError where the sum is 0."""
    if weight.sum() == 0:
        cure = "Change a weight, or do not normalise"
        raise InputError(f"weights {weight.tolist()} sum to 0 and cannot be normalised", field=field, cure=cure)
    return weight / weight.sum()


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
