"""A source vocabulary mapped onto the pivot's: exact, by edit distance, refined by context, by aligned pairs.

FuseLLM/FuseChat spec section 5, with the repairs of section 5.4 and ties broken by the lowest pivot id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist, cpdist

from fusion_jax.align.sequences import Alignment, Ids, checked_ids
from fusion_jax.align.views import TokenizerView, delete_marks, fingerprint, replace_marks
from fusion_jax.arguments import listed
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.files import replacing

Kind = Literal["exact", "mined", "cooccurrence", "statistics"]
Weight = Literal["code", "inverse", "max_count"]
_ROWS = "Give [(pivot ids, source ids, alignment), ...]"
CHUNK = 1024  # source strings compared at a time
PAIRS = 1 << 22  # pairs of ids collected before they are counted


@dataclass(frozen=True, eq=False)
class VocabMap:
    """The pivot id of each source id.

    ids: int32[source size], -1 for a source id without an image; pivot_size: number of pivot ids.
    pivot, source: fingerprints of the two views.
    """

    ids: np.ndarray
    kind: Kind
    pivot_size: int
    pivot: str
    source: str

    def __repr__(self) -> str:
        return brief(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as JSON; the file appears only when all of it is on the disk."""
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
            json.dump({**vars(self), "ids": self.ids.tolist()}, out)


def _map(ids: np.ndarray, kind: Kind, pivot: TokenizerView, source: TokenizerView) -> VocabMap:
    return VocabMap(ids.astype(np.int32), kind, pivot.size, fingerprint(pivot), fingerprint(source))


def load_map(path: str | os.PathLike[str], pivot: TokenizerView, source: TokenizerView) -> VocabMap:
    """A saved map of these two tokenizers.

    Raises:
      InputError: there is no such file, it holds no map, or a map of other tokenizers (which, is said).
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, cure="Make the vocabulary map first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON ({error})", file=path, cure="Make the vocabulary map again") from None
    fields = {"ids": list, "kind": str, "pivot_size": int, "pivot": str, "source": str}
    if not isinstance(content, dict):
        raise InputError("is not a vocabulary map", file=path, cure="Make the vocabulary map again")
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise InputError("is missing or of another type", file=path, field=name, cure="Make the map again")
    found = VocabMap(**{name: content[name] for name in fields})
    sizes = {"pivot": found.pivot_size, "source": len(found.ids)}
    for name, view in (("pivot", pivot), ("source", source)):
        theirs, ours = content[name], fingerprint(view)
        if theirs != ours or sizes[name] != view.size:
            raise InputError(
                f"the map was made for another {name} tokenizer: {sizes[name]} ids, fingerprint {theirs[:12]}; this "
                f"one has {view.size} ids, fingerprint {ours[:12]}", file=path, field=name,
                cure=f"Give the {name} tokenizer that the map was made for, or make the map again",
            )  # fmt: skip
    if not all(type(i) is int and -1 <= i < pivot.size for i in content["ids"]):
        raise InputError("holds what is no pivot id", file=path, field="ids", cure="Make the vocabulary map again")
    return replace(found, ids=np.asarray(content["ids"], np.int32))


def exact_map(pivot: TokenizerView, source: TokenizerView) -> VocabMap:
    """Each source piece to the pivot piece that equals it once marks are replaced (section 5.1)."""
    return _map(_exact(_replaced(pivot, source), pivot), "exact", pivot, source)


def mined_map(pivot: TokenizerView, source: TokenizerView) -> VocabMap:
    """The exact map, completed by the nearest pivot piece in edits, the lowest id among equals (section 5.2)."""
    strings = _replaced(pivot, source)
    ids = _exact(strings, pivot)
    missing = _without_image(strings, ids)
    _, nearest = _nearest(list(missing), pivot)
    for same, number in zip(missing.values(), nearest.tolist()):
        ids[same] = number
    return _map(ids, "mined", pivot, source)


def _replaced(pivot: TokenizerView, source: TokenizerView) -> list[str]:
    return [replace_marks(piece, source, pivot) for piece in source.pieces]


def _exact(strings: Sequence[str], pivot: TokenizerView) -> np.ndarray:
    """int32[source size], -1 for a string that is no pivot piece."""
    known = {piece: i for i, piece in reversed(list(enumerate(pivot.pieces))) if piece}
    return np.asarray([known.get(s, -1) for s in strings], np.int32)


def _without_image(strings: Sequence[str], ids: np.ndarray) -> dict[str, list[int]]:
    """The source ids of each string that has no image yet; ids without a piece stay without one."""
    out: dict[str, list[int]] = {}
    for i in np.nonzero(ids < 0)[0].tolist():
        if strings[i]:
            out.setdefault(strings[i], []).append(i)
    return out


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


def _nearest(strings: Sequence[str], pivot: TokenizerView) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest pivot pieces and the lowest of their ids, int32[n] each."""
    best, nearest = np.zeros(len(strings), np.int32), np.full(len(strings), -1, np.int32)
    pieces = _by_length(pivot.pieces)
    for length, bucket in _by_length(strings).items():
        for at in range(0, len(bucket.ids), CHUNK):
            rows = bucket.ids[at : at + CHUNK]
            best[rows], nearest[rows] = _nearest_of_length(bucket.strings[at : at + CHUNK], length, pieces)
    return best, nearest


