"""Parameter trees in memory merged by the same functions as folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import MathDtype, Method, tensor_keys
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.parameters import nearest

Tree = Any
FLOATS = ("float32", "bfloat16", "float16")


def merge_trees(
    method: str, models: Sequence[Tree], base: Tree | None = None, *, seed: int = 0,
    math_dtype: MathDtype = "float32", **parameters: Any,
) -> Tree:  # fmt: skip
    """Trees of one structure merged leaf by leaf; each leaf keeps the dtype it has in the base or the first model.

    Args:
      method: of `METHODS`. models: K trees of float32, bfloat16 or float16 arrays. base: where the method takes one.
      seed: for methods that draw; a leaf's key depends on its path in the tree.
      parameters: of the method, for all leaves; per-model ones a number or K of them.

    Raises:
      InputError: an unknown method or parameter, a wrong number of models, a base that is missing or too many, trees
        of different structure, leaves of different shape or of another dtype; names the leaf.
    """
    chosen = _checked(method, models, base, parameters)
    first = models[0] if base is None else base
    for model in models:
        if str(jax.tree.structure(model)) != str(jax.tree.structure(first)):
            raise InputError("the trees have different structures", field="models", cure="Merge trees of one model")

    def merged(path: Any, like: jax.Array, *leaves: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for leaf in (like, *leaves):
            if leaf.shape != like.shape or leaf.dtype.name not in FLOATS:
                found = f"is {leaf.dtype.name}{list(leaf.shape)} beside {like.dtype.name}{list(like.shape)}"
                raise InputError(found, field=name, cure=f"Give leaves of one shape and {', '.join(FLOATS)}")
        keys = {}
        if chosen.random:
            keys["keys"] = tensor_keys(seed, name, range(len(leaves)))
        stack, origin = jnp.stack(leaves), None if base is None else jnp.asarray(like)
        return chosen.function(stack, origin, math_dtype=math_dtype, **keys, **parameters).tensor.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(merged, first, *models)


def _checked(method: str, models: Sequence[Tree], base: Tree | None, parameters: dict[str, Any]) -> Method:
    if method not in METHODS:
        raise InputError(f"no merge method is called '{method}'", field="method", cure=nearest(method, METHODS))
    chosen = METHODS[method]
    known = {chosen.argument(p.name): p for p in chosen.parameters}
    for name in parameters:
        if name not in known:
            raise InputError(f"{method} has no parameter '{name}'", field=name, cure=nearest(name, known))
    for name, parameter in known.items():
        if parameter.default is None and name not in parameters:
            raise InputError(f"{method} needs it", field=name, cure=f"Give {name}=...")
    if (base is None and chosen.base == "required") or (base is not None and chosen.base == "none"):
        problem = "needs a base" if base is None else "has no base"
        raise InputError(f"{method} {problem}", field="base", cure="Give the tree the models were tuned from, or None")
    most = chosen.most_models or len(models)
    if not chosen.least_models <= len(models) <= most:
        cure = f"Give {chosen.least_models}" + ("" if most == chosen.least_models else " or more")
        raise InputError(f"{method} does not merge {len(models)} models", field="models", cure=cure)
    return chosen
