"""A whole corpus of one pivot and one source: tokens aligned once, then the source's rows moved, in parallel.

Both stages keep their results in a folder of parts and go on where they were cut short; the ranges of the first serve
the pair counts, the vocabulary maps and the second (FuseLLM/FuseChat spec sections 2, 6, 14).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from fusion_jax.align.distributions import AlignedRows, TopRows, align_distributions
from fusion_jax.align.rules import Rules
from fusion_jax.align.sequences import Alignment, Variant, align, byte_offsets
from fusion_jax.align.views import Pieces, TokenizerView, by_bytes, fingerprint
from fusion_jax.data.documents import TeacherRow
from fusion_jax.errors import InputError
from fusion_jax.paths import as_path
from fusion_jax.store.parts import Arrays, Job, Part, Stored, digest, make_parts

Method = Literal["fusellm", "chat_v1", "chat_v2", "byte_offsets"]
PART_SIZE = 64
FORMAT = 1  # of the parts; another one makes old folders strangers


class PairRecord(NamedTuple):
    """A text as the pivot and one source read it.

    pivot_ids, pivot_offsets: int32[m] tokens and int32[m,2], their characters in the pivot's text.
    source: the source's row, whose n `ids` and `offsets` are its tokens and their characters in the source's text.
    segments: int[S,4] token ranges (pivot start, pivot end, source start, source end), ends excluded, that are aligned
      with each other and with nothing else; ascending on both sides. Plain text is one segment (0, m, 0, n).
      int[S,6] adds the characters at which the same content begins in either text: "byte_offsets" counts from there,
      and what lies before counts as 0. Without them, both offsets must count in one and the same text.
    anchors: int[A,2] (pivot position, source position); such a pivot token gets this source token as its range, inside
      a segment or outside, and takes its row whatever the strings say: the token before an answer, say.

    Pivot tokens without a segment and without an anchor have no source token, so their rows fall back.
    """

    pivot_ids: np.ndarray
    pivot_offsets: np.ndarray
    source: TeacherRow
    segments: np.ndarray
    anchors: np.ndarray | tuple[()] = ()


def whole_text(pivot_ids: np.ndarray, pivot_offsets: np.ndarray, source: TeacherRow) -> PairRecord:
    """The record of a plain text, all of which is aligned."""
    segments = np.asarray([[0, len(pivot_ids), 0, len(source.ids)]], np.int32)
    return PairRecord(pivot_ids, pivot_offsets, source, segments)


def align_corpus(
    folder: str | os.PathLike[str],
    records: Sequence[PairRecord],
    pivot: TokenizerView,
    source: TokenizerView,
    *,
    variant: Method = "chat_v2",
    pieces: Pieces = "bytes",
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    part_size: int = PART_SIZE,
) -> Stored[Alignment]:
    """The ranges of every record, made where they are not there yet and read from the folder when asked for.

    `cost` is the sum over a record's segments. `count_pairs` counts the pair of an anchor like any other.

    Args:
      records: read here, twice: once to tell what the folder is of, once for the parts to be made.
      pieces: as in `sequences.align`; "byte_offsets" compares none.
      workers: processes, 0 for none besides this one; see `parts.make_parts`, also for `progress` and interrupts.
      part_size: records to a part.

    Raises:
      InputError: an unknown variant; a record without tokens on a side, with ids that are not in the views, or whose
        segments or anchors are not as `PairRecord` says; a folder of something else, a part that is cut short.
    """
    if variant not in get_args(Method):
        raise InputError(f"'{variant}' is unknown", field="variant", cure=f"Known: {', '.join(get_args(Method))}")
    offsets = variant == "byte_offsets"

    def items(wanted: range) -> list[_Tokens]:
        return [_tokens(records[i], i + 1, offsets) for i in wanted]

    bytewise = by_bytes(pivot, source, pieces) and not offsets
    made_of = {
        "stage": "ranges", "format": FORMAT, **_sides(pivot, source, bytewise), "variant": variant,
        "inputs": digest(a for i in range(len(records)) for t in items(range(i, i + 1)) for a in t),
    }  # fmt: skip
    job = Job(as_path(folder), made_of, len(records), part_size)
    make_parts(job, _Ranges(pivot, source, variant, "bytes" if bytewise else "raw"), items, workers, progress)
    return Stored(job, _read_ranges)


def align_rows(
    folder: str | os.PathLike[str],
    records: Sequence[PairRecord],
    alignments: Sequence[Alignment],
    rules: Rules,
    *,
    raw: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    part_size: int = PART_SIZE,
) -> Stored[AlignedRows]:
    """The source's rows of every record on the pivot's positions; `logits` are its log-probs in float32 or, where `raw`
    and of chat_v1, which scales them, its logits.

    Kept in float32: float16 knows a logit of 20 only to 1/64, which is one per cent of a probability, and would save a
    quarter of the folder.

    Args: as in `align_corpus`.
      alignments: one of each record, with its anchors.

    Raises:
      InputError: as `align_corpus` and `align_distributions`; another number of alignments than of records.
    """
    if len(alignments) != len(records):
        problem = f"there are {len(alignments)} for {len(records)} records"
        raise InputError(problem, field="alignments", cure="Align these records")

    def items(wanted: range) -> list[_Rows]:
        return [_rows(records[i], alignments[i], i + 1) for i in wanted]

    counts = rules.counts
    made_of = {
        "stage": "rows", "format": FORMAT, **_sides(rules.pivot, rules.source, rules.bytewise),
        "variant": rules.variant, "hard": rules.hard, "one_to_many": rules.one_to_many, "fallback": rules.fallback,
        "duplicates": rules.duplicates, "raw": raw, "pairs": [list(p) for p in rules.pairs],
        "map": rules.vocab_map.kind, "map_ids": digest([rules.vocab_map.ids]),
        "counts": None if counts is None else digest(counts),
        "inputs": digest(a for i in range(len(records)) for row in items(range(i, i + 1)) for a in row),
        **({"least_mass": rules.least_mass} if rules.least_mass else {}),  # which older folders do not know
    }  # fmt: skip
    job = Job(as_path(folder), made_of, len(records), part_size)
    make_parts(job, _Moves(rules, raw or rules.variant == "chat_v1"), items, workers, progress)
    return Stored(job, _read_rows)


def moved(record: PairRecord, alignment: Alignment, rules: Rules, *, raw: bool = False) -> AlignedRows:
    """One record's rows, as `align_rows` keeps them; arguments alike."""
    return _Moves(rules, raw or rules.variant == "chat_v1").one(_rows(record, alignment, 1))


