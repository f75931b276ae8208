"""Parameter trees in memory merged by the same functions as folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.methods.method import Method, Parameter
from fusion_jax.merge.methods.sparsify import tensor_keys
from fusion_jax.merge.methods.variation_ratio import WIDE, check_layers, statistic, varm_weights
from fusion_jax.merge.recipes.parameters import read_value
from fusion_jax.merge.recipes.places import Place, nearest, shown

Array = jax.Array
Tree = Any
FLOATS = ("float32", "bfloat16", "float16")


def merge_trees(
    method: str,
    models: Sequence[Tree],
    base: Tree | None = None,
    *,
    seed: int = 0,
    math_dtype: MathDtype = "float32",
    **parameters: Any,
) -> Tree:
    """Trees of one structure merged leaf by leaf; each leaf keeps the dtype it has in the base or the first model.

    Args:
      method: of `METHODS`. models: K trees of float32, bfloat16 or float16 arrays, or Python floats (float32). base:
        where the method takes one.
      seed: for methods that draw; a leaf's key depends on its path in the tree.
      parameters: of the method, for all leaves, in the ranges that recipes have; per-model ones a number or K of them.
        VaRM's layers and modules are told by a leaf's path, as `layers.3.mlp` is in a checkpoint.

    Raises:
      InputError: an unknown method or parameter, a value out of range, a wrong number of models, a base that is missing
        or too many, trees of different structure, leaves of different shape or of another dtype, leaves that hold NaN
        or infinity, no layers where VaRM weighs them; names the parameter or the leaf.
    """
    chosen, given = _checked(method, models, base, parameters)
    first = models[0] if base is None else base
    leaves = {name: [leaf] for name, leaf in _named(first)}
    for model in models:
        if str(jax.tree.structure(model)) != str(jax.tree.structure(first)):
            raise InputError("the trees have different structures", field="models", cure="Merge trees of one model")
        for name, leaf in _named(model):
            leaves[name].append(leaf)
    weights = _shared_weights(leaves, given) if method == "varm" else {}

    def merged(name: str) -> Array:
        like, stack = _stack(name, leaves[name])
        own = given | ({"weight": weights[name]} if name in weights else {})
        if chosen.random:
            own["keys"] = tensor_keys(seed, name, range(len(stack)))
        found = chosen.function(stack, None if base is None else like, math_dtype=math_dtype, **own)
        return found.tensor.astype(like.dtype)

    return jax.tree.unflatten(jax.tree.structure(first), list(map(merged, leaves)))


def _named(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves by their paths."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in found]


def _stack(name: str, leaves: Sequence[Any]) -> tuple[Array, Array]:
    """The first leaf, and the stack [K,...] of the others."""
    arrays = [np.float32(leaf) if type(leaf) is float else leaf for leaf in leaves]
    told = [f"{a.dtype.name}{list(a.shape)}" if hasattr(a, "dtype") else shown(a) for a in arrays]
    for leaf, found in zip(arrays, told, strict=True):
        if not hasattr(leaf, "dtype") or leaf.shape != arrays[0].shape or leaf.dtype.name not in FLOATS:
            cure = f"Give leaves of one shape and {', '.join(FLOATS)}"
            raise InputError(f"is {found} beside {told[0]}", field=name, cure=cure)
    like, *rest = map(jnp.asarray, arrays)
    for leaf in (like, *rest):
        if not jnp.isfinite(leaf).all():
            raise InputError("holds NaN or infinity", field=name, cure="Restore or leave out this model")
    return like, jnp.stack(rest)


def _shared_weights(leaves: Mapping[str, Sequence[Any]], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """VaRM's weights of each leaf where they are shared by more than a leaf, else none; base and models by path."""
    granularity = given.get("granularity")
    if granularity not in WIDE:
        return {}
    check_layers(granularity, leaves, called="leaf's path")
    merge_type = given.get("merge_type", "square")
    found = {}
    for name, some in leaves.items():
        base, stack = _stack(name, some)
        found[name] = statistic(stack, base, merge_type)
    return varm_weights(found, granularity, **{k: given[k] for k in ("varm_mode", "softmax", "temp") if k in given})


def _checked(
    method: str, models: Sequence[Tree], base: Tree | None, parameters: Mapping[str, Any]
) -> tuple[Method, dict[str, Any]]:
    """The method, and its parameters as a recipe would give them."""
    if not isinstance(models, list | tuple) or hasattr(models, "_fields"):
        problem = f"is of type {type(models).__name__}, not a list of trees"
        raise InputError(problem, field="models", cure="Give a list, also for one tree: [model.params]")
    if any(hasattr(model, "params") for model in (*models, base)):
        raise InputError("a model is no tree of arrays", field="models", cure="Give the models' params")
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
    return chosen, {name: _value(value, known[name], Place(field=name)) for name, value in parameters.items()}


def _value(raw: Any, parameter: Parameter, place: Place) -> Any:
    """A parameter's value, or one for each model; arrays of numbers count as lists."""
    raw = raw.tolist() if isinstance(raw, np.ndarray | np.generic | jax.Array) else raw
    if parameter.per_model and isinstance(raw, list | tuple):
        return [read_value(one, parameter, place / i) for i, one in enumerate(raw)]
    return read_value(raw, parameter, place)
