"""Intervals of any statistic by drawing questions anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fusion_jax.errors import InputError

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value with its 95 % interval; nan where a single question leaves none."""

    value: float
    low: float
    high: float

    def told(self, scale: float = 1.0, digits: int = 3) -> str:
        """As tables show it.

        >>> Estimate(0.5, 0.25, 0.75).told(100, 1)
        '50.0 (25.0 to 75.0)'
        """
        value, low, high = (f"{round(scale * one, digits) + 0.0:.{digits}f}" for one in self)
        return value if np.isnan(self.low) else f"{value} ({low} to {high})"


def estimates(
    statistic: Callable[[np.ndarray], np.ndarray], questions: int, *, seed: int, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Several statistics of the same questions with their percentile intervals (Efron 1979).

    Args:
      statistic: int[n], numbers of questions, some of them several times -> float[S]; what a draw does not define is
        nan and does not count.
      questions: how many there are.

    Raises:
      InputError: there is none.
    """
    if questions < 1:
        raise InputError("there is none", field="questions", cure="Give judged questions")
    values = np.asarray(statistic(np.arange(questions)), float)
    rng = np.random.default_rng(seed)
    if questions < 2:
        return [Estimate(float(value), np.nan, np.nan) for value in values]
    drawn = np.stack([statistic(rng.integers(0, questions, questions)) for _ in range(resamples)])
    kept = [column[~np.isnan(column)] for column in drawn.T]
    bounds = [np.quantile(column, [0.025, 0.975]) if len(column) else (np.nan, np.nan) for column in kept]
    return [Estimate(float(value), float(low), float(high)) for value, (low, high) in zip(values, bounds, strict=True)]


def mean_estimate(values: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The mean of a value a question, float[n]; nan stands for a question without one.

    Raises:
      InputError: no question has a value.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    (found,) = estimates(lambda drawn: known[drawn].mean(keepdims=True), len(known), seed=seed, resamples=resamples)
    return found
