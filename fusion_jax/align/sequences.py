"""Two tokenisations of one text, aligned: by dynamic programming over edit distances, or by common end offsets.

FuseLLM/FuseChat spec section 4 (costs, tie orders) and section 14 (exact speed-ups).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from fusion_jax.align.views import Pieces, TokenizerView, compared, delete_marks, detect_mark, replace_marks
from fusion_jax.errors import InputError

Variant = Literal["fusellm", "chat_v1", "chat_v2"]
Ids = Sequence[int] | np.ndarray

UP_BEFORE_LEFT: dict[Variant, bool] = {"fusellm": True, "chat_v1": True, "chat_v2": False}


class Alignment(NamedTuple):
    """The source tokens first[j]..last[j], both included, of each pivot token j.

    first, last: int32[m], not decreasing; -1 for a pivot token without a source token (only `byte_offsets` has any).
    cost: what the path costs, 0 where none was searched.
    """

    first: np.ndarray
    last: np.ndarray
    cost: float


def align(
    pivot_ids: Ids,
    source_ids: Ids,
    pivot: TokenizerView,
    source: TokenizerView,
    variant: Variant,
    pieces: Pieces = "bytes",
) -> Alignment:
    """The cheapest monotone path that uses every token of both sides, with the ties of the official code.

    Time and memory grow with m * n: (m + n) * n bytes of directions, some 40 ms at 2048 tokens a side.

    Args:
      pivot_ids, source_ids: int[m] and int[n], without padding.
      pieces: what distances are between: the "bytes" of the pieces, with spaces for marks, or "raw" as published, the
        vocabulary strings (fusellm, chat_v1) or decoded ids (chat_v2).

    Raises:
      InputError: an unknown variant, no tokens on a side, ids that are not in the view.
    """
    if variant not in get_args(Variant):
        raise InputError(f"'{variant}' is unknown", field="variant", cure=f"Known: {', '.join(get_args(Variant))}")
    pivot, source = compared(pivot, source, pieces, spaces=variant == "chat_v2")
    rows, row_of = _distinct(source_ids, source, variant, "source_ids")
    columns, column_of = _distinct(pivot_ids, pivot, variant, "pivot_ids")
    costs = _costs(rows, columns, pivot, source, variant)
    steps, cost = _fill(costs, row_of, column_of, UP_BEFORE_LEFT[variant])
    first, last = _trace(steps, len(row_of), len(column_of), UP_BEFORE_LEFT[variant])
    return Alignment(first, last, cost)


def align_tokens(
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    variant: Variant = "chat_v2",
    source_mark: str | None = None,
    target_mark: str | None = None,
) -> Alignment:
    """`align` on token strings: the source tokens of each target (pivot) token.

    Strings are compared as they are: pieces of two notations, SentencePiece's and byte-level BPE's, are better aligned
    by `align` with the tokenizers' views, which know what the pieces spell.

    Args:
      source_tokens, target_tokens: as a tokenizer writes them; chat_v2 was published for decoded tokens.
      source_mark, target_mark: what stands for a space in them, found in the strings where it is not given.

    Raises:
      InputError: an unknown variant, no tokens on a side, something else than strings of tokens.

    >>> found = align_tokens(["straight", "forward"], ["straightforward"])
    >>> found.first.tolist(), found.last.tolist()
    ([0], [1])
    """
    sides = []
    for name, tokens, mark in (
        ("source_tokens", source_tokens, source_mark), ("target_tokens", target_tokens, target_mark)
    ):  # fmt: skip
        if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
            cure = "Give tokenizer.convert_ids_to_tokens(ids), or ids and views to align"
            raise InputError("is not a list of token strings", field=name, cure=cure)
        if not tokens or not any(tokens):
            raise InputError("there is no token to align", field=name, cure="Leave out samples whose text is empty")
        strings = tuple(dict.fromkeys(tokens))
        number = {token: i for i, token in enumerate(strings)}
        sides.append(([number[t] for t in tokens], TokenizerView(strings, strings, mark or detect_mark(strings))))
    (source_ids, source), (pivot_ids, pivot) = sides
    return align(pivot_ids, source_ids, pivot, source, variant)


def checked_ids(ids: Ids, view: TokenizerView, field: str) -> np.ndarray:
    """int64[m] token ids.

    Raises:
      InputError: they are not integers in one dimension, or not in the view.
    """
    array = np.asarray(ids)
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        raise InputError("token ids must be integers in one dimension", field=field)
    array = array.reshape(-1).astype(np.int64)
    if array.size and not (array.min() >= 0 and array.max() < view.size):
        outside = array[(array < 0) | (array >= view.size)][0]
        problem = f"token id {outside} is not among the tokenizer's {view.size}"
        raise InputError(problem, field=field, cure="Use the ids of the tokenizer that the view was made of")
    return array


def _distinct(ids: Ids, view: TokenizerView, variant: Variant, field: str) -> tuple[list[str], np.ndarray]:
    """The different strings that the variant compares, and int64[m], which of them each token is."""
    array = checked_ids(ids, view, field)
    if not len(array):
        raise InputError("there is no token to align", field=field, cure="Leave out samples whose text is empty")
    used, inverse = np.unique(array, return_inverse=True)
    if variant == "chat_v2":
        strings = [view.decoded[i] for i in used]
    else:
        strings = [delete_marks(view.pieces[i], view) for i in used]
    numbers: dict[str, int] = {}
    number_of = np.asarray([numbers.setdefault(s, len(numbers)) for s in strings])
    return list(numbers), number_of[inverse]


def distances(queries: Sequence[str], choices: Sequence[str]) -> np.ndarray:
    """int32[q,c] Levenshtein distances over code points."""
    return cdist(queries, choices, scorer=Levenshtein.distance, dtype=np.int32)


def _costs(
    rows: list[str], columns: list[str], pivot: TokenizerView, source: TokenizerView, variant: Variant
) -> np.ndarray:
    """Cost of each source string (rows) against each pivot string: int32, float64 for chat_v1."""
    if variant == "chat_v2":
        return _decoded_costs(rows, columns, pivot, source)
    costs = distances(rows, columns)
    if variant == "fusellm":
        return costs
    # A contained string is as far away as it is shorter: few pairs are left to search.
    lengths = np.asarray([len(s) for s in rows])[:, None] - np.asarray([len(s) for s in columns])
    out = costs.astype(np.float64)
    for r, c in zip(*(index.tolist() for index in np.nonzero(costs == np.abs(lengths)))):
        if rows[r] in columns[c] or columns[c] in rows[r]:
            out[r, c] *= 0.1
    return out


def _decoded_costs(rows: list[str], columns: list[str], pivot: TokenizerView, source: TokenizerView) -> np.ndarray:
    """int32 distances without marks; with them, the source's replaced, where a string consists of nothing else."""
    bare_rows, bare_columns = [delete_marks(s, source) for s in rows], [delete_marks(s, pivot) for s in columns]
    costs = distances(bare_rows, bare_columns)
    replaced = [replace_marks(s, source, pivot) for s in rows]
    empty_rows = [i for i, s in enumerate(bare_rows) if not s]
    empty_columns = [i for i, s in enumerate(bare_columns) if not s]
    if empty_rows:
        costs[empty_rows] = distances([replaced[i] for i in empty_rows], columns)
    if empty_columns:
        costs[:, empty_columns] = distances(replaced, [columns[i] for i in empty_columns])
    return costs


