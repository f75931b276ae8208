"""Evaluation: task accuracy with intervals, comparisons on the same prompts."""
