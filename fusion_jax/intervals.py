"""95 % intervals of means, shares and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from fusion_jax.errors import InputError

Z95 = float(special.ndtri(0.975))


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
