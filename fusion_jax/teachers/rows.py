"""What several teachers say of a text, in the pivot's tokens: rows of it, made when asked for.

FuseLLM and FuseChat, sections 2.1 (packing) and 8 of their specification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.align.distributions import AlignedRows
from fusion_jax.data.documents import Document, TeacherRow, TeacherText, scored_bytes
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.lazy import Lazy
from fusion_jax.store.parts import digest
from fusion_jax.teachers.settings import FusionSettings


class Opinion(NamedTuple):
    """One teacher on one text of m pivot tokens: its entries in pivot ids, and how well it knows the text.

    ids int32[m,k], logprobs float32[m,k], counts int32[m], rule uint8[m] of `RowRule`.
    metric: float, mean of -log p over its own scored tokens, or bits per byte; nan where nothing is scored.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    counts: np.ndarray
    rule: np.ndarray
    metric: float


class FusionRow(NamedTuple):
    """A text in m pivot tokens, which of them are scored, the pivot's own opinion first and the sources' behind it.

    segments: int32[m], which document each token is of (1 unless rows were packed).
    """

    ids: np.ndarray
    scored: np.ndarray
    opinions: tuple[Opinion, ...]
    segments: np.ndarray

    def __repr__(self) -> str:
        return brief(self)


def own_opinion(row: TeacherRow, metric: float, settings: FusionSettings) -> Opinion:
    """The pivot on its own tokens; where rounding is asked for, its raw logits, which round differently."""
    m, k = row.topk_ids.shape
    logprobs = row.topk_logprobs.astype(np.float32)
    if settings.rounding != "none":
        logprobs += row.logsumexp[:, None]
    counts, rule = np.full(m, k, np.int32), np.zeros(m, np.uint8)
    return Opinion(row.topk_ids, logprobs, counts, rule, metric)


def source_opinion(aligned: AlignedRows, metric: float) -> Opinion:
    """A source whose rows were aligned."""
    ids, logits, counts, rule = aligned
    return Opinion(ids, logits.astype(np.float32), counts, rule, metric)


def metric_of(row: TeacherRow, document: Document, settings: FusionSettings) -> float:
    """How well a teacher knows a text: nats a token of its own, or bits a byte; nan where nothing is scored."""
    nats, tokens = (float(x) for x in row.metric)
    if settings.metric == "ce":
        return nats / tokens if tokens else float("nan")
    size = scored_bytes(document, row.offsets)
    return nats / np.log(2) / size if size and tokens else float("nan")


Together = Callable[[Sequence[int]], list[Opinion]]


class Opinions(Lazy[Opinion]):
    """One teacher on every text, made when asked for; metrics float64[n] are known beforehand of stored teachers, of
    live ones, who say them with the rest, nan.

    made_of: what the opinions are of (their store's or folder's identity), so that work with them can be told apart.
    together: makes several. scored: bool[n], where the metric will be finite; where left out, the metrics tell.
    """

    def __init__(
        self,
        metrics: np.ndarray,
        make: Callable[[int], Opinion],
        made_of: str,
        together: Together | None = None,
        scored: np.ndarray | None = None,
    ) -> None:
        super().__init__(len(metrics), make, together)
        self.metrics, self.made_of = metrics, made_of
        self.scored = np.isfinite(metrics) if scored is None else scored


