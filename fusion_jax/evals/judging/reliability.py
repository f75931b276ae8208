"""How far a judge can be trusted: whether it agrees with itself, and whether it prefers a place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.intervals import RESAMPLES, Estimate, estimates


class Agreement(NamedTuple):
    """share: of equal verdicts; kappa: Cohen's, the share above what chance gives, 1 where all are equal; pairs: how
    many were judged twice."""

    share: Estimate
    kappa: Estimate
    pairs: int


class PlaceBias(NamedTuple):
    """Of pairs that were judged in both orders. consistent: share of pairs with the same winner, or a tie both times;
    first, second: shares of pairs where the answer in that place won both times; lead: mean preference for the first
    place, above 0.5; pairs: how many."""

    consistent: Estimate
    first: Estimate
    second: Estimate
    lead: Estimate
    pairs: int


def kappa(first: np.ndarray, second: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Cohen's kappa (1960) of two series of verdicts, nan where chance alone would agree always but they do not.

    Args:
      weights: None, or "linear" distances between values: 1 - sum |a - b| / expected, for scores.
    """
    values = np.unique(np.concatenate([first, second]))
    counts = np.zeros((len(values), len(values)))
    np.add.at(counts, (np.searchsorted(values, first), np.searchsorted(values, second)), 1)
    apart = 1.0 - np.eye(len(values)) if weights is None else np.abs(values[:, None] - values[None, :])
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    if not (apart * expected).sum():
        return 1.0
    return float(1 - (apart * counts).sum() / (apart * expected).sum())


def agreement(first: np.ndarray, second: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Agreement:
    """Two series of verdicts on the same pairs, numbers that stand for kinds; nan: no verdict, which does not count.

    Raises:
      InputError: no pair has two verdicts.
    """
    known = ~(np.isnan(first) | np.isnan(second))
    a, b = np.asarray(first, float)[known], np.asarray(second, float)[known]
    if not len(a):
        raise InputError("no pair was judged twice", field="repeat", cure="Ask about more of them twice")

    def both(drawn: np.ndarray) -> np.ndarray:
        return np.asarray([(a[drawn] == b[drawn]).mean(), kappa(a[drawn], b[drawn])])

    share, above = estimates(both, len(a), seed=seed, resamples=resamples)
    return Agreement(share, above, len(a))


def place_bias(forth: np.ndarray, back: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> PlaceBias:
    """Preferences for the same answer when it stands first and when it stands second.

    Args:
      forth, back: float[n] in [0, 1], for the answer that stands first in `forth` and second in `back`; 0.5 is a tie,
        nan no verdict.

    Raises:
      InputError: no pair was judged in both orders.
    """
    known = ~(np.isnan(forth) | np.isnan(back))
    a, b = np.asarray(forth, float)[known], np.asarray(back, float)[known]
    if not len(a):
        raise InputError("no pair was judged in both orders", field="orders", cure="Judge both orders")
    winner, other = np.sign(a - 0.5), np.sign(b - 0.5)
    kinds = np.stack([winner == other, (winner > 0) & (other < 0), (winner < 0) & (other > 0), (a + 1 - b) / 2 - 0.5])
    same, first, second, lead = estimates(lambda drawn: kinds[:, drawn].mean(1), len(a), seed=seed, resamples=resamples)
    return PlaceBias(same, first, second, lead, len(a))
