"""A source's top-k next-token rows moved onto the pivot's positions and ids.

FuseLLM/FuseChat spec section 6 (rules), with the repairs of section 5.4 and the defaults of section 6.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from fusion_jax.align.sequences import Alignment, Ids, Variant, checked_ids
from fusion_jax.align.views import MARKS, TokenizerView, delete_marks, replace_marks
from fusion_jax.align.vocabulary import PairCounts, VocabMap, exact_map
from fusion_jax.display import brief
from fusion_jax.errors import InputError

Fallback = Literal["next", "input"]
Duplicates = Literal["first", "logsumexp"]


class RowRule(IntEnum):
    """What made an aligned row; its values index a coverage count, e.g. np.bincount(rows.rule, minlength=5)."""

    ONE_TO_ONE = 0  # the row of the one source token that equals the pivot token, maps to it (fusellm) or is its anchor
    SUFFIX = 1  # the row of the one source token that ends with the pivot token or ends it (chat_v1: contains it)
    ONE_TO_MANY = 2  # the row, or chat_v1's blend of rows, of some of several source tokens
    FALLBACK = 3  # one entry of logit 1, a token of the text
    EMPTY = 4  # no entry: the pivot's own distribution is to stand in


class TopRows(NamedTuple):
    """A source's largest logits at each position, descending: ids int[n,k], logits float[n,k], counts int[n].

    Only the first `counts` entries of a row are read.
    """

    ids: np.ndarray
    logits: np.ndarray
    counts: np.ndarray


class AlignedRows(NamedTuple):
    """Rows in pivot ids: ids int32[m,k'], logits float32[m,k'], counts int32[m], rule uint8[m] of `RowRule`.

    k' is k, or more where chat_v1 blends rows. Entries from `counts` on are 0. Logits are float64 if they were given
    so. Ids within a row differ; entries descend, but those of a blend stand row by row.
    """

    ids: np.ndarray
    logits: np.ndarray
    counts: np.ndarray
    rule: np.ndarray

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, eq=False)
class Rules:
    """How the rows of one source become rows of the pivot; make it once for a pair, not once for a text.

    vocab_map: with the exact map, fusellm is what the official code calls "hard"; in the chat variants, the map only
      serves source pieces that are no pivot piece.
    variant: sections 6.1 to 6.3.
    hard: chat_v2's exact mode: a row needs equal decoded tokens, an entry an equal piece. It takes the exact map.
    one_to_many: the chat variants' rules for pivot tokens with several source tokens (the official matrix flag);
      without it, such a position falls back.
    counts: chat_v1's pair counts, which weigh the blended rows.
    fallback: the token of a fallback row: "next", the one that the row should predict (at the last position the token
      itself), or "input", the position's own, as in the official code of fusellm and chat_v1.
    duplicates: where several source ids become one pivot id, "first" keeps the first and so the largest logit,
      "logsumexp" adds their masses up and sorts the row anew.
    pairs: (source id, pivot id) that mean the same under whatever name, which no string tells: BOS, EOS, what ends a
      turn (section 15). They stand above every map.

    Raises:
      InputError: an unknown option, a map or counts of other tokenizers, options that do not go together.
    """

    pivot: TokenizerView
    source: TokenizerView
    vocab_map: VocabMap
    variant: Variant = "chat_v2"
    hard: bool = False
    one_to_many: bool = True
    counts: PairCounts | None = None
    fallback: Fallback = "next"
    duplicates: Duplicates = "first"
    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        options = {"variant": get_args(Variant), "fallback": get_args(Fallback), "duplicates": get_args(Duplicates)}
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise InputError(f"'{getattr(self, name)}' is unknown", field=name, cure=f"Known: {', '.join(known)}")
        sizes = len(self.vocab_map.ids), self.vocab_map.pivot_size
        if sizes != (self.source.size, self.pivot.size):
            raise InputError(
                f"the map takes {sizes[0]} ids to {sizes[1]}, the tokenizers have {self.source.size} and "
                f"{self.pivot.size}", field="vocab_map", cure="Give the map of these two tokenizers",
            )  # fmt: skip
        for theirs, ours in self.pairs:
            if not (0 <= theirs < self.source.size and 0 <= ours < self.pivot.size):
                raise InputError(f"({theirs}, {ours}) are not ids of source and pivot", field="pairs")
        if self.hard and (self.variant != "chat_v2" or self.vocab_map.kind != "exact"):
            raise InputError("goes with chat_v2 and the exact map only", field="hard", cure="Leave it out")
        if self.variant == "chat_v1" and self.one_to_many and self.counts is None:
            raise InputError("chat_v1 weighs rows by pair counts, and there are none", field="counts")
        if self.counts is not None:
            _check_counts(self.counts, self.pivot, self.source)

    @cached_property
    def exact(self) -> np.ndarray:
        """int32[source size], the exact map's ids."""
        known = self.vocab_map.kind == "exact"
        return self.vocab_map.ids if known else exact_map(self.pivot, self.source).ids

    @cached_property
    def images(self) -> np.ndarray:
        """int32[source size], the pivot id that an entry of each source id becomes, -1 for none."""
        by_map = self.variant == "fusellm"
        ids = self.vocab_map.ids.copy() if by_map else np.where(self.exact >= 0, self.exact, self.vocab_map.ids)
        for theirs, ours in self.pairs:
            ids[theirs] = ours
        return ids

    @cached_property
    def image_of_text(self) -> dict[str, int]:
        """The image of each source piece by its string once marks are replaced, that of the last among equals."""
        strings = (replace_marks(piece, self.source, self.pivot) for piece in self.source.pieces)
        return dict(zip(strings, self.images.tolist(), strict=True))

    @cached_property
    def pair_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Pivot id * source size + source id of each counted pair, ascending, and its count; one pair to spare."""
        assert self.counts is not None
        keys = self.counts.pivot.astype(np.int64) * self.source.size + self.counts.source
        return np.append(keys, np.iinfo(np.int64).max), np.append(self.counts.counts, 0)


def _check_counts(counts: PairCounts, pivot: TokenizerView, source: TokenizerView) -> None:
    for ids, view in ((counts.pivot, pivot), (counts.source, source)):
        checked_ids(ids, view, "counts")


def align_distributions(
    rows: TopRows, alignment: Alignment, pivot_ids: Ids, source_ids: Ids, rules: Rules, anchors: Ids = ()
) -> AlignedRows:
    """A row of pivot ids for each of the pivot's m positions, made of the source's n rows.

    Args:
      alignment: of these ids; a position without a source token (-1) falls back.
      pivot_ids, source_ids: int[m] and int[n], without padding.
      anchors: int[a], positions that take the row of their one source token whatever the strings say (`ONE_TO_ONE`).

    Raises:
      InputError: no tokens on a side, ids that are not in the views, lengths that differ, an alignment of other ids,
        rows that do not descend or hold what is not finite, an anchor that has not one source token.
    """
    ours, theirs, plan = _planned(alignment, pivot_ids, source_ids, rules)
    mapped = _mapped(_checked_rows(rows, len(theirs), rules.source), rules)
    plan.rule[_checked_anchors(anchors, alignment)] = RowRule.ONE_TO_ONE
    return _collect(mapped, plan, np.append(ours[1:], ours[-1:]) if rules.fallback == "next" else ours)


def planned_rules(alignment: Alignment, pivot_ids: Ids, source_ids: Ids, rules: Rules) -> np.ndarray:
    """uint8[m] of `RowRule`, the rule of each pivot position as the tokens alone decide it, without any rows.

    In `align_distributions` a row that is taken turns out EMPTY besides where none of its entries has an image.

    Raises:
      InputError: as `align_distributions`.
    """
    return _planned(alignment, pivot_ids, source_ids, rules)[2].rule


class _Plan(NamedTuple):
    """The source row int64[m] that each position takes, where its rule uint8[m] takes one; blends by position."""

    row: np.ndarray
    rule: np.ndarray
    blends: dict[int, tuple[list[int], np.ndarray]]


def _planned(
    alignment: Alignment, pivot_ids: Ids, source_ids: Ids, rules: Rules
) -> tuple[np.ndarray, np.ndarray, _Plan]:
    """The checked ids, int64[m] and int64[n], and what each position takes."""
    ours, theirs = checked_ids(pivot_ids, rules.pivot, "pivot_ids"), checked_ids(source_ids, rules.source, "source_ids")
    for field, ids in (("pivot_ids", ours), ("source_ids", theirs)):
        if not len(ids):
            raise InputError("there is no token", field=field, cure="Leave out samples whose text is empty")
    ranges = _checked_alignment(alignment, len(ours), len(theirs))
    return ours, theirs, (_fusellm_plan if rules.variant == "fusellm" else _chat_plan)(ranges, ours, theirs, rules)


def _checked_alignment(alignment: Alignment, m: int, n: int) -> Alignment:
    first, last = np.asarray(alignment.first), np.asarray(alignment.last)
    if first.shape != (m,) or last.shape != (m,):
        raise InputError(f"is not one of {m} pivot tokens", field="alignment", cure="Align these ids")
    missing = (first == -1) & (last == -1)
    if not (missing | ((first >= 0) & (first <= last) & (last < n))).all():
        raise InputError(f"has a range outside the {n} source tokens", field="alignment", cure="Align these ids")
    return Alignment(first.astype(np.int64), last.astype(np.int64), alignment.cost)


def _checked_anchors(anchors: Ids, ranges: Alignment) -> np.ndarray:
    """int64[a]; an anchor's plan already names the row of its one source token."""
    array = np.asarray(anchors)
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        raise InputError("positions must be integers in one dimension", field="anchors")
    array = array.reshape(-1).astype(np.int64)
    if ((array < 0) | (array >= len(ranges.first))).any():
        raise InputError(f"a position is not among the {len(ranges.first)} pivot tokens", field="anchors")
    first, last = ranges.first[array], ranges.last[array]
    if ((first < 0) | (first != last)).any():
        wrong = int(array[(first < 0) | (first != last)][0])
        raise InputError(
            f"pivot token {wrong} has not one source token", field="anchors", cure="Align anchors one to one"
        )
    return array


