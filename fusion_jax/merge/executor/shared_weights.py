"""The first pass of VaRM where tensors share weights (merge specification, section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_jax.merge.executor.prepare import Prepared
from fusion_jax.merge.executor.reading import check_inputs, load_tensor
from fusion_jax.merge.methods.variation_ratio import (
    WIDE,
    Granularity,
    MergeType,
    Statistic,
    statistic,
    varm_weights,
)
from fusion_jax.merge.recipes.plan import TensorPlan


def read_twice(prepared: Prepared) -> tuple[TensorPlan, ...]:
    """The tensors that the first pass reads: all, where one's weights need the statistics of others."""
    full = tuple(t for t in prepared.plan.tensors if len(t.inputs) == len(prepared.recipe.models))
    return full if any(map(_is_wide, full)) else ()


def _is_wide(tensor: TensorPlan) -> bool:
    given = tensor.parameters
    return given.get("granularity") in WIDE and given["varm_mode"] == "intended"


def weighed(prepared: Prepared) -> Prepared:
    """The same merge with VaRM's weights of a module, layer or model as numbers; anything else as it is.

    Reads every tensor once. A tensor's weights follow its own parameters: what a layer comes to counts all of its
    tensors, also those of another granularity. Tensors that some models lack keep weights of their own.

    Raises:
      InputError: a weight that is not finite; names the file and the tensor.
    """
    counted = read_twice(prepared)
    if not counted:
        return prepared
    merge_types = {t.parameters["merge_type"] for t in counted if _is_wide(t)}
    found = _statistics(prepared, counted, merge_types)

    @cache
    def weights(merge_type: MergeType, granularity: Granularity, softmax: bool, temp: float) -> dict[str, np.ndarray]:
        return varm_weights(found[merge_type], granularity, softmax=softmax, temp=temp)

    def with_weight(tensor: TensorPlan) -> TensorPlan:
        more: dict[str, Any] = {}
        if _is_wide(tensor) and tensor not in counted:
            more = {"granularity": "avg_param"}
        elif _is_wide(tensor):
            own = {key: tensor.parameters[key] for key in ("merge_type", "granularity", "softmax", "temp")}
            more = {"weight": weights(**own)[tensor.name].tolist()}
        return replace(tensor, parameters={**tensor.parameters, **more})

    return replace(prepared, plan=replace(prepared.plan, tensors=tuple(map(with_weight, prepared.plan.tensors))))


def _statistics(
    prepared: Prepared, tensors: Iterable[TensorPlan], merge_types: set[MergeType]
) -> dict[MergeType, dict[str, Statistic]]:
    """Merge type -> tensor name -> statistic."""
    found: dict[MergeType, dict[str, Statistic]] = {merge_type: {} for merge_type in merge_types}
    for tensor in tensors:
        loaded = load_tensor(prepared, tensor)
        models, base = jnp.asarray(loaded.models), jnp.asarray(loaded.base)
        for merge_type, some in found.items():
            some[tensor.name] = statistic(models, base, merge_type)
            if not np.isfinite(some[tensor.name].mean).all():
                check_inputs(prepared, tensor)
    return found
