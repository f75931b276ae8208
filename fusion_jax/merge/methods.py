"""All merge methods by name: each a pure function on stacked tensors, and what a recipe may say to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fusion_jax.merge.arithmetic import Method
from fusion_jax.merge.averaging import METHODS as AVERAGING
from fusion_jax.merge.sce import METHODS as SCE
from fusion_jax.merge.spherical import METHODS as SPHERICAL
from fusion_jax.merge.task_arithmetic import METHODS as TASK_ARITHMETIC
from fusion_jax.merge.varm import METHODS as VARM
from fusion_jax.options import OneOf

METHODS: Mapping[str, Method] = {
    method.name: method for family in (AVERAGING, SPHERICAL, TASK_ARITHMETIC, SCE, VARM) for method in family
}
MethodName = Annotated[str, OneOf(tuple(METHODS))]


def __getattr__(name: str) -> object:
    """`methods.ties` is the function of the method of that name."""
    if name in METHODS:
        return METHODS[name].function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
