"""Whether two systems differ: a paired bootstrap over dialogues, whose turns are not independent of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue.recall import Recall
from fusion_jax.evals.dialogue.scoring import Scored, bleu_of, f1_of

Metric = Callable[[np.ndarray], float]
"""Sums over turns -> score."""
RESAMPLES = 2000


class Difference(NamedTuple):
    """Scores of two systems, first - second with its 95 % interval, and the two-sided p-value of no difference."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def f1_difference(first: Scored, second: Scored, *, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Of entity F1; see `compare`."""
    pair = first.entities, second.entities
    return compare(*pair, first.dialogues, second.dialogues, lambda c: f1_of(c).f1, seed=seed, resamples=resamples)


def bleu_difference(first: Scored, second: Scored, *, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Of BLEU; see `compare`."""
    pair = first.ngrams, second.ngrams
    return compare(*pair, first.dialogues, second.dialogues, bleu_of, seed=seed, resamples=resamples)


def recall_difference(first: Recall, second: Recall, *, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Of Recall@K; see `compare`."""
    pair = first.counts, second.counts
    return compare(*pair, first.dialogues, second.dialogues, _share, seed=seed, resamples=resamples)


def _share(counts: np.ndarray) -> float:
    """Hits in per cent; 0 where the drawn dialogues have no scored turn."""
    return 100 * float(counts[0]) / max(float(counts[1]), 1.0)


def compare(
    first: np.ndarray, second: np.ndarray, dialogues: np.ndarray, others: np.ndarray, metric: Metric, *, seed: int,
    resamples: int = RESAMPLES,
) -> Difference:  # fmt: skip
    """The difference of a score that is a function of sums over turns. Dialogues are drawn with replacement, the same
    ones for both systems (scipy's bootstrap, percentile interval).

    Args:
      first, second: float[T,S], what each turn adds to the sums. dialogues, others: int[T], the dialogue of each turn
        of the first and of the second system.

    Raises:
      InputError: the two are not of the same turns, or of less than two dialogues.
    """
    from scipy.stats import bootstrap

    if len(first) != len(second) or not np.array_equal(dialogues, others):
        raise InputError("the two systems answered different turns", field="second", cure="Score both on one file")
    numbers, place = np.unique(dialogues, return_inverse=True)
    if len(numbers) < 2:
        problem = f"{len(numbers)} dialogue cannot be resampled"
        raise InputError(problem, field="dialogues", cure="Score at least two")
    sums = np.zeros((2, len(numbers), first.shape[1]))
    for row, one in zip(sums, (first, second)):
        np.add.at(row, place, one)

    def difference(drawn: np.ndarray) -> float:
        ours, theirs = sums[:, drawn].sum(1)
        return metric(ours) - metric(theirs)

    found = bootstrap(
        (np.arange(len(numbers)),), difference, vectorized=False, n_resamples=resamples, method="percentile",
        random_state=np.random.default_rng(seed),
    )  # fmt: skip
    drawn = found.bootstrap_distribution
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    scores = metric(sums[0].sum(0)), metric(sums[1].sum(0))
    low, high = (float(bound) for bound in found.confidence_interval)
    return Difference(*scores, scores[0] - scores[1], low, high, min(1.0, 2 * (rarer + 1) / (resamples + 1)))