class FusionRows(Lazy[FusionRow]):
    """Rows made when asked for; sizes int64[n], their tokens, and metrics float64[n, teachers] (nan of live teachers)
    are known beforehand.

    made_of: of which texts and opinions. together: makes several. bare: the rows without opinions.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        metrics: np.ndarray,
        make: Callable[[int], FusionRow],
        made_of: str,
        together: Callable[[Sequence[int]], list[FusionRow]] | None = None,
        bare: Sequence[FusionRow] = (),
    ) -> None:
        super().__init__(len(sizes), make, together)
        self.sizes, self.metrics, self.made_of = sizes, metrics, made_of
        self.bare = bare


def metrics_of(rows: Sequence[TeacherRow], documents: Sequence[Document], settings: FusionSettings) -> np.ndarray:
    """float64[n], how well a teacher knows each text."""
    return np.asarray([metric_of(r, d, settings) for r, d in zip(rows, documents, strict=True)], np.float64)


def fusion_rows(texts: Sequence[TeacherText], opinions: Sequence[Opinions]) -> tuple[FusionRows, Counter[str]]:
    """Rows of the texts whose every metric is finite, and how many were left out (section 15: filter always).

    Args:
      opinions: of each teacher, the pivot first, one a text.
    """
    metrics = np.stack([o.metrics for o in opinions], 1)
    kept = np.flatnonzero(np.stack([o.scored for o in opinions], 1).all(1))
    if not len(kept):
        raise InputError("no text is left that every teacher has scored", field="texts", cure="Give more texts")

    def bare(index: int) -> FusionRow:
        text = texts[int(kept[index])]
        return FusionRow(text.ids, text.scored, (), np.ones(len(text.ids), np.int32))

    def rows(wanted: Sequence[int]) -> list[FusionRow]:
        views = zip(*(o.some(kept[list(wanted)].tolist()) for o in opinions), strict=True)
        return [bare(i)._replace(opinions=of_one) for i, of_one in zip(wanted, views, strict=True)]

    sizes = np.asarray([len(texts[i].ids) for i in kept.tolist()], np.int64)
    dropped = len(metrics) - len(kept)
    why = Counter({"a teacher scored no token of it, or not finitely": dropped} if dropped else {})
    made_of = digest([kept, *(x for text in texts for x in (text.ids, text.scored))])
    made_of = " ".join([made_of, *(o.made_of for o in opinions)])
    found = FusionRows(sizes, metrics[kept], lambda i: rows([i])[0], made_of, rows, Lazy(len(kept), bare))
    return found, why


def packed(rows: FusionRows, block: int, *, reset: bool) -> FusionRows:
    """Rows end to end, cut every `block` tokens, the last short block kept; a block's metric is the mean over its
    tokens (section 2.1, stage 5).

    reset: documents do not see each other, so nothing predicts the first token of one; else the document before does.
    """
    ends = np.cumsum(rows.sizes)
    starts = np.arange(0, ends[-1], block)

    def held(number: int) -> range:
        """The rows that a block has tokens of."""
        start, stop = int(starts[number]), min(int(starts[number]) + block, int(ends[-1]))
        first, last = np.searchsorted(ends, [start, stop - 1], "right").tolist()
        return range(first, last + 1)

    def cut(number: int, some: Sequence[FusionRow]) -> FusionRow:
        """A block out of these rows."""
        start, stop = int(starts[number]), min(int(starts[number]) + block, int(ends[-1]))
        first = held(number).start
        part = slice(start - int(ends[first] - rows.sizes[first]), stop - int(ends[first] - rows.sizes[first]))
        ids, scored = (np.concatenate([getattr(r, name) for r in some])[part] for name in ("ids", "scored"))
        segments = np.repeat(np.arange(1, len(some) + 1, dtype=np.int32), rows.sizes[first : first + len(some)])[part]
        opinions = tuple(_joined(views, part) for views in zip(*(r.opinions for r in some), strict=True))
        if not reset:
            scored = scored | (np.diff(segments, prepend=1) > 0)
        scored[0] = False
        return FusionRow(ids, scored, opinions, segments)

    def blocks(numbers: Sequence[int]) -> list[FusionRow]:
        wanted = sorted({row for number in numbers for row in held(number)})
        found = dict(zip(wanted, rows.some(wanted), strict=True))
        return [cut(number, [found[row] for row in held(number)]) for number in numbers]

    bare = Lazy(len(starts), lambda number: cut(number, [rows.bare[row] for row in held(number)]))
    bounds = np.append(starts, ends[-1])
    owner = np.minimum(np.searchsorted(ends, bounds, "right"), len(ends) - 1)
    before = np.cumsum(rows.metrics * rows.sizes[:, None], 0) - rows.metrics * rows.sizes[:, None]
    sums = before[owner] + rows.metrics[owner] * (bounds - (ends - rows.sizes)[owner])[:, None]
    sizes = np.diff(bounds)
    made_of = f"{rows.made_of} packed {block} {reset}"
    metrics = np.diff(sums, axis=0) / sizes[:, None]
    return FusionRows(sizes, metrics, lambda number: blocks([number])[0], made_of, blocks, bare)


def _joined(views: Sequence[Opinion], part: slice) -> Opinion:
    """A slice of opinions on texts that follow each other; the metric is the mean of the texts' at its tokens."""
    width = max(v.ids.shape[1] for v in views)
    ids, logprobs = (np.concatenate([_widened(x, width) for x in xs])[part] for xs in zip(*(v[:2] for v in views)))
    counts, rule = (np.concatenate([getattr(v, name) for v in views])[part] for name in ("counts", "rule"))
    metric = np.repeat([v.metric for v in views], [len(v.counts) for v in views])[part]
    return Opinion(ids, logprobs, counts, rule, float(metric.mean()))


def _widened(entries: np.ndarray, width: int) -> np.ndarray:
    return np.pad(entries, ((0, 0), (0, width - entries.shape[1])))
