"""A source vocabulary mapped onto the pivot's: exact, by edit distance, refined by context, by aligned pairs.

FuseLLM/FuseChat spec section 5, with the repairs of section 5.4 and ties broken by the lowest pivot id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import xxhash
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from fusion_jax.align.matching import Vocabularies
from fusion_jax.align.nearest import CHUNK, bounded, nearest
from fusion_jax.align.sequences import Alignment, Ids, checked_ids
from fusion_jax.align.views import Pieces, TokenizerView, compared, delete_marks, fingerprint, replace_marks
from fusion_jax.arguments import listed
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.files import replacing
from fusion_jax.json_files import read_json

Kind = Literal["exact", "mined", "cooccurrence", "statistics"]
Weight = Literal["code", "inverse", "max_count"]
_ROWS = "Give [(pivot ids, source ids, alignment), ...]"
PAIRS = 1 << 22  # pairs of ids collected before they are counted


@dataclass(frozen=True, eq=False)
class VocabMap:
    """The pivot id of each source id.

    ids: int32[source size], -1 for a source id without an image; pivot_size: number of pivot ids.
    pivot, source: fingerprints of the two views. pieces: how they were compared, see `exact_map`.
    """

    ids: np.ndarray
    kind: Kind
    pivot_size: int
    pivot: str
    source: str
    pieces: Pieces = "raw"

    def __repr__(self) -> str:
        return brief(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as JSON; the file appears only when all of it is on the disk."""
        content = {**vars(self), "ids": self.ids.tolist()}
        if self.pieces == "raw":
            del content["pieces"]  # as files are that were written before there was a choice
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
            json.dump({**content, "xxh3_128": _hash(self.ids)}, out)


def _hash(ids: np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(ids, "<i4").tobytes())


def _map(ids: np.ndarray, kind: Kind, both: Vocabularies) -> VocabMap:
    pieces: Pieces = "bytes" if both.bytewise else "raw"
    pivot, source = (fingerprint(view, pieces) for view in (both.pivot, both.source))
    return VocabMap(ids.astype(np.int32), kind, both.pivot.size, pivot, source, pieces)


def load_map(path: str | os.PathLike[str], pivot: TokenizerView, source: TokenizerView) -> VocabMap:
    """A saved map of these two tokenizers.

    Raises:
      InputError: there is no such file, it holds no map, or a map of other tokenizers (which, is said).
    """
    content: Any = read_json(path, cure="Make the vocabulary map again", missing="Make the vocabulary map first")
    fields = {"ids": list, "kind": str, "pivot_size": int, "pivot": str, "source": str}
    hashed = {**fields, "xxh3_128": str}
    for name, kind in hashed.items():
        if not isinstance(content.get(name), kind):
            raise InputError("is missing or of another type", file=path, field=name, cure="Make the map again")
    found = VocabMap(**{name: content[name] for name in fields}, pieces=content.get("pieces", "raw"))
    if found.pieces not in get_args(Pieces):
        raise InputError(f"{found.pieces!r} is unknown", file=path, field="pieces", cure="Make the map again")
    sizes = {"pivot": found.pivot_size, "source": len(found.ids)}
    for name, view in (("pivot", pivot), ("source", source)):
        theirs, ours = content[name], fingerprint(view, found.pieces)
        if theirs != ours or sizes[name] != view.size:
            raise InputError(
                f"the map was made for another {name} tokenizer: {sizes[name]} ids, fingerprint {theirs[:12]}; this "
                f"one has {view.size} ids, fingerprint {ours[:12]}", file=path, field=name,
                cure=f"Give the {name} tokenizer that the map was made for, or make the map again",
            )  # fmt: skip
    if not all(type(i) is int and -1 <= i < pivot.size for i in content["ids"]):
        raise InputError("holds what is no pivot id", file=path, field="ids", cure="Make the vocabulary map again")
    ids = np.asarray(content["ids"], np.int32)
    if content["xxh3_128"] != _hash(ids):
        problem = "was changed after it was written"
        raise InputError(problem, file=path, field="ids", cure="Make the vocabulary map again")
    return replace(found, ids=ids)


def exact_map(pivot: TokenizerView, source: TokenizerView, pieces: Pieces = "bytes") -> VocabMap:
    """Each source piece to the pivot piece of the same bytes (section 5.1).

    Where several spell the same, to the one that the pivot's tokenizer writes itself: not to a byte such as <0x0A>.

    Args:
      pieces: "bytes", or "raw" as published: the vocabulary strings once marks are replaced.
    """
    both = Vocabularies(pivot, source, pieces)
    return _map(both.exact, "exact", both)


