"""Which pairs train the first corrector, which the alignment models, which validate (Alirector spec section 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.errors import InputError
from fusion_jax.settings import bounded, seeded

Item = TypeVar("Item", Pair, Triple)
Order = Literal["grouped", "file_order"]


@dataclass(frozen=True)
class SplitSettings:
    """How the training list is divided between the two stages."""

    order: Order = "grouped"
    """Draw groups of identical pairs by the seed, so that no pair is on both sides (grouped); or cut the list where it
    stands, as the published code does (file_order)."""
    share: float = 0.7
    """Share of the pairs that stage 1 trains on."""
    seed: int = 2024
    """Decides which groups stage 1 gets."""

    def __post_init__(self) -> None:
        bounded(self, "share", above=0, below=1)
        seeded(self, "seed")


def stage_sizes(count: int, share: float = 0.7) -> tuple[int, int]:
    """How many of `count` pairs are of stage 1, int(share * count) in float64, and how many of stage 2.

    >>> stage_sizes(90)
    (62, 28)
    """
    first = int(share * count)
    return first, count - first


def stage_split(pairs: Sequence[Item], settings: SplitSettings | None = None) -> tuple[list[Item], list[Item]]:
    """The pairs of stage 1 and those of stage 2, both in the order of the list.

    Grouped, stage 1 is the longest run of the shuffled groups with no more pairs than `stage_sizes` says.

    Raises:
      InputError: a stage would get no pair.
    """
    settings = settings or SplitSettings()
    size, _ = stage_sizes(len(pairs), settings.share)
    if settings.order == "file_order":
        first = np.arange(len(pairs)) < size
    else:
        groups = _groups(pairs)
        shuffled = np.random.default_rng(settings.seed).permutation(len(np.bincount(groups)))
        chosen = shuffled[np.cumsum(np.bincount(groups)[shuffled]) <= size]
        first = np.isin(groups, chosen)
    if not first.any() or first.all():
        problem = f"{len(pairs)} pairs leave stage {1 if not first.any() else 2} none"
        raise InputError(problem, field="share", cure="Give more different pairs, or another share")
    return _parted(pairs, first)


def validation_split(
    pairs: Sequence[Item], count: int, seed: int, *, order: Order = "grouped", field: str = "validation"
) -> tuple[list[Item], list[Item]]:
    """The pairs that stay for training, and `count` that were drawn by the seed; both in the order of the list.

    Grouped, the pairs drawn are different and none of their copies stays; in "file_order" copies are drawn and stay as
    it happens, as in the published code. field: the setting that `count` is.

    Raises:
      InputError: nothing would stay, a negative seed.
    """
    groups = _groups(pairs) if order == "grouped" else np.arange(len(pairs))
    _, firsts = np.unique(groups, return_index=True)
    if not 0 <= count < len(firsts):
        problem = f"{count} of {len(firsts)} different pairs leave none to train on"
        raise InputError(problem, field=field, cure="Give more pairs, or validate on fewer")
    if seed < 0:
        raise InputError(f"{seed} is out of range", field="seed", cure="Give 0 or more")
    drawn = np.random.default_rng(seed).permutation(len(firsts))[:count]
    stays = ~np.isin(groups, drawn)
    return _parted(pairs, stays)[0], [pairs[i] for i in np.sort(firsts[drawn])]


def _groups(pairs: Sequence[Item]) -> np.ndarray:
    """int[n], the number of the group of identical source and target that each pair is of, from 0 in order."""
    numbers: dict[tuple[str, str], int] = {}
    return np.asarray([numbers.setdefault((p.source, p.target), len(numbers)) for p in pairs], np.int64)


def _parted(pairs: Sequence[Item], first: np.ndarray) -> tuple[list[Item], list[Item]]:
    return [p for p, yes in zip(pairs, first) if yes], [p for p, yes in zip(pairs, first) if not yes]
