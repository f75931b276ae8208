"""Which row of a source each pivot position takes: the rule tables of FuseLLM and FuseChat.

FuseLLM/FuseChat spec section 6, with the repairs of section 5.4 and the defaults of section 6.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from fusion_jax.align.matching import altered
from fusion_jax.align.sequences import Alignment, Variant, checked_ids
from fusion_jax.align.views import MARKS, Pieces, TokenizerView, by_bytes, compared, delete_marks, replace_marks
from fusion_jax.align.vocabulary import PairCounts, VocabMap, exact_map
from fusion_jax.errors import InputError

Fallback = Literal["next", "input", "drop"]
Duplicates = Literal["first", "logsumexp"]


class RowRule(IntEnum):
    """What made an aligned row; its values index a coverage count, e.g. np.bincount(rows.rule, minlength=5)."""

    ONE_TO_ONE = 0  # the row of the one source token that equals the pivot token, maps to it (fusellm) or is its anchor
    SUFFIX = 1  # the row of the one source token that ends with the pivot token or ends it (chat_v1: contains it)
    ONE_TO_MANY = 2  # the row, or chat_v1's blend of rows, of some of several source tokens
    FALLBACK = 3  # one entry of logit 1, a token of the text
    EMPTY = 4  # no entry: the pivot's own distribution is to stand in


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
      itself), "input", the position's own, as in the official code of fusellm and chat_v1, or none: "drop" leaves
      the row without an entry, so that nothing is compared there.
    duplicates: where several source ids become one pivot id, "first" keeps the first and so the largest logit,
      "logsumexp" adds their masses up and sorts the row anew.
    pairs: (source id, pivot id) that mean the same under whatever name, which no string tells: BOS, EOS, what ends a
      turn (section 15). They stand above every map.
    least_mass: a row falls back whose entries with an image hold less of its k entries' mass.
    pieces: what the rules compare: "bytes", what the pieces spell, with spaces for marks, or "raw" as published, the
      vocabulary strings (fusellm, chat_v1) or decoded ids (chat_v2).

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
    pieces: Pieces = "bytes"
    least_mass: float = 0.0

    def __post_init__(self) -> None:
        options = {
            "variant": get_args(Variant), "fallback": get_args(Fallback), "duplicates": get_args(Duplicates),
            "pieces": get_args(Pieces),
        }  # fmt: skip
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise InputError(f"'{getattr(self, name)}' is unknown", field=name, cure=f"Known: {', '.join(known)}")
        sizes = len(self.vocab_map.ids), self.vocab_map.pivot_size
        if sizes != (self.source.size, self.pivot.size):
            wanted = f"the tokenizers have {self.source.size} and {self.pivot.size}"
            problem = f"the map takes {sizes[0]} ids to {sizes[1]}, {wanted}"
            raise InputError(problem, field="vocab_map", cure="Give the map of these two tokenizers")
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
        known = self.vocab_map.kind == "exact" and (self.vocab_map.pieces == "bytes") == self.bytewise
        return self.vocab_map.ids if known else exact_map(self.pivot, self.source, self.pieces).ids

    @property
    def bytewise(self) -> bool:
        """Whether pieces are compared as bytes."""
        return by_bytes(self.pivot, self.source, self.pieces)

    @cached_property
    def views(self) -> tuple[TokenizerView, TokenizerView]:
        """Pivot and source with the strings that are compared."""
        return compared(self.pivot, self.source, self.pieces, spaces=self.variant == "chat_v2")

    @cached_property
    def images(self) -> np.ndarray:
        """int32[source size], the pivot id that an entry of each source id becomes, -1 for none."""
        by_map = self.variant == "fusellm"
        ids = self.vocab_map.ids.copy() if by_map else np.where(self.exact >= 0, self.exact, self.vocab_map.ids)
        for theirs, ours in self.pairs:
            ids[theirs] = ours
        return ids

    @cached_property
    def altered(self) -> np.ndarray:
        """bool[source size], whether the image of a source id is another text, under whatever comparison."""
        out = altered(self.images, self.pivot, self.source)
        out[[theirs for theirs, _ in self.pairs]] = False  # these are meant
        return out

    @cached_property
    def image_of_text(self) -> dict[str, int]:
        """The image of each source piece by its string once marks are replaced, that of the last among equals."""
        pivot, source = self.views
        strings = (replace_marks(piece, source, pivot) for piece in source.pieces)
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


class Plan(NamedTuple):
    """The source row int64[m] that each position takes, where its rule uint8[m] takes one; blends by position."""

    row: np.ndarray
    rule: np.ndarray
    blends: dict[int, tuple[list[int], np.ndarray]]


def plan_of(ranges: Alignment, ours: np.ndarray, theirs: np.ndarray, rules: Rules) -> Plan:
    """What each pivot position takes.

    Args:
      ranges: of int64 ranges, -1 for a position without a source token.
      ours, theirs: int64[m] and int64[n] ids of pivot and source.
    """
    return (_fusellm_plan if rules.variant == "fusellm" else _chat_plan)(ranges, ours, theirs, rules)


def _fusellm_plan(ranges: Alignment, ours: np.ndarray, theirs: np.ndarray, rules: Rules) -> Plan:
    """Section 6.1: the one source token's row where it is, or maps to, the pivot token."""
    single = (ranges.first == ranges.last) & (ranges.first >= 0)
    candidates = theirs[ranges.first]
    taken = single & ((rules.exact[candidates] == ours) | (rules.images[candidates] == ours))
    pivot, source = rules.views
    if rules.bytewise:  # several pivot pieces may spell the same
        pairs = zip(candidates.tolist(), ours.tolist(), strict=True)
        taken |= single & np.asarray([_same_text(p, s, rules) for s, p in pairs])
    if single[0] and (rules.bytewise or source.mark == MARKS[1]):
        whole, mark = pivot.pieces[ours[0]], pivot.mark
        piece = replace_marks(source.pieces[candidates[0]], source, pivot)
        if whole.startswith(mark) and not piece.startswith(mark):
            taken[0] = whole == mark + piece or rules.image_of_text.get(mark + piece, -1) == ours[0]
        elif rules.bytewise and piece == mark + whole:  # here the source begins a text with a space
            taken[0] = True
    return Plan(ranges.first, np.where(taken, RowRule.ONE_TO_ONE, RowRule.FALLBACK).astype(np.uint8), {})