def _sides(pivot: TokenizerView, source: TokenizerView, bytewise: bool) -> dict[str, str]:
    """What a stage knows the two tokenizers by; only one that compares bytes says so, as older folders do not."""
    pieces: Pieces = "bytes" if bytewise else "raw"
    sides = {"pivot": fingerprint(pivot, pieces), "source": fingerprint(source, pieces)}
    return sides | ({"pieces": pieces} if bytewise else {})


class _Tokens(NamedTuple):
    """What the ranges depend on, int32 all; the offsets are empty where the variant does not look at them."""

    pivot_ids: np.ndarray
    source_ids: np.ndarray
    segments: np.ndarray
    anchors: np.ndarray
    pivot_offsets: np.ndarray
    source_offsets: np.ndarray


class _Rows(NamedTuple):
    """What the rows depend on besides the rules; `anchors` int32[A] are pivot positions."""

    pivot_ids: np.ndarray
    source_ids: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    logsumexp: np.ndarray
    anchors: np.ndarray
    first: np.ndarray
    last: np.ndarray


def _integers(value: object, number: int, field: str, columns: tuple[int, ...] = ()) -> np.ndarray:
    """int32 of one dimension, or of two with one of these numbers of columns."""
    array = np.asarray(value)
    if not array.size:
        array = np.zeros((0, *columns[:1]), np.int32)
    if array.dtype.kind not in "iu" or array.ndim != 1 + bool(columns) or (columns and array.shape[1] not in columns):
        shape = "[n]" if not columns else " or ".join(f"[n, {c}]" for c in columns)
        raise InputError(f"must be integers {shape}; got {array.dtype} {array.shape}", record=number, field=field)
    out = array.astype(np.int32)
    if out.dtype != array.dtype and not np.array_equal(out, array):
        raise InputError("holds a number beyond int32", record=number, field=field)
    return out


