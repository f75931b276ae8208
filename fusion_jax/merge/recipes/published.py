"""FuseChat's recipes as published: fine-tunes of one pivot, merged by any method (merge specification, section 7)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.methods.arithmetic import MathDtype

Folder = str | os.PathLike[str]
VALUES = {"density": 0.6, "select_topk": 0.1, "t": 0.5}


def published_recipe(
    method: str,
    models: Sequence[Folder],
    pivot: Folder,
    values: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    math_dtype: MathDtype = "float32",
) -> dict[str, Any]:
    """The recipe of a method of `METHODS`, as `merge` takes it.

    The pivot is the base; not of karcher, to which it would be one more point. A method of one model beside the base
    merges the second model into the first, slerp half way; other methods take as many of the models as they can.

    Args:
      models: paths of two or more fine-tunes of `pivot`.
      values: parameters of the recipe instead of the published ones; those that the method does not have are left out.
        Without a weight each model has 1 / K, for task_arithmetic 1.5 / K (published: 0.3 for each of five).
    """
    chosen = METHODS[method]
    names, base = [os.fspath(m) for m in models], os.fspath(pivot)
    if chosen.base == "required" and chosen.most_models == 1:
        base, names = names[0], names[1:]
    names = names[: chosen.most_models]
    weight = (1.5 if method == "task_arithmetic" else 1.0) / len(names)
    known = {p.name for p in chosen.parameters}
    recipe = {
        "merge_method": method,
        "models": [{"model": name} for name in names],
        "seed": seed,
        "math_dtype": math_dtype,
        "parameters": {k: v for k, v in {"weight": weight, **VALUES, **(values or {})}.items() if k in known},
    }
    return recipe if chosen.base == "none" or method == "karcher" else recipe | {"base_model": base}
