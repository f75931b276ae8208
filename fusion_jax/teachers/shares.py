"""How much of the targets each teacher gave."""

from __future__ import annotations

import numpy as np

from fusion_jax.teachers.rows import FusionRows
from fusion_jax.teachers.settings import FusionSettings


def shares_taken(rows: FusionRows, settings: FusionSettings) -> np.ndarray | None:
    """float64[teachers], the share of the texts' tokens whose targets are each teacher's (mince), or its mean weight in
    them (avgce); the pivot first. None where that is not known before training: of live teachers, and where each token
    chooses.

    >>> rows = FusionRows(np.asarray([30, 10]), np.asarray([[1.0, 2.0], [3.0, 2.5]]), lambda i: None, "")
    >>> shares_taken(rows, FusionSettings()).tolist()  # the second knows the shorter text better
    [0.75, 0.25]
    """
    metrics = np.asarray(rows.metrics, np.float64)
    if settings.choice == "token" or not np.isfinite(metrics).all():
        return None
    scores = np.exp(-metrics)
    if not settings.pivot:
        scores[:, 0] = -np.inf
    if settings.function == "mince":
        weights = np.eye(scores.shape[1])[scores.argmax(1)]
    else:
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
    return rows.sizes @ weights / rows.sizes.sum()
