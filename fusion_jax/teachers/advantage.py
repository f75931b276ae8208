"""Which source is best on an instruction: by what it makes of the right answer, and by the answer that it writes.

ProFuser (arXiv 2408.04998), section 4 of its specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

ByReading = Literal["min_ce", "max_ce", "random"]
ByWriting = Literal["vote", "mean_z", "first", "random"]


def surprise_of(nats: float, tokens: float, size: int | None = None) -> float:
    """CE = nats / tokens of a response, or nats / size; nan where there is no token, or they are not finite.

    >>> surprise_of(8.0, 2)
    4.0
    """
    divisor = tokens if size is None else size
    return nats / divisor if tokens and divisor and np.isfinite(nats) else float("nan")


def min_ce(ces: Sequence[float]) -> int | None:
    """The source with the lowest cross-entropy, the first of equals; those that are not finite are left out; None
    where none is left (decision 2)."""
    values = np.asarray(ces, np.float64)
    usable = np.isfinite(values)
    return int(np.where(usable, values, np.inf).argmin()) if usable.any() else None


class Vote(NamedTuple):
    """votes: int[K], of each source; score: float[K], the mean over the judges of its z-score, nan where it may not
    win; winner: None where no source may."""

    votes: np.ndarray
    score: np.ndarray
    winner: int | None


def vote(scores: np.ndarray, valid: Sequence[bool]) -> Vote:
    """The source with most votes of R judges, each for the response that it scores highest (the first of equals).

    Judges' scales differ, so that scores are never averaged raw: equal votes are decided by the mean z-score over the
    valid sources (population standard deviation; 0 where a judge scores all alike), then by order (decision 4).

    Args:
      scores: float[R,K]. valid: bool[K]; a source is not whose response is empty or was cut short, or that a judge
        could not score.

    >>> vote(np.asarray([[3.0, 1.0, 0.5], [10.0, 14.0, 2.0]]), [True] * 3).winner  # one vote each
    0
    """
    values = np.asarray(scores, np.float64)
    usable = np.asarray(valid, bool) & np.isfinite(values).all(0)
    votes, score = np.zeros(values.shape[1], int), np.full(values.shape[1], np.nan)
    if not usable.any():
        return Vote(votes, score, None)
    for judged in np.where(usable, values, -np.inf):
        votes[judged.argmax()] += 1
    kept = values[:, usable]
    spread = kept.std(1, keepdims=True)
    score[usable] = np.divide(kept - kept.mean(1, keepdims=True), spread, np.zeros_like(kept), where=spread > 0).mean(0)
    best = np.lexsort((np.arange(len(votes)), -np.where(usable, score, -np.inf), -np.where(usable, votes, -1)))[0]
    return Vote(votes, score, int(best))


def by_reading(ces: Sequence[float], how: ByReading, rng: np.random.Generator) -> int | None:
    """The source whose distributions teach the right answer: the best, the worst as a control, or any."""
    if how == "min_ce":
        return min_ce(ces)
    if how == "max_ce":
        return min_ce([-ce for ce in ces])
    usable = np.flatnonzero(np.isfinite(ces))
    return int(rng.choice(usable)) if len(usable) else None


def by_writing(scores: np.ndarray, valid: Sequence[bool], how: ByWriting, rng: np.random.Generator) -> int | None:
    """The source whose own answer is learnt: by vote, by the mean z-score, by the first judge alone, or any."""
    found = vote(scores[:1] if how == "first" else scores, valid)
    if how in ("vote", "first") or found.winner is None:
        return found.winner
    usable = np.flatnonzero(np.isfinite(found.score))
    return int(np.nanargmax(found.score)) if how == "mean_z" else int(rng.choice(usable))
