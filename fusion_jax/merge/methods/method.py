"""What a merge method is: a pure function on stacked tensors, and what a recipe may say to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

Array = jax.Array


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
      key array [K], see `tensor_keys`), **parameters, each per-model one a sequence of K numbers) -> Merged.
    base: whether the recipe must, may or must not name a base.
    least_models, most_models: beside the base; most None is any number.
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


def by_name(*methods: Method) -> dict[str, Method]:
    """The methods under their names."""
    return {method.name: method for method in methods}
