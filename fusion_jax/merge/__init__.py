"""Merge arithmetic: pure functions on stacked tensors, recipes in mergekit's YAML, a streaming executor.

Rooms, of which each knows the ones before it: `methods` (functions of stacked tensors), `recipes` (what a recipe says,
and the plan of the output), `vocabulary` (tokenizers and embeddings), `executor` (folders in, a folder out).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_jax.merge import methods
    from fusion_jax.merge.executor.merging import MergeSummary, merge
    from fusion_jax.merge.executor.prepare import prepare
    from fusion_jax.merge.methods import METHODS
    from fusion_jax.merge.trees import merge_trees

__all__ = ["METHODS", "MergeSummary", "merge", "merge_trees", "methods", "prepare"]

# Imported when asked for: who takes the methods alone needs no tokenizers and no plots.
_PLACES = {
    "METHODS": "methods",
    "MergeSummary": "executor.merging",
    "merge": "executor.merging",
    "merge_trees": "trees",
    "prepare": "executor.prepare",
}


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module("fusion_jax.merge.methods")
    if name in _PLACES:
        return getattr(importlib.import_module(f"fusion_jax.merge.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'fusion_jax.merge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
