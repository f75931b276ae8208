"""Merge arithmetic: pure functions on stacked tensors, recipes in mergekit's YAML, a streaming executor."""

from fusion_jax.merge import methods
from fusion_jax.merge.executor import MergeSummary, merge
from fusion_jax.merge.inputs import prepare
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.trees import merge_trees

__all__ = ["METHODS", "MergeSummary", "merge", "merge_trees", "methods", "prepare"]