def mined_map(pivot: TokenizerView, source: TokenizerView, pieces: Pieces = "bytes") -> VocabMap:
    """The exact map, completed by the nearest pivot piece in edits, the lowest id among equals (section 5.2).

    By bytes, edits are of characters; a piece that begins the source's stands above its equals; and where the nearest
    has no visible character of the source's, the image is the longest piece that begins it (its first byte, if need
    be), or there is none. Control tokens go to those of their name, else of their role, else nowhere.

    Args:
      pieces: as in `exact_map`.
    """
    both = Vocabularies(pivot, source, pieces)
    return _map(_mined(both), "mined", both)


def _mined(both: Vocabularies) -> np.ndarray:
    ids = both.exact.copy()
    missing = _without_image(both.strings, ids)
    begins, limits = _beginnings(both, missing)
    _, found = nearest(list(missing), both.choices, limits)
    for same, number in zip(missing.values(), np.where(found < 0, begins, found).tolist()):
        ids[same] = number
    return both.with_specials(ids) if both.bytewise else ids


def _beginnings(both: Vocabularies, missing: Mapping[str, Sequence[int]]) -> tuple[np.ndarray, np.ndarray | None]:
    """The pivot piece that begins each missing text, -1 for none, and the greatest distance that is nearer than it.

    Nothing is near, either, where no visible character is left.
    """
    begins, limits = np.full(len(missing), -1, np.int32), np.zeros(len(missing), np.int32)
    if not both.bytewise:
        return begins, None
    known = {letter for text in both.choices for letter in text}
    for n, (text, same) in enumerate(missing.items()):
        number = begins[n] = both.beginning(same[0])
        limits[n] = len(text) - text.count(" ")
        if sum(letter not in known for letter in text) >= limits[n]:
            limits[n] = 0  # each of them is an edit
        if number >= 0:
            limits[n] = min(limits[n], Levenshtein.distance(text, both.choices[number]))
    return begins, limits - 1


def _without_image(strings: Sequence[str], ids: np.ndarray) -> dict[str, list[int]]:
    """The source ids of each string that has no image yet; ids without a piece stay without one."""
    out: dict[str, list[int]] = {}
    for i in np.nonzero(ids < 0)[0].tolist():
        if strings[i]:
            out.setdefault(strings[i], []).append(i)
    return out


class _Sparse(NamedTuple):
    """A sparse matrix by rows: of row r the columns[starts[r] : starts[r + 1]] and their counts, int64 all."""

    starts: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        inside = slice(self.starts[r], self.starts[r + 1])
        return self.columns[inside], self.counts[inside]


def cooccurrence_map(
    pivot: TokenizerView,
    source: TokenizerView,
    pivot_rows: Sequence[Ids],
    source_rows: Sequence[Ids],
    window: int = 5,
    pieces: Pieces = "bytes",
) -> VocabMap:
    """The mined map; among several pieces at minimal distance the one whose neighbours in text agree (section 5.3).

    Neighbours are compared over the pivot ids that are images, each with the last source id that maps to it.

    Args:
      pivot_rows, source_rows: token ids of some texts in either tokenizer. pieces: as in `exact_map`.
    """
    both = Vocabularies(pivot, source, pieces)
    mined = _mined(both)
    ids = mined.copy()
    column_of_source, column_of_pivot = np.full(source.size, -1), np.full(pivot.size, -1)
    last = dict(zip(mined.tolist(), range(source.size)))
    last.pop(-1, None)
    for column, (image, number) in enumerate(last.items()):
        column_of_pivot[image], column_of_source[number] = column, column
    ours = _neighbours([checked_ids(r, pivot, "pivot_rows") for r in pivot_rows], column_of_pivot, window)
    theirs = _neighbours([checked_ids(r, source, "source_rows") for r in source_rows], column_of_source, window)
    row_of = np.repeat(np.arange(pivot.size), np.diff(ours.starts))
    norms = np.sqrt(np.bincount(row_of, ours.counts.astype(np.float64) ** 2, minlength=pivot.size))
    for i, candidates in _ambiguous(both):
        ids[i] = candidates[np.argmax(_agreement(theirs.row(i), ours, candidates, norms, len(last)))]
    return _map(ids, "cooccurrence", both)


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


