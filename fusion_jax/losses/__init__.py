"""Losses: pure functions of log-probabilities, with their metrics. Sums and weights travel together."""

from fusion_jax.losses import fusion
from fusion_jax.losses.fusion import Target, fused_targets, sparse_kl
from fusion_jax.losses.preference import (
    Pair,
    Quad,
    dpo,
    hinge,
    ipo,
    simpo,
    two_positives,
    wrpo,
    wrpo_ipo,
    wrpo_simpo,
)
from fusion_jax.losses.reductions import Count, Mean, divide, weighted
from fusion_jax.losses.schedules import alpha_at, learning_rate
from fusion_jax.losses.sft import sft

__all__ = [
    "Count", "Mean", "Pair", "Quad", "Target", "alpha_at", "divide", "dpo", "fused_targets", "fusion", "hinge", "ipo",
    "learning_rate", "sft", "simpo", "sparse_kl", "two_positives", "weighted", "wrpo", "wrpo_ipo", "wrpo_simpo",
]  # fmt: skip
