"""Parameter trees in memory merged by the same functions as folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.merge.arithmetic import MathDtype, tensor_key
from fusion_jax.merge.methods import METHODS

Tree = Any


def merge_trees(
    method: str, models: Sequence[Tree], base: Tree | None = None, *, seed: int = 0,
    math_dtype: MathDtype = "float32", **parameters: Any,
) -> Tree:  # fmt: skip
    """Trees of one structure merged leaf by leaf; each leaf keeps the dtype it has in the base or the first model.

    Args:
      method: of `METHODS`. models: K trees of float arrays. base: where the method takes one.
      seed: for methods that draw; a leaf's key depends on its path in the tree.
      parameters: of the method, for all leaves; per-model ones a number or K of them.

    Raises:
      KeyError: an unknown method. ValueError: trees of different structures.
    """
    chosen = METHODS[method]
    first = models[0] if base is None else base

    def merged(path: Any, like: jax.Array, *leaves: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        keys = {}
        if chosen.random:
            keys["keys"] = jnp.stack([tensor_key(seed, name, j) for j in range(len(leaves))])
        out = chosen.function(
            jnp.stack(leaves), None if base is None else like, math_dtype=math_dtype, **keys, **parameters
        )
        return out.tensor.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(merged, first, *models)