def _fill(
    costs: np.ndarray, row_of: np.ndarray, column_of: np.ndarray, up_before_left: bool
) -> tuple[np.ndarray, float]:
    """Fill the table by anti-diagonals: d = i + j for source token i and pivot token j, both from 1.

    Returns:
      uint8[n+m+1, n+1], at [d, i] the first cheapest predecessor: 0 diagonal, 1 the earlier of up and left in the
      variant's order, 2 the later; and the cost of the path. Sums are taken in the order of the formula.
    """
    n, m = len(row_of), len(column_of)
    big = np.inf if costs.dtype.kind == "f" else np.iinfo(np.int32).max // 2
    steps = np.zeros((n + m + 1, n + 1), np.uint8)
    before, last, now = (np.full(n + 1, big, costs.dtype) for _ in range(3))
    before[0] = 0
    flat, start, offset = costs.ravel(), row_of * costs.shape[1], column_of[::-1].copy()
    differs = np.empty(n + 1, bool)
    for d in range(2, n + m + 1):
        low, high = max(1, d - m), min(n, d - 1) + 1
        best, step, other = now[low:high], steps[d, low:high], differs[low:high]
        diagonal, up, left = before[low - 1 : high - 1], last[low - 1 : high - 1], last[low:high]
        np.minimum(up, left, out=best)
        np.minimum(best, diagonal, out=best)
        np.not_equal(diagonal, best, out=step.view(bool))
        np.not_equal(up if up_before_left else left, best, out=other)
        other &= step.view(bool)
        step += other.view(np.uint8)
        best += flat[start[low - 1 : high - 1] + offset[m - d + low : m - d + high]]
        now[low - 1] = big
        if high <= n:
            now[high] = big
        before, last, now = last, now, before
    return steps, float(last[n])