def _tokens(record: PairRecord, number: int, offsets: bool) -> _Tokens:
    ours, theirs = (record.pivot_offsets, record.source.offsets) if offsets else ((), ())
    return _Tokens(
        _integers(record.pivot_ids, number, "pivot_ids"), _integers(record.source.ids, number, "source_ids"),
        _integers(record.segments, number, "segments", (4, 6)), _integers(record.anchors, number, "anchors", (2,)),
        _integers(ours, number, "pivot_offsets", (2,)), _integers(theirs, number, "source_offsets", (2,)),
    )  # fmt: skip


def _rows(record: PairRecord, alignment: Alignment, number: int) -> _Rows:
    source = record.source
    return _Rows(
        _integers(record.pivot_ids, number, "pivot_ids"), _integers(source.ids, number, "source_ids"),
        np.asarray(source.topk_ids), np.asarray(source.topk_logprobs), np.asarray(source.logsumexp),
        _integers(record.anchors, number, "anchors", (2,))[:, 0].copy(),
        _integers(alignment.first, number, "alignment"), _integers(alignment.last, number, "alignment"),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Ranges:
    """The task of the first stage."""

    pivot: TokenizerView
    source: TokenizerView
    variant: Method
    pieces: Pieces

    def one(self, item: _Tokens) -> Alignment:
        _check_places(item)
        if self.variant == "byte_offsets":
            _check_offsets(item)
        first = np.full(len(item.pivot_ids), -1, np.int32)
        last, cost = first.copy(), 0.0
        for segment in item.segments:
            start, end, offset = segment[:3].tolist()
            part = self._segment(item, segment)
            first[start:end] = np.where(part.first < 0, -1, part.first + offset)
            last[start:end] = np.where(part.last < 0, -1, part.last + offset)
            cost += part.cost
        positions, partners = item.anchors.T
        first[positions] = last[positions] = partners
        return Alignment(first, last, cost)

    def _segment(self, item: _Tokens, segment: np.ndarray) -> Alignment:
        """The alignment of a segment, its source tokens counted from the segment's first."""
        ours, theirs = slice(*segment[:2].tolist()), slice(*segment[2:4].tolist())
        if self.variant != "byte_offsets":
            variant: Variant = self.variant
            return align(item.pivot_ids[ours], item.source_ids[theirs], self.pivot, self.source, variant, self.pieces)
        spans = item.pivot_offsets[ours], item.source_offsets[theirs]
        begins = segment[4:].tolist() or (0, 0)
        return byte_offsets(*(np.maximum(span - begin, 0) for span, begin in zip(spans, begins, strict=True)))

    def pack(self, results: Sequence[Alignment]) -> Arrays:
        return {
            "lengths": np.asarray([len(a.first) for a in results], np.int32),
            "cost": np.asarray([a.cost for a in results], np.float64),
            "first": np.concatenate([a.first for a in results]),
            "last": np.concatenate([a.last for a in results]),
        }


def _read_ranges(part: Part, number: int) -> Alignment:
    first, last = (part.some(name, part.lengths, number) for name in ("first", "last"))
    return Alignment(first, last, float(part.whole("cost")[number]))


def _check_places(item: _Tokens) -> None:
    """Segments and anchors lie within the tokens, and no token lies in two of them."""
    sizes = len(item.pivot_ids), len(item.source_ids)
    for field, size in zip(("pivot_ids", "source_ids"), sizes, strict=True):
        if not size:
            raise InputError("there is no token", field=field, cure="Leave out samples whose text is empty")
    for name, column, size in (("pivot", 0, sizes[0]), ("source", 2, sizes[1])):
        bounds = item.segments[:, column : column + 2]
        if (bounds[:, 0] >= bounds[:, 1]).any():
            raise InputError(f"one has no {name} token", field="segments", cure="Leave out segments without a token")
        flat = np.concatenate([[0], bounds.ravel(), [size]])
        if (flat[1:] < flat[:-1]).any():
            problem = f"they overlap, go back or leave the {size} {name} tokens"
            raise InputError(problem, field="segments", cure="Give the token ranges in order")
    if (item.anchors < 0).any() or (item.anchors >= sizes).any():
        raise InputError(f"one is outside the {sizes[0]} and {sizes[1]} tokens", field="anchors")
    if len(np.unique(item.anchors[:, 0])) != len(item.anchors):
        raise InputError("a pivot token has two", field="anchors", cure="Give each pivot token one at most")


def _check_offsets(item: _Tokens) -> None:
    sides = (item.pivot_ids, item.pivot_offsets), (item.source_ids, item.source_offsets)
    for field, (ids, offsets) in zip(("pivot_offsets", "source_offsets"), sides, strict=True):
        if len(offsets) != len(ids):
            problem = f"there are {len(offsets)} for {len(ids)} tokens"
            raise InputError(problem, field=field, cure="Give the offsets of these tokens")


@dataclass(frozen=True, eq=False)
class _Moves:
    """The task of the second stage."""

    rules: Rules
    raw: bool

    def one(self, item: _Rows) -> AlignedRows:
        rows = top_rows(item, self.raw)
        alignment = Alignment(item.first, item.last, 0.0)
        return align_distributions(rows, alignment, item.pivot_ids, item.source_ids, self.rules, item.anchors)

    def pack(self, results: Sequence[AlignedRows]) -> Arrays:
        """Of each row the entries that exist; `widths` and `entries` are k' and their number, record by record."""
        inside = [_inside(r.ids.shape[1], r.counts) for r in results]
        return {
            "lengths": np.asarray([len(r.counts) for r in results], np.int32),
            "widths": np.asarray([r.ids.shape[1] for r in results], np.int32),
            "entries": np.asarray([i.sum() for i in inside], np.int64),
            "ids": np.concatenate([r.ids[i] for r, i in zip(results, inside, strict=True)]),
            "logits": np.concatenate([r.logits[i] for r, i in zip(results, inside, strict=True)]).astype(np.float32),
            "counts": np.concatenate([r.counts for r in results]),
            "rule": np.concatenate([r.rule for r in results]),
        }


def _inside(width: int, counts: np.ndarray) -> np.ndarray:
    """bool[m,width], the entries that exist."""
    return np.arange(width) < counts[:, None]


def top_rows(item: _Rows | TeacherRow, raw: bool) -> TopRows:
    """The source's log-probs, float32[n,K]; or its logits where `raw`."""
    n = len(item.source_ids if isinstance(item, _Rows) else item.ids)
    if item.topk_ids.ndim != 2 or item.topk_ids.shape != item.topk_logprobs.shape or item.logsumexp.shape != (n,):
        shapes = f"{item.topk_ids.shape}, {item.topk_logprobs.shape} and {item.logsumexp.shape}"
        problem = f"the shapes {shapes} are no rows of {n} tokens"
        raise InputError(problem, field="source", cure="Give the row that was stored with these tokens")
    logits = item.topk_logprobs.astype(np.float32)
    if raw:
        logits += item.logsumexp.astype(np.float32)[:, None]
    return TopRows(item.topk_ids, logits, np.full(len(item.topk_ids), item.topk_ids.shape[1]))


def _read_rows(part: Part, number: int) -> AlignedRows:
    counts, rule = (part.some(name, part.lengths, number) for name in ("counts", "rule"))
    inside, entries = _inside(int(part.whole("widths")[number]), counts), part.whole("entries")
    ids, logits = np.zeros(inside.shape, np.int32), np.zeros(inside.shape, np.float32)
    ids[inside], logits[inside] = (part.some(name, entries, number) for name in ("ids", "logits"))
    return AlignedRows(ids, logits, counts, rule)