def _checked_rows(rows: TopRows, n: int, source: TokenizerView) -> TopRows:
    """The rows as int64, float32 or float64, int64; entries from `counts` on hold id 0 and logit 0."""
    ids, logits, counts = (np.asarray(x) for x in rows)
    if ids.ndim != 2 or len(ids) != n or not ids.shape[1] or ids.dtype.kind not in "iu":
        raise InputError(f"must be integers [{n}, k], a row for each source token; got {ids.shape}", field="ids")
    if logits.shape != ids.shape or logits.dtype.kind != "f":
        raise InputError(f"must be floats {ids.shape} as the ids; got {logits.dtype} {logits.shape}", field="logits")
    if counts.shape != (n,) or counts.dtype.kind not in "iu" or ((counts < 0) | (counts > ids.shape[1])).any():
        raise InputError(f"must be {n} integers from 0 to {ids.shape[1]}", field="counts")
    exists = np.arange(ids.shape[1]) < counts[:, None]
    checked_ids(ids[exists], source, "ids")
    if not np.isfinite(logits[exists]).all():
        raise InputError("a logit is not finite", field="logits", cure="Keep logits in float32")
    if ((logits[:, :-1] < logits[:, 1:]) & exists[:, 1:]).any():
        raise InputError("a row does not descend", field="logits", cure="Sort each row by its logits")
    dtype = np.float64 if logits.dtype == np.float64 else np.float32
    return TopRows(np.where(exists, ids, 0).astype(np.int64), np.where(exists, logits, 0).astype(dtype), counts)


