"""All merge methods: each a pure function on stacked tensors, and by name what a recipe may say to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fusion_jax.merge.methods import averaging, select_calculate_erase, spherical, task_vectors, variation_ratio
from fusion_jax.merge.methods.averaging import (
    arcee_fusion,
    linear,
    model_stock,
    nearswap,
    passthrough,
    ram,
    ramplus_tl,
)
from fusion_jax.merge.methods.method import Method
from fusion_jax.merge.methods.select_calculate_erase import sce
from fusion_jax.merge.methods.spherical import karcher, multislerp, nuslerp, slerp
from fusion_jax.merge.methods.task_vectors import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    task_arithmetic,
    ties,
)
from fusion_jax.merge.methods.variation_ratio import varm, varm_linear
from fusion_jax.options import OneOf

FAMILIES = (averaging, spherical, task_vectors, select_calculate_erase, variation_ratio)
METHODS: Mapping[str, Method] = {name: method for family in FAMILIES for name, method in family.METHODS.items()}
MethodName = Annotated[str, OneOf(tuple(METHODS))]

__all__ = [
    "METHODS", "MethodName", "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della",
    "della_linear", "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram",
    "ramplus_tl", "sce", "slerp", "task_arithmetic", "ties", "varm", "varm_linear",
]  # fmt: skip