def _ambiguous(both: Vocabularies) -> Iterator[tuple[int, np.ndarray]]:
    """Source ids without an exact match that have several nearest pieces, and the ids of those, ascending.

    By bytes, pieces without a visible character of the source's are not near.
    """
    missing = _without_image(both.strings, both.exact)
    wanted, choices = list(missing), [(i, p) for i, p in enumerate(both.choices) if p]
    numbers = np.asarray([i for i, _ in choices])
    best, found = nearest(wanted, both.choices, _beginnings(both, missing)[1])
    wanted, best = [w for w, n in zip(wanted, found.tolist()) if n >= 0], best[found >= 0]
    for at in range(0, len(wanted), CHUNK):
        some, bound = wanted[at : at + CHUNK], best[at : at + CHUNK]
        near = bounded(some, [p for _, p in choices], int(bound.max())) == bound[:, None]
        for text, row in zip(some, near):
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
    weight: Weight = "inverse",
    pieces: Pieces = "bytes",
) -> VocabMap:
    """Each source id to one of the pivot ids it was aligned with (section 5.4); ties go to the lowest pivot id.

    By bytes, a source piece that is a pivot piece goes to it, wherever it was aligned; control tokens and text never
    become each other; among equals stands first the pivot piece that begins the source's. A source id that was never
    aligned goes to the longest piece that begins it, else nowhere. As raw strings it goes to the pivot's unk, else its
    eos, else nowhere. Always bos to bos and eos to eos.

    Args:
      weight: "inverse" takes the smallest distance over logistic(count), so the more frequent among equally distant
        pairs; "max_count" the most frequent, then the nearest; "code" the smallest distance times logistic(count), as
        the official code does, which prefers rare pairs.
      pieces: as in `exact_map`.

    Raises:
      InputError: an unknown variant or weight.
    """
    for name, value, known in (("variant", variant, ("chat_v1", "chat_v2")), ("weight", weight, get_args(Weight))):
        if value not in known:
            raise InputError(f"'{value}' is unknown", field=name, cure=f"Known: {', '.join(known)}")
    both = Vocabularies(pivot, source, pieces)
    counts = _of_one_kind(counts, both)
    distance, begins = _pair_distances(counts, *compared(pivot, source, pieces), variant)
    often = 1.0 / (1.0 + np.exp(-counts.counts.astype(np.float64)))
    scores = {"code": often * distance, "inverse": distance / often, "max_count": -counts.counts}
    frequent = -counts.counts * (weight == "inverse")  # the logistic is 1 from some 37 on
    ties = (counts.pivot, ~begins & both.bytewise, distance * (weight == "max_count"), frequent)
    order = np.lexsort((*ties, scores[weight], counts.source))
    seen, at = np.unique(counts.source[order], return_index=True)
    fallback = next((i for i in (pivot.unk, pivot.eos) if i is not None), -1)
    if both.bytewise:
        ids = np.asarray([both.beginning(i) for i in range(source.size)], np.int32)
    else:
        ids = np.full(source.size, fallback, np.int32)
    ids[seen] = counts.pivot[order[at]]
    if both.bytewise:
        ids = both.with_specials(np.where(both.exact >= 0, both.exact, ids))
    for theirs, ours in ((source.bos, pivot.bos), (source.eos, pivot.eos)):
        if theirs is not None and ours is not None:
            ids[theirs] = ours
    return _map(ids, "statistics", both)


def _of_one_kind(counts: PairCounts, both: Vocabularies) -> PairCounts:
    """The counts without those of a control token and text; all of them where only strings are compared."""
    if not both.bytewise:
        return counts
    ours, theirs = (np.asarray([v.is_control(i) for i in range(v.size)]) for v in (both.pivot, both.source))
    kept = ours[counts.pivot] == theirs[counts.source]
    return PairCounts(counts.pivot[kept], counts.source[kept], counts.counts[kept])


def _pair_distances(
    counts: PairCounts, pivot: TokenizerView, source: TokenizerView, variant: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64[K] distances of the pieces without marks, a tenth where one contains the other; bool[K], whether the
    source's piece begins with the pivot's."""
    pairs = []
    for p, s in zip(counts.pivot.tolist(), counts.source.tolist()):
        theirs, ours = delete_marks(source.pieces[s], source), delete_marks(pivot.pieces[p], pivot)
        if variant == "chat_v2" and not (theirs and ours):
            theirs, ours = replace_marks(source.pieces[s], source, pivot), pivot.pieces[p]
        pairs.append((theirs, ours))
    if not pairs:
        return np.zeros(0), np.zeros(0, bool)
    distance = cpdist(*zip(*pairs), scorer=Levenshtein.distance, dtype=np.int32).astype(np.float64)
    near = np.asarray([0.1 if a in b or b in a else 1.0 for a, b in pairs])
    return distance * near, np.asarray([a.startswith(b) for a, b in pairs])
