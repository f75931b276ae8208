"""Accuracy of greedy answers by skill, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusion_jax.data.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.rewards.verifiers import answer as states_answer
from fusion_jax.sampling.generate import generate

Z95 = 1.959963984540054
# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % Student interval (0 for a single value)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), 0.0
    t = T95[count - 2] if count - 2 < len(T95) else Z95
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / math.sqrt(count))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of first - second on the same prompts and half the width of its 95 % interval (normal approximation)."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    if len(difference) < 2:
        return float(difference.mean()), 0.0
    return float(difference.mean()), float(Z95 * difference.std(ddof=1) / math.sqrt(len(difference)))


def by_skill(name: str, graded: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows {"model", "skill", "accuracy", "low", "high", "count"}, one a skill and one for "all"."""
    skills = list(dict.fromkeys(str(r.get("skill", "all")) for r in graded))
    groups = {skill: [r["right"] for r in graded if str(r.get("skill", "all")) == skill] for skill in skills}
    groups["all"] = [r["right"] for r in graded]
    rows = []
    for skill, values in groups.items():
        low, high = wilson(sum(values), len(values))
        share = sum(values) / len(values)
        rows.append({"model": name, "skill": skill, "accuracy": share, "low": low, "high": high, "count": len(values)})
    return rows


def evaluate(
    name: str,
    model: Model,
    prompts: Sequence[Record],
    *,
    max_new_tokens: int,
    verifier: Callable[[str, str], float] = states_answer,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[dict[str, Any]], list[Record]]:
    """Greedy answers to prompts with `answer`: (rows of `by_skill`, every answer with `right` 0 or 1)."""
    responses = generate(
        model, [p["prompt"] for p in prompts], max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    graded = [
        {**p, "model": name, "response": r[0], "right": int(verifier(r[0], p["answer"]) == 1.0)}
        for p, r in zip(prompts, responses)
    ]
    return by_skill(name, graded), graded
