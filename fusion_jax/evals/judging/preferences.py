"""Preferences from a judge's token probabilities, and the win rates that they give (AlpacaEval 2, arXiv 2404.04475)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fusion_jax.asking.contract import Candidate
from fusion_jax.intervals import RESAMPLES, Estimate, mean_estimate


def weighted_preference(candidates: Iterable[Candidate], first: str, second: str) -> float | None:
    """P(second) / (P(first) + P(second)), the share of the second answer among the judge's first tokens.

    Tokens count by their text without white space around it, several of one text together. None where neither label
    is among the candidates.

    Args:
      first, second: the labels of the two answers.

    >>> weighted_preference([Candidate("m", math.log(0.2)), Candidate("M", math.log(0.6))], "m", "M")
    0.75
    """
    mass = {first: 0.0, second: 0.0}
    for token, logprob in candidates:
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = sum(mass.values())
    return round(mass[second] / total, 12) if total else None


def win_rate(preferences: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The mean preference over the questions, float[n] in [0, 1], a tie being 0.5; nan: not judged."""
    return mean_estimate(preferences, seed=seed, resamples=resamples)


def discrete_win_rate(preferences: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The share of questions that are won, a tie counting half."""
    values = np.where(np.isnan(preferences), np.nan, (np.sign(preferences - 0.5) + 1) / 2)
    return mean_estimate(values, seed=seed, resamples=resamples)
