"""Losses: pure functions of log-probabilities, with their metrics. Sums and weights travel together."""

from fusion_jax.losses import alirector, fusion, mktod
from fusion_jax.losses.fuserl import leave_one_out, over_sources, weighted_sft
from fusion_jax.losses.fusion import Target, fused_targets, sparse_kl
from fusion_jax.losses.infifpo import fused_reference
from fusion_jax.losses.preference import (
    Pair,
    Quad,
    bradley_terry,
    dpo,
    hinge,
    ipo,
    orpo,
    simpo,
    two_positives,
    wrpo,
    wrpo_ipo,
    wrpo_simpo,
)
from fusion_jax.losses.reductions import Count, Mean, combined, divide, weighted
from fusion_jax.losses.schedules import alpha_at, learning_rate
from fusion_jax.losses.sft import by_group, sft

__all__ = [
    "Count", "Mean", "Pair", "Quad", "Target", "alirector", "alpha_at", "bradley_terry", "by_group", "combined",
    "divide", "dpo", "fused_reference", "fused_targets", "fusion", "hinge", "ipo", "learning_rate", "leave_one_out",
    "mktod", "orpo", "over_sources", "sft", "simpo", "sparse_kl", "two_positives", "weighted", "weighted_sft", "wrpo",
    "wrpo_ipo", "wrpo_simpo",
]  # fmt: skip