def _trace(steps: np.ndarray, n: int, m: int, up_before_left: bool) -> tuple[np.ndarray, np.ndarray]:
    """First and last source token of each pivot token, int32[m] each, on the path back from the last pair."""
    first, last = [0] * m, [-1] * m
    up = 1 if up_before_left else 2
    i, j = n, m
    while i > 0 and j > 0:
        first[j - 1] = i - 1
        if last[j - 1] < 0:
            last[j - 1] = i - 1
        step = steps.item(i + j, i)
        if step == 0:
            i, j = i - 1, j - 1
        elif step == up:
            i -= 1
        else:
            j -= 1
    return np.asarray(first, np.int32), np.asarray(last, np.int32)


class _Places(NamedTuple):
    """Where tokens end: the text tokens and their ends; the others as {(text before it, how manieth there): token}."""

    text: np.ndarray
    ends: np.ndarray
    empty: dict[tuple[int, int], int]


def _places(spans: np.ndarray, field: str) -> _Places:
    array = np.asarray(spans)
    if array.size == 0:
        raise InputError("there is no token to align", field=field, cure="Leave out samples whose text is empty")
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise InputError("spans must be integers [tokens, 2]", field=field, cure="Give start and end of each token")
    starts, ends = array.astype(np.int64).T
    if (starts < 0).any() or (ends < starts).any():
        raise InputError("a span ends before it starts or starts before the text", field=field)
    reached = np.maximum.accumulate(ends)
    # An all-space token whose span was trimmed is empty, yet moves on in the text; a special token does not.
    text = (ends > starts) | (ends > np.concatenate([[0], reached[:-1]]))
    if (ends[text] != reached[text]).any():
        raise InputError("the ends of the spans go back in the text", field=field, cure="Keep the tokens in order")
    empty: dict[tuple[int, int], int] = {}
    seen: dict[int, int] = {}
    for index in np.nonzero(~text)[0].tolist():
        place = int(reached[index])
        empty[place, seen.setdefault(place, 0)] = index
        seen[place] += 1
    return _Places(np.nonzero(text)[0], ends[text], empty)


def byte_offsets(pivot_spans: np.ndarray, source_spans: np.ndarray) -> Alignment:
    """Tokens grouped at the offsets where tokens of both sides end: each pivot token gets its group's source tokens.

    Tokens with empty spans (special ones, padding) pair one to one with those at the same place of the text; a pivot
    token without a partner, also one in text that the source does not have, gets -1.

    Args:
      pivot_spans, source_spans: int[m,2] and int[n,2], start and end offsets in the same text, in bytes or characters.

    Raises:
      InputError: no tokens on a side, other shapes, spans that go back in the text.

    >>> found = byte_offsets(np.asarray([[0, 7], [7, 9], [9, 11]]), np.asarray([[0, 3], [3, 7], [7, 11]]))
    >>> found.first.tolist(), found.last.tolist()
    ([0, 2, 2], [1, 2, 2])
    """
    pivot, source = _places(pivot_spans, "pivot_spans"), _places(source_spans, "source_spans")
    first = np.full(len(pivot_spans), -1, np.int32)
    last = first.copy()
    common = np.intersect1d(pivot.ends, source.ends)
    groups, of_source = np.searchsorted(common, pivot.ends), np.searchsorted(common, source.ends)
    inside = groups < len(common)
    first[pivot.text[inside]] = source.text[np.searchsorted(of_source, groups[inside], "left")]
    last[pivot.text[inside]] = source.text[np.searchsorted(of_source, groups[inside], "right") - 1]
    for place, index in pivot.empty.items():
        if place in source.empty:
            first[index] = last[index] = source.empty[place]
    return Alignment(first, last, 0.0)
