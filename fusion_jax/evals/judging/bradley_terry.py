"""Strengths of models from pairwise verdicts (Bradley and Terry 1952), as Arena-Hard has them (arXiv 2406.11939).

P(i beats j) = 1 / (1 + exp(s_j - s_i)). A verdict of "much better" counts as three wins, a tie as half a win of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from fusion_jax.errors import InputError
from fusion_jax.intervals import RESAMPLES, Estimate, estimates

MUCH = 3.0  # wins that "much better" counts as
SCALE, BASE, ANCHOR = 400.0, 10.0, 1000.0  # of ratings as they are published
RIDGE = 1e-6


class Battle(NamedTuple):
    """One verdict. question: its number; grade: 2 where the first is much better, 1 better, 0 a tie, -1 and -2 where
    the second is."""

    question: int
    first: int
    second: int
    grade: int


class Ranked(NamedTuple):
    """Of each model: strength on the scale of ratings, the baseline at 1000, and the rate of wins against the baseline,
    ties and "much better" counted as above; both with intervals."""

    rating: Estimate
    rate: Estimate


def wins(battles: Sequence[Battle], models: int) -> np.ndarray:
    """float[M,M]: how often i beat j."""
    out = np.zeros((models, models))
    for _, first, second, grade in battles:
        count = MUCH if abs(grade) == 2 else 1.0
        if grade >= 0:
            out[first, second] += count if grade else 0.5
        if grade <= 0:
            out[second, first] += count if grade else 0.5
    return out


def strengths(won: np.ndarray, baseline: int = 0) -> np.ndarray:
    """float[M], the s of greatest likelihood, s of the baseline being 0.

    Newton's method. A penalty of RIDGE / 2 * sum s^2 keeps a model that never lost at a finite strength (about 10 to
    15 above the others); where the likelihood has a maximum it moves that by less than 1e-4.

    Args:
      won: float[M,M], how often i beat j.

    Raises:
      InputError: a model without any verdict.
    """
    models = len(won)
    both = won + won.T
    np.fill_diagonal(both, 0)
    idle = np.flatnonzero(both.sum(1) == 0)
    if models > 1 and len(idle):
        raise InputError(f"model {idle[0] + 1} has no verdict", field="battles", cure="Leave it out, or judge it")
    others = np.arange(models) != baseline
    s = np.zeros(models)

    def value(s: np.ndarray) -> float:
        return float((won * np.logaddexp(0, s[None, :] - s[:, None])).sum() + RIDGE * (s @ s) / 2)

    for _ in range(200):
        p = special.expit(s[:, None] - s[None, :])
        slope = (both * p).sum(1) - won.sum(1) + np.diag(won) + RIDGE * s
        curve = both * p * (1 - p)
        hessian = np.diag(curve.sum(1) + RIDGE) - curve
        step = np.zeros(models)
        step[others] = np.linalg.solve(hessian[np.ix_(others, others)], slope[others])
        size, now = 1.0, value(s)
        while value(s - size * step) > now and size > 1e-6:
            size /= 2
        s = s - size * step
        if np.abs(size * step).max(initial=0) < 1e-10:
            break
    return s


def ranked(
    battles: Sequence[Battle], models: int, *, baseline: int = 0, seed: int, resamples: int = RESAMPLES
) -> list[Ranked]:
    """Ratings and win rates of every model with 95 % intervals, of questions drawn anew with all their verdicts."""
    questions = sorted({battle.question for battle in battles})
    each = np.stack([wins([b for b in battles if b.question == q], models) for q in questions])

    def both(drawn: np.ndarray) -> np.ndarray:
        won = each[drawn].sum(0)
        seen = (won + won.T).sum(1) > 0
        if not seen[baseline]:
            return np.full(2 * models, np.nan)
        s = np.full(models, np.nan)
        place = int(np.flatnonzero(seen).tolist().index(baseline))
        s[seen] = strengths(won[np.ix_(seen, seen)], place)
        return np.concatenate([ANCHOR + SCALE / np.log(BASE) * s, special.expit(s)])

    found = estimates(both, len(questions), seed=seed, resamples=resamples)
    return [Ranked(found[model], found[models + model]) for model in range(models)]