def _same_text(pivot: int, source: int, rules: Rules) -> bool:
    spelled = (rules.pivot.piece_bytes or ())[pivot]
    return spelled is not None and spelled == (rules.source.piece_bytes or ())[source]


def _chat_plan(ranges: Alignment, ours: np.ndarray, theirs: np.ndarray, rules: Rules) -> Plan:
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
    return Plan(row, rule, blends)


def _of_one(pivot: int, source: int, rules: Rules) -> RowRule:
    our_view, their_view = rules.views
    if rules.variant == "chat_v1":
        ours, theirs = our_view.pieces[pivot], replace_marks(their_view.pieces[source], their_view, our_view)
        near = ours in theirs
    else:
        ours, theirs = our_view.decoded[pivot], their_view.decoded[source]
        near = not rules.hard and (ours.endswith(theirs) or theirs.endswith(ours))
    if ours == theirs:
        return RowRule.ONE_TO_ONE
    named = rules.bytewise and (rules.pivot.is_control(pivot) or rules.source.is_control(source))
    return RowRule.SUFFIX if near and not named else RowRule.FALLBACK


class _Cover(NamedTuple):
    """The rule of a pivot token with several source tokens, and which of those give their rows (none: no row)."""

    rule: RowRule
    offsets: tuple[int, ...]


def _of_several(pivot: int, source: Sequence[int], rules: Rules) -> _Cover:
    return (_of_several_pieces if rules.variant == "chat_v1" else _of_several_decoded)(pivot, source, rules)


def _of_several_decoded(pivot: int, source: Sequence[int], rules: Rules) -> _Cover:
    """Section 6.2, rules 3 and 4."""
    our_view, their_view = rules.views
    whole, parts = our_view.decoded[pivot], [their_view.decoded[s] for s in source]
    bare, cover = delete_marks(whole, our_view), _greedy_cover(whole, parts)
    if cover and rules.bytewise:  # single bytes recur within a character
        return _Cover(RowRule.ONE_TO_MANY, cover[-1:])
    if whole != our_view.mark:
        for offset, part in enumerate(delete_marks(p, their_view) for p in parts):
            if bare.endswith(part) or part.endswith(bare):
                return _Cover(RowRule.ONE_TO_MANY, (offset,))
    if cover:
        return _Cover(RowRule.ONE_TO_MANY, cover[-1:])
    joined = "".join(parts)
    return _Cover(RowRule.EMPTY if joined.endswith(whole) or whole.endswith(joined) else RowRule.FALLBACK, ())


def _of_several_pieces(pivot: int, source: Sequence[int], rules: Rules) -> _Cover:
    """Section 6.3."""
    our_view, their_view = rules.views
    whole = our_view.pieces[pivot]
    parts = [replace_marks(their_view.pieces[s], their_view, our_view) for s in source]
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
