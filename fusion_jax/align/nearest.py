"""The nearest of many strings in edits, by growing difference of lengths: exact, and fast for whole vocabularies.

FuseLLM/FuseChat spec section 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

CHUNK = 1024  # strings compared at a time


class _Bucket(NamedTuple):
    """The strings of one length and where they stand, int32, ascending."""

    strings: list[str]
    ids: np.ndarray


def _by_length(strings: Sequence[str]) -> dict[int, _Bucket]:
    lengths = np.asarray([len(s) for s in strings], np.int32)
    out = {}
    for length in np.unique(lengths[lengths > 0]).tolist():
        ids = np.nonzero(lengths == length)[0].astype(np.int32)
        out[length] = _Bucket([strings[i] for i in ids.tolist()], ids)
    return out


def nearest(
    strings: Sequence[str], choices: Sequence[str], limits: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest choices and the first of those, int32[n] each; empty choices are none.

    limits: int[n], the distance beyond which nothing is near: the number is then -1, and the distance the limit.
    """
    pieces = _by_length(choices)
    most = max(map(len, (*strings, *choices)), default=0)
    best = np.full(len(strings), most) if limits is None else np.minimum(limits, most)
    best, number = best.astype(np.int32), np.full(len(strings), np.iinfo(np.int32).max, np.int32)
    for length, bucket in _by_length(strings).items():
        ids = bucket.ids[np.argsort(best[bucket.ids], kind="stable")]  # small limits are found soonest by themselves
        for at in range(0, len(ids), CHUNK):
            rows = ids[at : at + CHUNK]
            some = [strings[i] for i in rows.tolist()]
            best[rows], number[rows] = _nearest_of_length(some, length, pieces, best[rows])
    return best, np.where(number == np.iinfo(np.int32).max, -1, number)


def _nearest_of_length(
    strings: list[str], length: int, pieces: dict[int, _Bucket], limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` for strings of one length: by growing difference of lengths, which no distance is smaller than."""
    best, nearest = limits.copy(), np.full(len(strings), np.iinfo(np.int32).max, np.int32)
    for other in sorted(pieces, key=lambda n: abs(n - length)):
        open_rows = np.nonzero(best >= abs(other - length))[0]
        if not len(open_rows):
            break
        bucket = pieces[other]
        found = bounded([strings[i] for i in open_rows], bucket.strings, int(best[open_rows].max()))
        column = found.argmin(1)
        distance, number = found[np.arange(len(open_rows)), column].astype(np.int32), bucket.ids[column]
        worse = (distance > best[open_rows]) | ((distance == best[open_rows]) & (number > nearest[open_rows]))
        rows = open_rows[~worse]
        best[rows], nearest[rows] = distance[~worse], number[~worse]
    return best, nearest


def bounded(queries: Sequence[str], choices: Sequence[str], cutoff: int) -> np.ndarray:
    """[q,c] distances, cutoff + 1 where they are greater than the cutoff."""
    dtype = np.uint8 if cutoff < 255 else np.int32
    return cdist(queries, choices, scorer=Levenshtein.distance, score_cutoff=cutoff, dtype=dtype, workers=-1)
