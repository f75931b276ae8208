"""What all merge methods share: how numbers are rounded, what a method is, which random key a tensor has.

Arrays are float32 and hold values of the math dtype: rounding after each operation gives bit for bit what arithmetic
in that dtype gives, and no compiler may leave it out (merge specification, sections 1.3 and 6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
MathDtype = Literal["float32", "bfloat16", "float16"]
Round = Callable[[Array], Array]


class Merged(NamedTuple):
    """A merged tensor, and what a report tells of it.

    tensor: float32[...], values of the math dtype.
    report: scalars or float32[K], by name: "coefficients", "kept" (share of the positions a sparsifier left), "erased"
      (share that lost the sign vote) ...
    """

    tensor: Array
    report: dict[str, Array]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a merge method.

    per_model: one value for each model, or one for the tensor. default: None where the recipe must give it.
    least, most: the closed range of numbers; choices: of strings.
    """

    name: str
    default: Any = None
    per_model: bool = False
    least: float = -float("inf")
    most: float = float("inf")
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A merge method: a pure function and what a recipe may say to it.

    function: (models float[K,...] of any float dtype, base float[...] or None, *, math_dtype, keys (where `random`: a
      key array [K], see `tensor_key`), **parameters, each per-model one a sequence of K numbers) -> Merged.
    base: whether the recipe must, may or must not name a base. models: least and most models beside the base.
    """

    name: str
    function: Callable[..., Merged]
    parameters: tuple[Parameter, ...] = ()
    base: Literal["required", "optional", "none"] = "required"
    least_models: int = 1
    most_models: int | None = None
    random: bool = False

    def argument(self, parameter: str) -> str:
        """The Python name of a parameter: Python's own words take an underscore."""
        return f"{parameter}_" if parameter == "lambda" else parameter


def rounder(math_dtype: MathDtype) -> Round:
    """x -> x rounded to the math dtype, still float32."""
    if math_dtype == "float32":
        return lambda x: x
    return _rounded_to_float16 if math_dtype == "float16" else lambda x: jax.lax.reduce_precision(x, 8, 7)


def _rounded_to_float16(x: Array) -> Array:
    """reduce_precision makes subnormals 0: here they are what float16 has, multiples of 2**-24."""
    subnormal = jnp.round(x * 2.0**24) * 2.0**-24
    return jnp.where(jnp.abs(x) < 2.0**-14, subnormal, jax.lax.reduce_precision(x, 5, 10))


def as_math(x: Array, rounded: Round) -> Array:
    """Stored weights as float32 values of the math dtype."""
    return rounded(x.astype(jnp.float32))


def task_vectors(models: Array, base: Array, rounded: Round) -> Array:
    """float32[K,...]: models minus base, both already of the math dtype."""
    return rounded(models - base)


def tensor_key(seed: int, name: str, model: int) -> Array:
    """The random key of one model's tensor: of nothing else, so that order and devices do not matter."""
    stable = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), jnp.uint32(stable)), model)


def tensor_keys(seed: int, name: str, models: Iterable[int]) -> Array:
    """Key array [K]: `tensor_key` of each model, what a random method takes."""
    return jnp.stack([tensor_key(seed, name, model) for model in models])
