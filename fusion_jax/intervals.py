"""95 % intervals of means, shares and paired differences, and of any statistic by drawing anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from fusion_jax.errors import InputError

Z95 = float(special.ndtri(0.975))
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


Statistic = Callable[[np.ndarray], np.ndarray]
"""int[n], numbers of questions, some of them several times -> float[S], nan where a draw does not define one."""


def resampled(statistic: Statistic, questions: int, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """float[R,S]: statistics of the questions drawn anew with replacement (Efron 1979); nan of a single question, which
    leaves nothing to draw.

    Raises:
      InputError: there is no question.
    """
    if questions < 1:
        raise InputError("there is none", field="questions", cure="Give judged questions")
    if questions < 2:
        return np.full((resamples, len(statistic(np.arange(questions)))), np.nan)
    rng = np.random.default_rng(seed)
    return np.stack([statistic(rng.integers(0, questions, questions)) for _ in range(resamples)])


def percentiles(drawn: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of float[R]; nan does not count."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def estimates(statistic: Statistic, questions: int, *, seed: int, resamples: int = RESAMPLES) -> list[Estimate]:
    """Several statistics of the same questions with their intervals. As `resampled`."""
    drawn = resampled(statistic, questions, seed=seed, resamples=resamples)
    values = np.asarray(statistic(np.arange(questions)), float)
    return [Estimate(float(value), *percentiles(column)) for value, column in zip(values, drawn.T, strict=True)]


def mean_estimate(values: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The mean of a value a question, float[n]; nan stands for a question without one.

    Raises:
      InputError: no question has a value.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    (found,) = estimates(lambda drawn: known[drawn].mean(keepdims=True), len(known), seed=seed, resamples=resamples)
    return found


def student95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t with so many degrees of freedom."""
    return float(special.stdtrit(freedom, 0.975))


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % Student interval, which a single value does not have (nan)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(student95(count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of first - second on the same prompts and half the width of its 95 % interval.

    The width counts one prompt more won by each side (Bonett and Price 2012), so that it stays honest for few prompts
    and does not vanish where the two agree on all.

    Raises:
      InputError: not the same number of values.
    """
    if len(first) != len(second) or not len(first):
        raise InputError(
            f"{len(first)} and {len(second)} values cannot be paired", cure="Compare answers to the same prompts"
        )
    difference = np.asarray(first, float) - np.asarray(second, float)
    widened = np.append(difference, [1.0, -1.0])
    return float(difference.mean()), float(Z95 * widened.std() / math.sqrt(len(widened)))
