"""The length-controlled win rate of AlpacaEval 2 (arXiv 2404.04475): a regression says how much of the preference comes
from the lengths of the answers, and what it would be if they were equal.

For question x, of a model against a baseline:

    logit p(x) = theta + phi tanh((l_baseline - l_model) / std) + psi gamma_x

theta is the model's own part, l are lengths in characters, std is the standard deviation of their difference (ddof 1),
gamma_x the difficulty of the instruction. The rate is the mean over the questions of p with the second term at 0. The
three coefficients minimise C sum_x w_x H(preference_x, p(x)) + |theta| + |phi| + |psi|, H being the cross-entropy, with
the C of ten from 1e-4 to 1e4 whose cross-entropy of held-out questions is least in five folds. The published numbers
also use two answer sets of the baseline that were made long and short on purpose, weighted by 0.2 / 2 each, and
difficulties that were fitted to all models of the leaderboard: both can be given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from fusion_jax.errors import InputError
from fusion_jax.intervals import RESAMPLES, Estimate, estimates

STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5
ANCHOR_WEIGHT = 0.2 / 2


class Anchors(NamedTuple):
    """Judged answers of the baseline against itself, made longer or shorter: they hold the length's coefficient.

    preferences: float[n] in [0, 1]; lengths: float[n], the standardised difference of the lengths; difficulty:
    float[n].
    """

    preferences: np.ndarray
    lengths: np.ndarray
    difficulty: np.ndarray


class Controlled(NamedTuple):
    """The rate with its interval; theta, phi and psi; strength: the C that was chosen."""

    rate: Estimate
    coefficients: np.ndarray
    strength: float


def length_controlled(
    preferences: np.ndarray,
    lengths: np.ndarray,
    baseline_lengths: np.ndarray,
    *,
    difficulty: np.ndarray | None = None,
    anchors: Anchors | None = None,
    seed: int,
    resamples: int = RESAMPLES,
) -> Controlled:
    """The length-controlled win rate of a model.

    Args:
      preferences: float[n], the judge's preference for the model's answer, in [0, 1]; nan: not judged.
      lengths, baseline_lengths: float[n], characters of the model's and of the baseline's answers.
      difficulty: float[n], gamma of each instruction; None leaves the term out.
      anchors: see `Anchors`; None leaves them out.

    The interval is of questions drawn anew; C stays what it is.

    Raises:
      InputError: fewer than ten judged questions; arrays of different sizes.
    """
    gamma = np.zeros(len(preferences)) if difficulty is None else difficulty
    if not len(preferences) == len(lengths) == len(baseline_lengths) == len(gamma):
        raise InputError("the arrays are not of the same questions", field="lengths", cure="Give a number each")
    known = ~np.isnan(preferences)
    if known.sum() < 2 * FOLDS:
        problem = f"{int(known.sum())} judged questions are too few for the regression"
        raise InputError(problem, field="preferences", cure=f"Give {2 * FOLDS} or more")
    delta = np.asarray(baseline_lengths, float) - lengths
    spread = delta.std(ddof=1) or 1.0
    rows = np.stack([np.ones(len(delta)), np.tanh(delta / spread), gamma], 1)[known]
    wanted = np.asarray(preferences, float)[known]
    more, their, weights = _anchor_rows(anchors)

    def with_anchors(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        each = np.concatenate([weights, np.ones(len(drawn))])
        return np.concatenate([more, rows[drawn]]), np.concatenate([their, wanted[drawn]]), each

    every = with_anchors(np.arange(len(rows)))
    strength = _strength(*every)
    coefficients = fitted(*every, strength)

    def rate(drawn: np.ndarray) -> np.ndarray:
        theta, _, psi = fitted(*with_anchors(drawn), strength, start=coefficients)
        return special.expit(theta + psi * rows[drawn, 2]).mean(keepdims=True)

    (found,) = estimates(rate, len(rows), seed=seed, resamples=resamples)
    return Controlled(found, coefficients, strength)


def _anchor_rows(anchors: Anchors | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, preferences and weights; theta is the model's, whom anchors do not concern."""
    if anchors is None:
        return np.zeros((0, 3)), np.zeros(0), np.zeros(0)
    rows = np.stack([np.zeros(len(anchors.lengths)), np.tanh(anchors.lengths), anchors.difficulty], 1)
    return rows, np.asarray(anchors.preferences, float), np.full(len(rows), ANCHOR_WEIGHT)


