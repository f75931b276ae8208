"""A source's top-k next-token rows moved onto the pivot's positions and ids.

FuseLLM/FuseChat spec section 6; which row a position takes is said by `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.align.rules import Plan, RowRule, Rules, plan_of
from fusion_jax.align.sequences import Alignment, Ids, checked_ids
from fusion_jax.align.views import TokenizerView
from fusion_jax.display import brief
from fusion_jax.errors import InputError


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
    mapped, kept = mapped_rows(_checked_rows(rows, len(theirs), rules.source), rules)
    plan.rule[_checked_anchors(anchors, alignment)] = RowRule.ONE_TO_ONE
    if rules.least_mass:
        plan.rule[(plan.rule < RowRule.FALLBACK) & (kept[plan.row] < rules.least_mass)] = RowRule.FALLBACK
    labels = {"next": np.append(ours[1:], ours[-1:]), "input": ours, "drop": None}[rules.fallback]
    return _collect(mapped, plan, labels)


def planned_rules(alignment: Alignment, pivot_ids: Ids, source_ids: Ids, rules: Rules) -> np.ndarray:
    """uint8[m] of `RowRule`, the rule of each pivot position as the tokens alone decide it, without any rows.

    In `align_distributions` a row that is taken turns out EMPTY besides where none of its entries has an image.

    Raises:
      InputError: as `align_distributions`.
    """
    return _planned(alignment, pivot_ids, source_ids, rules)[2].rule


def _planned(
    alignment: Alignment, pivot_ids: Ids, source_ids: Ids, rules: Rules
) -> tuple[np.ndarray, np.ndarray, Plan]:
    """The checked ids, int64[m] and int64[n], and what each position takes."""
    ours, theirs = checked_ids(pivot_ids, rules.pivot, "pivot_ids"), checked_ids(source_ids, rules.source, "source_ids")
    for field, ids in (("pivot_ids", ours), ("source_ids", theirs)):
        if not len(ids):
            raise InputError("there is no token", field=field, cure="Leave out samples whose text is empty")
    ranges = _checked_alignment(alignment, len(ours), len(theirs))
    return ours, theirs, plan_of(ranges, ours, theirs, rules)


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
        problem = f"pivot token {wrong} has not one source token"
        raise InputError(problem, field="anchors", cure="Align anchors one to one")
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


def mapped_rows(rows: TopRows, rules: Rules) -> tuple[TopRows, np.ndarray]:
    """The rows in pivot ids, entries without an image left out, each pivot id once; and float[n], which share of the
    mass of its entries each row keeps."""
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
    counts, mass = kept.sum(1), np.where(exists, np.exp(rows.logits - rows.logits[:, :1]), 0.0)
    held = np.where(ids >= 0, mass, 0.0).sum(1) / np.maximum(mass.sum(1), np.finfo(mass.dtype).tiny)
    exists = np.arange(ids.shape[1]) < counts[:, None]
    ids, logits = (np.where(exists, np.take_along_axis(x, front, 1), 0) for x in (ids, logits))
    return TopRows(ids, logits, counts), held


def _collect(mapped: TopRows, plan: Plan, labels: np.ndarray | None) -> AlignedRows:
    """The planned rows; a fallback row points at its label, or has no entry where there are no labels."""
    blends = {i: _blend(mapped, *blend) for i, blend in plan.blends.items()}
    m, k = len(plan.row), mapped.ids.shape[1]
    width = max([k, *map(len, blends.values())])
    ids, logits = np.zeros((m, width), np.int32), np.zeros((m, width), mapped.logits.dtype)
    counts, rule = np.zeros(m, np.int32), plan.rule.copy()
    taken, fallback = rule < RowRule.FALLBACK, rule == RowRule.FALLBACK
    ids[taken, :k], logits[taken, :k] = mapped.ids[plan.row[taken]], mapped.logits[plan.row[taken]]
    counts[taken] = mapped.counts[plan.row[taken]]
    if labels is not None:
        ids[fallback, 0], logits[fallback, 0], counts[fallback] = labels[fallback], 1.0, 1
    for i, blend in blends.items():
        counts[i] = len(blend)
        ids[i], logits[i] = 0, 0
        ids[i, : counts[i]], logits[i, : counts[i]] = list(blend), list(blend.values())
    rule[(counts == 0) & ~fallback] = RowRule.EMPTY
    return AlignedRows(ids, logits, counts, rule)


def _blend(mapped: TopRows, rows: Sequence[int], weights: np.ndarray) -> dict[int, float]:
    """{id: logit} of weighted rows one after the other, the maximum where rows share an id."""
    out: dict[int, float] = {}
    for row, weight in zip(rows, weights.tolist(), strict=True):
        used = slice(mapped.counts[row])
        for i, logit in zip(mapped.ids[row, used].tolist(), mapped.logits[row, used].tolist()):
            out[i] = max(out.get(i, -np.inf), logit * weight)
    return out