def _mapped(rows: TopRows, rules: Rules) -> TopRows:
    """The rows in pivot ids, entries without an image left out, each pivot id once."""
    exists = np.arange(rows.ids.shape[1]) < rows.counts[:, None]
    ids = np.where(exists, rules.images[rows.ids], -1)
    order = np.argsort(ids, 1, kind="stable")
    grouped = np.take_along_axis(ids, order, 1)
    starts = np.ones(ids.shape, bool)
    starts[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    kept, logits = np.empty(ids.shape, bool), rows.logits
    np.put_along_axis(kept, order, starts & (grouped >= 0), 1)
    rank = np.where(kept, 0, np.inf)
    if rules.duplicates == "logsumexp":
        sums = np.take_along_axis(logits, order, 1)
        sums[starts] = np.logaddexp.reduceat(sums.ravel(), np.flatnonzero(starts))
        logits = np.empty_like(sums)
        np.put_along_axis(logits, order, sums, 1)
        rank = np.where(kept, -logits, np.inf)
    front = np.argsort(rank, 1, kind="stable")
    counts = kept.sum(1)
    exists = np.arange(ids.shape[1]) < counts[:, None]
    ids, logits = (np.where(exists, np.take_along_axis(x, front, 1), 0) for x in (ids, logits))
    return TopRows(ids, logits, counts)


def _collect(mapped: TopRows, plan: _Plan, labels: np.ndarray) -> AlignedRows:
    """The planned rows; a fallback row points at its label."""
    blends = {i: _blend(mapped, *blend) for i, blend in plan.blends.items()}
    m, k = len(plan.row), mapped.ids.shape[1]
    width = max([k, *map(len, blends.values())])
    ids, logits = np.zeros((m, width), np.int32), np.zeros((m, width), mapped.logits.dtype)
    counts, rule = np.zeros(m, np.int32), plan.rule.copy()
    taken, fallback = rule < RowRule.FALLBACK, rule == RowRule.FALLBACK
    ids[taken, :k], logits[taken, :k] = mapped.ids[plan.row[taken]], mapped.logits[plan.row[taken]]
    counts[taken] = mapped.counts[plan.row[taken]]
    ids[fallback, 0], logits[fallback, 0], counts[fallback] = labels[fallback], 1.0, 1
    for i, blend in blends.items():
        counts[i] = len(blend)
        ids[i], logits[i] = 0, 0
        ids[i, : counts[i]], logits[i, : counts[i]] = list(blend), list(blend.values())
    rule[counts == 0] = RowRule.EMPTY
    return AlignedRows(ids, logits, counts, rule)


def _blend(mapped: TopRows, rows: Sequence[int], weights: np.ndarray) -> dict[int, float]:
    """{id: logit} of weighted rows one after the other, the maximum where rows share an id."""
    out: dict[int, float] = {}
    for row, weight in zip(rows, weights.tolist(), strict=True):
        used = slice(mapped.counts[row])
        for i, logit in zip(mapped.ids[row, used].tolist(), mapped.logits[row, used].tolist()):
            out[i] = max(out.get(i, -np.inf), logit * weight)
    return out


def _fusellm_plan(ranges: Alignment, ours: np.ndarray, theirs: np.ndarray, rules: Rules) -> _Plan:
    """Section 6.1: the one source token's row where it is, or maps to, the pivot token."""
    single = (ranges.first == ranges.last) & (ranges.first >= 0)
    candidates = theirs[ranges.first]
    taken = single & ((rules.exact[candidates] == ours) | (rules.images[candidates] == ours))
    if single[0] and rules.source.mark == MARKS[1]:
        pivot, mark = rules.pivot.pieces[ours[0]], rules.pivot.mark
        piece = replace_marks(rules.source.pieces[candidates[0]], rules.source, rules.pivot)
        if pivot.startswith(mark) and not piece.startswith(mark):
            taken[0] = pivot == mark + piece or rules.image_of_text.get(mark + piece, -1) == ours[0]
    return _Plan(ranges.first, np.where(taken, RowRule.ONE_TO_ONE, RowRule.FALLBACK).astype(np.uint8), {})


def _chat_plan(ranges: Alignment, ours: np.ndarray, theirs: np.ndarray, rules: Rules) -> _Plan:
    """Sections 6.2 and 6.3: strings are compared once for each different pivot token and source tokens."""
    rule = np.full(len(ours), RowRule.FALLBACK, np.uint8)
    row, blends = ranges.first.copy(), {}
    single = np.flatnonzero((ranges.first == ranges.last) & (ranges.first >= 0))
    pairs = ours[single] * rules.source.size + theirs[row[single]]
    distinct, inverse = np.unique(pairs, return_inverse=True)
    decided = [_of_one(pair // rules.source.size, pair % rules.source.size, rules) for pair in distinct.tolist()]
    rule[single] = np.asarray(decided, np.uint8)[inverse]
    known: dict[tuple[int, ...], _Cover] = {}
    for i in np.flatnonzero(ranges.first < ranges.last).tolist() if rules.one_to_many and not rules.hard else ():
        start = int(row[i])
        tokens = theirs[start : ranges.last[i] + 1].tolist()
        key = (int(ours[i]), *tokens)
        if key not in known:
            known[key] = _of_several(key[0], tokens, rules)
        rule[i], offsets = known[key]
        if len(offsets) > 1:
            used = [start + offset for offset in offsets]
            blends[i] = used, _weights(key[0], theirs[used], rules)
        elif offsets:
            row[i] += offsets[0]
    return _Plan(row, rule, blends)


def _of_one(pivot: int, source: int, rules: Rules) -> RowRule:
    if rules.variant == "chat_v1":
        ours, theirs = rules.pivot.pieces[pivot], replace_marks(rules.source.pieces[source], rules.source, rules.pivot)
        near = ours in theirs
    else:
        ours, theirs = rules.pivot.decoded[pivot], rules.source.decoded[source]
        near = not rules.hard and (ours.endswith(theirs) or theirs.endswith(ours))
    if ours == theirs:
        return RowRule.ONE_TO_ONE
    return RowRule.SUFFIX if near else RowRule.FALLBACK


class _Cover(NamedTuple):
    """The rule of a pivot token with several source tokens, and which of those give their rows (none: no row)."""

    rule: RowRule
    offsets: tuple[int, ...]


def _of_several(pivot: int, source: Sequence[int], rules: Rules) -> _Cover:
    return (_of_several_pieces if rules.variant == "chat_v1" else _of_several_decoded)(pivot, source, rules)


def _of_several_decoded(pivot: int, source: Sequence[int], rules: Rules) -> _Cover:
    """Section 6.2, rules 3 and 4."""
    whole, parts = rules.pivot.decoded[pivot], [rules.source.decoded[s] for s in source]
    bare = delete_marks(whole, rules.pivot)
    if whole != rules.pivot.mark:
        for offset, part in enumerate(delete_marks(p, rules.source) for p in parts):
            if bare.endswith(part) or part.endswith(bare):
                return _Cover(RowRule.ONE_TO_MANY, (offset,))
    cover = _greedy_cover(whole, parts)
    if cover:
        return _Cover(RowRule.ONE_TO_MANY, cover[-1:])
    joined = "".join(parts)
    return _Cover(RowRule.EMPTY if joined.endswith(whole) or whole.endswith(joined) else RowRule.FALLBACK, ())


def _of_several_pieces(pivot: int, source: Sequence[int], rules: Rules) -> _Cover:
    """Section 6.3."""
    whole = rules.pivot.pieces[pivot]
    parts = [replace_marks(rules.source.pieces[s], rules.source, rules.pivot) for s in source]
    if whole in parts:
        return _Cover(RowRule.ONE_TO_MANY, (parts.index(whole),))
    for offset, part in enumerate(parts):
        if whole in part:
            return _Cover(RowRule.ONE_TO_MANY, (offset,))
    cover = _greedy_cover(whole, parts)
    return _Cover(RowRule.ONE_TO_MANY if cover else RowRule.FALLBACK, cover)


def _greedy_cover(whole: str, parts: Sequence[str]) -> tuple[int, ...]:
    """From left to right the parts that the rest of the string starts with, none if they leave some of it."""
    used = []
    for offset, part in enumerate(parts):
        if whole.startswith(part):
            used.append(offset)
            whole = whole[len(part) :]
    return () if whole else tuple(used)


def _weights(pivot: int, source: np.ndarray, rules: Rules) -> np.ndarray:
    """float64, softmax of how often the pivot id was aligned with each of the source ids."""
    keys, counts = rules.pair_table
    wanted = pivot * rules.source.size + source
    at = np.searchsorted(keys, wanted)
    found = np.where(keys[at] == wanted, counts[at], 0).astype(np.float64)
    weights = np.exp(found - found.max())
    return weights / weights.sum()