def fitted(
    rows: np.ndarray, wanted: np.ndarray, weights: np.ndarray, strength: float, *, start: np.ndarray | None = None
) -> np.ndarray:
    """The coefficients b of logit p = rows b that minimise strength * sum(weights * H(wanted, p)) + sum |b|.

    Each is a difference of two that are not negative, which makes the problem smooth.

    Args:
      rows: float[n,k]; wanted, weights: float[n]. start: coefficients to begin with.
    """
    size = rows.shape[1]
    first = np.zeros(size) if start is None else start

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        logits = rows @ (x[:size] - x[size:])
        value = strength * (weights * (np.logaddexp(0, logits) - wanted * logits)).sum()
        slope = strength * (weights * (special.expit(logits) - wanted)) @ rows
        return value + x.sum(), np.concatenate([1 + slope, 1 - slope])

    found = optimize.minimize(
        loss, np.concatenate([np.maximum(first, 0), np.maximum(-first, 0)]), jac=True, method="L-BFGS-B",
        bounds=[(0, None)] * (2 * size), options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-8},
    )  # fmt: skip
    return found.x[:size] - found.x[size:]


def _strength(rows: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> float:
    """The C with the least cross-entropy of held-out rows; folds are dealt out from the last row on."""
    folds = np.arange(len(rows))[::-1] % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for fold in range(FOLDS):
        kept, out = folds != fold, folds == fold
        for number, strength in enumerate(STRENGTHS):
            logits = rows[out] @ fitted(rows[kept], wanted[kept], weights[kept], strength)
            losses[number] += (weights[out] * (np.logaddexp(0, logits) - wanted[out] * logits)).mean()
    return float(STRENGTHS[int(losses.argmin())])


def difficulties(preferences: np.ndarray, deltas: np.ndarray, *, ridge: float = 1.0) -> np.ndarray:
    """gamma float[n] of each instruction from the preferences of several models, where none is published.

    A joint regression of all models m with psi = 1: logit p = theta_m + phi_m tanh(delta / std_m) + gamma_x, penalised
    by ridge / 2 * sum gamma^2, without which few models do not determine gamma; its mean is 0.

    Args:
      preferences, deltas: float[M,n], preferences for each model, nan where it was not judged, and the lengths of the
        baseline's answers less its own.

    Raises:
      InputError: a single model, from which difficulty cannot be told.
    """
    models, count = preferences.shape
    if models < 2:
        cure = "Judge several, or leave it out"
        raise InputError("one model does not tell difficulty", field="difficulty", cure=cure)
    known = ~np.isnan(preferences)
    spreads = np.asarray([row.std(ddof=1) or 1.0 for row in deltas])
    slopes, wanted = np.tanh(deltas / spreads[:, None]), np.where(known, preferences, 0.0)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta, phi, gamma = x[:models], x[models : 2 * models], x[2 * models :]
        logits = theta[:, None] + phi[:, None] * slopes + gamma
        off = np.where(known, special.expit(logits) - wanted, 0.0)
        value = np.where(known, np.logaddexp(0, logits) - wanted * logits, 0.0).sum()
        penalty = ridge * gamma @ gamma / 2 + 1e-3 * (theta @ theta + phi @ phi) / 2
        gradient = [off.sum(1) + 1e-3 * theta, (off * slopes).sum(1) + 1e-3 * phi, off.sum(0) + ridge * gamma]
        return value + penalty, np.concatenate(gradient)

    found = optimize.minimize(loss, np.zeros(2 * models + count), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    gamma = found.x[2 * models :]
    return gamma - gamma.mean()
