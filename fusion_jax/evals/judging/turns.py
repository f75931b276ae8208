"""Means of a judge's scores of two turns (MT-Bench, arXiv 2306.05685)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion_jax.intervals import RESAMPLES, Estimate, estimates

LEAST, MOST = 1.0, 10.0


def turn_means(scores: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> list[Estimate]:
    """Mean score of each turn and, last, of all scores, with 95 % intervals of questions drawn anew.

    Args:
      scores: float[n,T], a question a row; nan: no score.
    """

    def means(drawn: np.ndarray) -> np.ndarray:
        own = scores[drawn]
        known = ~np.isnan(own)
        sums, counts = np.where(known, own, 0).sum(0), known.sum(0)
        both = np.append(sums, sums.sum()), np.append(counts, counts.sum())
        return np.divide(both[0], both[1], out=np.full(len(both[0]), np.nan), where=both[1] > 0)

    return estimates(means, len(scores), seed=seed, resamples=resamples)


def by_category(
    scores: np.ndarray, categories: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> dict[str, list[Estimate]]:
    """`turn_means` of each category's questions, and of all."""
    of = np.asarray(categories)
    names = list(dict.fromkeys(categories))
    found = {name: turn_means(scores[of == name], seed=seed, resamples=resamples) for name in names}
    return found | {"all": turn_means(scores, seed=seed, resamples=resamples)}