def _nearest_of_length(strings: list[str], length: int, pieces: dict[int, _Bucket]) -> tuple[np.ndarray, np.ndarray]:
    """`_nearest` for strings of one length: by growing difference of lengths, which no distance is smaller than."""
    best = np.full(len(strings), max([length, *pieces]), np.int32)
    nearest = np.full(len(strings), np.iinfo(np.int32).max, np.int32)
    for other in sorted(pieces, key=lambda n: abs(n - length)):
        open_rows = np.nonzero(best >= abs(other - length))[0]
        if not len(open_rows):
            break
        bucket = pieces[other]
        found = _bounded([strings[i] for i in open_rows], bucket.strings, int(best[open_rows].max()))
        column = found.argmin(1)
        distance, number = found[np.arange(len(open_rows)), column].astype(np.int32), bucket.ids[column]
        worse = (distance > best[open_rows]) | ((distance == best[open_rows]) & (number > nearest[open_rows]))
        rows = open_rows[~worse]
        best[rows], nearest[rows] = distance[~worse], number[~worse]
    return best, nearest


def _bounded(queries: Sequence[str], choices: Sequence[str], cutoff: int) -> np.ndarray:
    """[q,c] distances, cutoff + 1 where they are greater than the cutoff."""
    dtype = np.uint8 if cutoff < 255 else np.int32
    return cdist(queries, choices, scorer=Levenshtein.distance, score_cutoff=cutoff, dtype=dtype, workers=-1)


class _Sparse(NamedTuple):
    """A sparse matrix by rows: of row r the columns[starts[r] : starts[r + 1]] and their counts, int64 all."""

    starts: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        inside = slice(self.starts[r], self.starts[r + 1])
        return self.columns[inside], self.counts[inside]


def cooccurrence_map(
    pivot: TokenizerView, source: TokenizerView, pivot_rows: Sequence[Ids], source_rows: Sequence[Ids], window: int = 5
) -> VocabMap:
    """The mined map; among several pieces at minimal distance the one whose neighbours in text agree (section 5.3).

    Neighbours are compared over the pivot ids that are images, each with the last source id that maps to it.

    Args:
      pivot_rows, source_rows: token ids of some texts in either tokenizer.
    """
    mined = mined_map(pivot, source)
    ids, strings = mined.ids.copy(), _replaced(pivot, source)
    column_of_source, column_of_pivot = np.full(source.size, -1), np.full(pivot.size, -1)
    last = dict(zip(mined.ids.tolist(), range(source.size)))
    last.pop(-1, None)
    for column, (image, number) in enumerate(last.items()):
        column_of_pivot[image], column_of_source[number] = column, column
    ours = _neighbours([checked_ids(r, pivot, "pivot_rows") for r in pivot_rows], column_of_pivot, window)
    theirs = _neighbours([checked_ids(r, source, "source_rows") for r in source_rows], column_of_source, window)
    row_of = np.repeat(np.arange(pivot.size), np.diff(ours.starts))
    norms = np.sqrt(np.bincount(row_of, ours.counts.astype(np.float64) ** 2, minlength=pivot.size))
    for i, candidates in _ambiguous(strings, _exact(strings, pivot), pivot):
        ids[i] = candidates[np.argmax(_agreement(theirs.row(i), ours, candidates, norms, len(last)))]
    return _map(ids, "cooccurrence", pivot, source)


