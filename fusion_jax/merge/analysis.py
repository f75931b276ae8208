"""VaRM's first pass where weights are shared by more than a tensor (merge specification, section 3)."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp

from fusion_jax.merge.inputs import Prepared
from fusion_jax.merge.plan import TensorPlan
from fusion_jax.merge.tensors import load_tensor
from fusion_jax.merge.varm import WIDE, Statistic, statistic, varm_weights


def weighed(prepared: Prepared) -> Prepared:
    """The same merge with VaRM's weights of a module, layer or model as numbers; anything else as it is.

    Reads every tensor once. Tensors that some models lack keep weights of their own.
    """
    plan, models = prepared.plan, len(prepared.recipe.models)
    wide = [t for t in plan.tensors if t.parameters.get("granularity") in WIDE and len(t.inputs) == models]
    if prepared.recipe.method != "varm" or not wide:
        return prepared
    statistics: dict[str, Statistic] = {}
    for tensor in wide:
        loaded = load_tensor(prepared, tensor)
        statistics[tensor.name] = statistic(
            jnp.asarray(loaded.models), jnp.asarray(loaded.base), tensor.parameters["merge_type"]
        )
    settings = {k: wide[0].parameters[k] for k in ("granularity", "varm_mode", "softmax", "temp")}
    weights = varm_weights(statistics, **settings)

    def with_weight(tensor: TensorPlan) -> TensorPlan:
        if tensor.name in weights:
            more = {"weight": weights[tensor.name].tolist()}
        else:
            more = {"granularity": "avg_param"} if tensor.parameters.get("granularity") in WIDE else {}
        return replace(tensor, parameters={**tensor.parameters, **more})

    return replace(prepared, plan=replace(plan, tensors=tuple(map(with_weight, plan.tensors))))
