"""Positions at which two models have read the same text and are about to read the same characters.

ProFuser, section 5.2 of its specification (its decision 6): no search and no comparison of pieces. A source's row is
taken where both prefixes end at the same character and both next tokens do, so that it is conditioned on the same text
and predicts a token of the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.align.distributions import AlignedRows, TopRows, mapped_rows
from fusion_jax.align.rules import RowRule, Rules
from fusion_jax.data.documents import Span, token_range

OPEN, ENDED = -2, -1
"""In the place of where the next token ends: there is none in this content; the content ends with it."""


class PlacedText(NamedTuple):
    """A text as one model reads it: ids int32[T], offsets int32[T,2], their characters; contents: the spans that are
    the same string for all models; end: the token that ends a content, where there is one."""

    ids: np.ndarray
    offsets: np.ndarray
    contents: Sequence[Span]
    end: int | None = None


class _Places(NamedTuple):
    """Positions of a content at which a prefix ends: position, characters read by then, and by the next token."""

    position: list[int]
    read: list[int]
    then: list[int]


def same_prefixes(pivot: PlacedText, source: PlacedText, *, alike: bool = False) -> np.ndarray:
    """int64[m], for each of the pivot's positions the source's position whose row it takes, -1 for none.

    The position before a content has read nothing of it on either side; it needs no equal next token, unless a token of
    one side reaches from before into the content.

    Args:
      alike: both have one tokenizer; of contents in the same tokens every position has its counterpart then.
    """
    out = np.full(len(pivot.ids), -1, np.int64)
    for ours, theirs in zip(pivot.contents, source.contents, strict=True):
        (p, q), (s, t) = token_range(pivot.offsets, ours), token_range(source.offsets, theirs)
        if p == q or s == t:
            continue
        if p and s and (pivot.offsets[p, 0] < ours[0]) == (source.offsets[s, 0] < theirs[0]):
            out[p - 1] = s - 1
        if alike and np.array_equal(pivot.ids[p:q], source.ids[s:t]):
            ends = [_ended(side, last) for side, last in ((pivot, q), (source, t))]
            out[p : q - 1] = np.arange(s, t - 1)
            out[q - 1] = t - 1 if all(ends) else -1
            continue
        known = dict(zip(*_by_ends(_places(source, theirs, s, t)), strict=True))
        for end, place in zip(*_by_ends(_places(pivot, ours, p, q)), strict=True):
            out[place] = known.get(end, -1)
    return out


def _places(side: PlacedText, span: Span, first: int, last: int) -> _Places:
    """The tokens first..last-1 behind which a whole character has been read."""
    starts, ends = (side.offsets[first:last] - span[0]).T.tolist()
    # Bytes of a character share its end, or begin where it does.
    whole = [n + 1 == len(ends) or (ends[n + 1] > end and starts[n + 1] >= end) for n, end in enumerate(ends)]
    ended = _ended(side, last)
    found = _Places([], [], [])
    for n, end in enumerate(ends):
        if whole[n]:
            inner = n + 1 < len(ends)
            found.position.append(first + n)
            found.read.append(end)
            found.then.append((ends[n + 1] if whole[n + 1] else OPEN) if inner else ENDED if ended else OPEN)
    return found


def _ended(side: PlacedText, last: int) -> bool:
    """Whether the token behind a content ends it."""
    return last < len(side.ids) and side.end is not None and int(side.ids[last]) == side.end


def _by_ends(places: _Places) -> tuple[list[tuple[int, int]], list[int]]:
    """(characters read, read by the next token) of the positions whose next token is known, and the positions."""
    kept = [n for n, then in enumerate(places.then) if then != OPEN]
    return [(places.read[n], places.then[n]) for n in kept], [places.position[n] for n in kept]


def prefix_rows(rows: TopRows, sources: np.ndarray, labels: np.ndarray, rules: Rules) -> AlignedRows:
    """A row of pivot ids for each of the m positions; entries that become one id are one, their masses added.

    A position without a source position, or whose row keeps less than `rules.least_mass` of its mass in the pivot's
    vocabulary, falls back: it has no entry (`fallback` "drop"), or its label alone.

    Args:
      sources: int64[m] of `same_prefixes`. labels: int[m], the token that each position should predict.
    """
    mapped, kept = mapped_rows(rows, rules)
    taken = sources >= 0
    taken[taken] = kept[sources[taken]] >= rules.least_mass
    m, k = len(sources), mapped.ids.shape[1]
    ids, logits, counts = np.zeros((m, k), np.int32), np.zeros((m, k), mapped.logits.dtype), np.zeros(m, np.int32)
    ids[taken], logits[taken] = mapped.ids[sources[taken]], mapped.logits[sources[taken]]
    counts[taken] = mapped.counts[sources[taken]]
    if rules.fallback != "drop":
        ids[~taken, 0], logits[~taken, 0], counts[~taken] = labels[~taken], 1.0, 1
    rule = np.where(taken, RowRule.ONE_TO_ONE, RowRule.FALLBACK).astype(np.uint8)
    rule[taken & (counts == 0)] = RowRule.EMPTY
    return AlignedRows(ids, logits, counts, rule)