def _neighbours(rows: Sequence[np.ndarray], column_of: np.ndarray, window: int) -> _Sparse:
    """How often each id has each column's id near it; the official window is one shorter to the right.

    So a pair that is `window` apart is seen from one of its ends, a closer one from both.
    """
    size = len(column_of)
    keys, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for ids in rows:
        for distance in range(1, min(window, len(ids) - 1) + 1):
            left, right = ids[:-distance], ids[distance:]
            keys += [left * size + right, right * size + left]
            weights.append(np.full(2 * len(left), 1 if distance == window else 2))
    pairs, counts = _sum_by_key(np.concatenate(keys), np.concatenate(weights))
    columns = column_of[pairs % size]
    kept = columns >= 0
    starts = np.searchsorted(pairs[kept] // size, np.arange(size + 1))
    return _Sparse(starts, columns[kept], counts[kept])


def _sum_by_key(keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different keys, ascending, and the sum of each one's weights; int64."""
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, weights, minlength=len(unique)).astype(np.int64)


def _ambiguous(strings: Sequence[str], exact: np.ndarray, pivot: TokenizerView) -> Iterator[tuple[int, np.ndarray]]:
    """Source ids without an exact match that have several nearest pieces, and the ids of those, ascending."""
    missing = _without_image(strings, exact)
    wanted, pieces = list(missing), [(i, p) for i, p in enumerate(pivot.pieces) if p]
    numbers = np.asarray([i for i, _ in pieces])
    best, _ = _nearest(wanted, pivot)
    for at in range(0, len(wanted), CHUNK):
        some, bound = wanted[at : at + CHUNK], best[at : at + CHUNK]
        nearest = _bounded(some, [p for _, p in pieces], int(bound.max())) == bound[:, None]
        for text, row in zip(some, nearest):
            candidates = numbers[row]
            if len(candidates) > 1:
                yield from ((i, candidates) for i in missing[text])


def _agreement(
    theirs: tuple[np.ndarray, np.ndarray], ours: _Sparse, candidates: np.ndarray, norms: np.ndarray, width: int
) -> np.ndarray:
    """float64[candidates], the cosine of each candidate's counts with the source token's, officially smoothed."""
    columns, counts = theirs
    dense = np.zeros(width)
    dense[columns] = counts
    lengths = ours.starts[candidates + 1] - ours.starts[candidates]
    owner = np.repeat(np.arange(len(candidates)), lengths)
    at = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + ours.starts[candidates][owner]
    dots = np.bincount(owner, dense[ours.columns[at]] * ours.counts[at], minlength=len(candidates))
    return dots / (np.sqrt((dense**2).sum()) * norms[candidates] + 1e-6)


class PairCounts(NamedTuple):
    """How often pivot[k] and source[k] were aligned: int32[K], int32[K], int64[K], by ascending (pivot, source)."""

    pivot: np.ndarray
    source: np.ndarray
    counts: np.ndarray


def count_pairs(rows: Iterable[tuple[Ids, Ids, Alignment]], pivot: TokenizerView, source: TokenizerView) -> PairCounts:
    """Counts over rows of (pivot ids, source ids, their alignment).

    Each pivot position adds one for each different source id in its range.

    Raises:
      InputError: ids that are not in the views, an alignment of other lengths.
    """
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[np.ndarray] = []
    size = 0
    for number, (pivot_ids, source_ids, alignment) in enumerate(listed(rows, "rows", "rows", _ROWS), 1):
        ours = checked_ids(pivot_ids, pivot, "pivot_ids")
        theirs = checked_ids(source_ids, source, "source_ids")
        if len(ours) != len(alignment.first) or alignment.last.max(initial=-1) >= len(theirs):
            raise InputError("the alignment is not one of these ids", record=number, field="alignment")
        waiting.append(_pairs(ours, theirs, alignment, source.size))
        size += len(waiting[-1])
        if size >= PAIRS:
            keys, counts = _add_up(keys, counts, waiting)
            waiting, size = [], 0
    keys, counts = _add_up(keys, counts, waiting)
    return PairCounts((keys // source.size).astype(np.int32), (keys % source.size).astype(np.int32), counts)


def _pairs(ours: np.ndarray, theirs: np.ndarray, alignment: Alignment, source_size: int) -> np.ndarray:
    """int64, pivot id * source size + source id of each aligned pair of a row."""
    kept = alignment.first >= 0
    first = alignment.first[kept].astype(np.int64)
    lengths = alignment.last[kept] - first + 1
    position = np.repeat(np.nonzero(kept)[0], lengths)
    within = np.arange(len(position)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    once = np.unique(position * source_size + theirs[np.repeat(first, lengths) + within])
    return ours[once // source_size] * source_size + once % source_size


def _add_up(keys: np.ndarray, counts: np.ndarray, waiting: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    new = [np.ones(len(w), np.int64) for w in waiting]
    return _sum_by_key(np.concatenate([keys, *waiting]), np.concatenate([counts, *new]))


def mapping_statistics(
    counts: PairCounts,
    pivot: TokenizerView,
    source: TokenizerView,
    variant: Literal["chat_v1", "chat_v2"] = "chat_v2",
    weight: Weight = "code",
) -> VocabMap:
    """Each source id to one of the pivot ids it was aligned with (section 5.4); ties go to the lowest pivot id.

    Args:
      weight: "code" takes the smallest distance times logistic(count), as the official code does, which prefers rare
        pairs; "inverse" the smallest distance over logistic(count); "max_count" the most frequent, then the nearest.

    A source id that was never aligned goes to the pivot's unk, else its eos, else nowhere; bos to bos and eos to eos.

    Raises:
      InputError: an unknown variant or weight.
    """
    for name, value, known in (("variant", variant, ("chat_v1", "chat_v2")), ("weight", weight, get_args(Weight))):
        if value not in known:
            raise InputError(f"'{value}' is unknown", field=name, cure=f"Known: {', '.join(known)}")
    distance = _pair_distances(counts, pivot, source, variant)
    often = 1.0 / (1.0 + np.exp(-counts.counts.astype(np.float64)))
    scores = {"code": often * distance, "inverse": distance / often, "max_count": -counts.counts}
    order = np.lexsort((counts.pivot, distance * (weight == "max_count"), scores[weight], counts.source))
    seen, at = np.unique(counts.source[order], return_index=True)
    fallback = next((i for i in (pivot.unk, pivot.eos) if i is not None), -1)
    ids = np.full(source.size, fallback, np.int32)
    ids[seen] = counts.pivot[order[at]]
    for theirs, ours in ((source.bos, pivot.bos), (source.eos, pivot.eos)):
        if theirs is not None and ours is not None:
            ids[theirs] = ours
    return _map(ids, "statistics", pivot, source)


def _pair_distances(counts: PairCounts, pivot: TokenizerView, source: TokenizerView, variant: str) -> np.ndarray:
    """float64[K] distances of the pieces without marks, a tenth where one contains the other."""
    pairs = []
    for p, s in zip(counts.pivot.tolist(), counts.source.tolist()):
        theirs, ours = delete_marks(source.pieces[s], source), delete_marks(pivot.pieces[p], pivot)
        if variant == "chat_v2" and not (theirs and ours):
            theirs, ours = replace_marks(source.pieces[s], source, pivot), pivot.pieces[p]
        pairs.append((theirs, ours))
    if not pairs:
        return np.zeros(0)
    distance = cpdist(*zip(*pairs), scorer=Levenshtein.distance, dtype=np.int32).astype(np.float64)
    return distance * np.asarray([0.1 if a in b or b in a else 1.0 for a, b in pairs])
