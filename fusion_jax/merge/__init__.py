"""Merge arithmetic: pure functions on stacked tensors, recipes, a streaming executor."""
