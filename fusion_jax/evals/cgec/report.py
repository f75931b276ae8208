"""Counts of edits, the reference that is kept of several, and the report of a scorer.

P = TP / (TP + FP), 1 where FP = 0; R = TP / (TP + FN), 1 where FN = 0; F = (1 + b^2) P R / (b^2 P + R), 0 where
P + R = 0. Shown to 4 decimals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fusion_jax.display import brief
from fusion_jax.evals.cgec.edits import NA, NOOP, Edit
from fusion_jax.evals.cgec.m2_files import Annotated


class Counts(NamedTuple):
    """tp: edits of the hypothesis that the reference has. fp: that it has not. fn: of the reference, not made."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


def f_beta(counts: Counts, beta: float = 0.5) -> tuple[float, float, float]:
    """Precision, recall and F, each rounded to 4 decimals.

    >>> f_beta(Counts(tp=8, fp=19, fn=35))
    (0.2963, 0.186, 0.2649)
    """
    tp, fp, fn = counts
    p = tp / (tp + fp) if fp else 1.0
    r = tp / (tp + fn) if fn else 1.0
    f = (1 + beta**2) * p * r / (beta**2 * p + r) if p + r else 0.0
    return round(p, 4), round(r, 4), round(f, 4)


@dataclass(frozen=True)
class Item:
    """A sentence. edits: those of the hypothesis; gold: those of the reference that was kept, whose number from 0 is
    `reference`. types: type -> counts. skipped: its only reference says that it cannot be corrected."""

    source: str
    hypothesis: str
    edits: tuple[Edit, ...]
    gold: tuple[Edit, ...]
    reference: int
    counts: Counts
    types: dict[str, Counts]
    skipped: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source, "hypothesis": self.hypothesis, "edits": [list(e) for e in self.edits],
            "reference": self.reference, "reference_edits": [list(e) for e in self.gold], **self.counts._asdict(),
            "skipped": self.skipped,
        }  # fmt: skip


class Head(NamedTuple):
    """How a report came about. mode: how edits were found; says how comparable the numbers are. beta: weight of recall
    in F. cut: pairs with too many minimal paths, of which the first one was taken."""

    scorer: str
    mode: str
    beta: float = 0.5
    cut: int = 0


@dataclass(frozen=True)
class Report:
    """What a scorer found. precision, recall, f: of the counts of all sentences together.

    error_free: sentences of which every reference leaves the source as it is; changed: those of them that the
    hypothesis changes.
    """

    head: Head
    counts: Counts
    types: dict[str, Counts]
    items: tuple[Item, ...]
    error_free: int
    changed: int

    def __repr__(self) -> str:
        return brief(self)

    @property
    def precision(self) -> float:
        return f_beta(self.counts, self.head.beta)[0]

    @property
    def recall(self) -> float:
        return f_beta(self.counts, self.head.beta)[1]

    @property
    def f(self) -> float:
        return f_beta(self.counts, self.head.beta)[2]

    @property
    def over_correction(self) -> float | None:
        """Share of the error-free sentences that are changed; None where there are none."""
        return self.changed / self.error_free if self.error_free else None

    def as_json(self) -> dict[str, Any]:
        """The numbers without the sentences."""
        return {
            "scorer": self.head.scorer, "mode": self.head.mode, "beta": self.head.beta, "sentences": len(self.items),
            "precision": self.precision, "recall": self.recall, "f": self.f, **self.counts._asdict(),
            "types": {name: counts._asdict() for name, counts in self.types.items()},
            "error_free": self.error_free, "changed": self.changed, "over_correction": self.over_correction,
            "skipped": sum(item.skipped for item in self.items), "first_path_only": self.head.cut,
        }  # fmt: skip


class Compared(NamedTuple):
    """A hypothesis beside one reference: the edits that it is taken to make, their counts, and those of each type."""

    edits: tuple[Edit, ...]
    counts: Counts
    types: dict[str, Counts]


def compare(edits: Sequence[Edit], gold: Sequence[Edit]) -> Compared:
    """Counts by span and correction, whatever the type. An edit that stands several times counts as often: one that
    both have as often as the reference has it. `NOOP` counts nothing; types are the reference's where it has the edit.

    >>> compare([Edit(0, 1, "S", "他"), Edit(3, 3, "M", "了")], [Edit(0, 1, "S", "他")]).counts
    Counts(tp=1, fp=1, fn=0)
    """
    ours, theirs = _by_key(edits), _by_key(gold)
    found: Counter[tuple[str, int]] = Counter()
    for key, types in ours.items():
        found.update((kind, 0 if key in theirs else 1) for kind in theirs.get(key, types))
    for key, types in theirs.items():
        if key not in ours:
            found.update((kind, 2) for kind in types)
    types_ = {kind: Counts(*(found[kind, place] for place in range(3))) for kind in dict.fromkeys(k for k, _ in found)}
    return Compared(tuple(edits), total(types_.values()), types_)


def _by_key(edits: Iterable[Edit]) -> dict[tuple[int, int, str], list[str]]:
    out: dict[tuple[int, int, str], list[str]] = {}
    for start, end, kind, correction in edits:
        if kind != NOOP.type:
            out.setdefault((start, end, correction.replace(" ", "")), []).append(kind)
    return out


def total(counts: Iterable[Counts]) -> Counts:
    """The sum."""
    out = Counts()
    for one in counts:
        out = out.plus(one)
    return out


Rank = Callable[[Counts, Counts, float], tuple[float, ...]]


def by_rounded_f(together: Counts, item: Counts, beta: float) -> tuple[float, ...]:
    """ChERRANT's order: F of the running totals to 4 decimals, then of the item TP, fewer FP, fewer FN."""
    return f_beta(together, beta)[2], item.tp, -item.fp, -item.fn


def by_exact_f(together: Counts, item: Counts, beta: float) -> tuple[float, ...]:
    """The M2 scorer's order: F of the running totals, then more right edits, then fewer proposed and gold ones."""
    tp, fp, fn = together
    weight = beta**2
    whole = weight * (tp + fn) + tp + fp
    return (1 + weight) * tp / whole if whole else 1.0, item.tp, -item.fp - item.fn


def reported(
    sentences: Sequence[Annotated],
    hypotheses: Sequence[str],
    compared: Sequence[Sequence[Compared]],
    rank: Rank,
    head: Head,
) -> Report:
    """The report of sentences in their order, which counts: of each the reference is kept that makes the totals up to
    it rank highest, the first of equals.

    Args:
      compared: the hypothesis of each sentence beside each of its references.
    """
    so_far, items = Counts(), []
    types: dict[str, Counts] = {}
    for sentence, hypothesis, each in zip(sentences, hypotheses, compared, strict=True):
        ranks = [rank(so_far.plus(one.counts), one.counts, head.beta) for one in each]
        best = ranks.index(max(ranks))
        edits, counts, kinds = each[best]
        skipped = sentence.annotators == ((NA,),)
        if skipped:
            counts, kinds = Counts(), {}
        so_far = so_far.plus(counts)
        for kind, more in kinds.items():
            types[kind] = types.get(kind, Counts()).plus(more)
        source = (" " if head.scorer == "m2" else "").join(sentence.tokens)
        items.append(Item(source, hypothesis, edits, sentence.annotators[best], best, counts, kinds, skipped))
    free = [i for i, s in enumerate(sentences) if all(_changes_nothing(edits) for edits in s.annotators)]
    changed = sum(not _changes_nothing(items[i].edits) for i in free)
    return Report(head, so_far, dict(sorted(types.items())), tuple(items), len(free), changed)


def _changes_nothing(edits: Sequence[Edit]) -> bool:
    return all(edit.type == NOOP.type for edit in edits)


def tables(report: Report) -> list[list[dict[str, str]]]:
    """The report for a screen: rows of the scores, of the sentences, and of the types of edits."""
    numbers = {name: str(count) for name, count in zip(("TP", "FP", "FN"), report.counts)}
    share = report.over_correction
    rate = "none" if share is None else f"{100 * share:.4f} % ({report.changed} of {report.error_free} error-free)"
    scores = {"P": report.precision, "R": report.recall, f"F{report.head.beta:g}": report.f}
    sentences = {"sentences": len(report.items), "skipped": sum(item.skipped for item in report.items)}
    kinds = [
        {"type": kind, "TP": str(c.tp), "FP": str(c.fp), "FN": str(c.fn)}
        | dict(zip(scores, (f"{value:.4f}" for value in f_beta(c, report.head.beta))))
        for kind, c in report.types.items()
    ]
    return [
        [
            {"scorer": report.head.scorer, "mode": report.head.mode}
            | {name: f"{value:.4f}" for name, value in scores.items()} | numbers
        ],
        [
            {name: str(count) for name, count in sentences.items()}
            | {"over-correction": rate, "first path only, pairs": str(report.head.cut)}
        ],
        kinds,
    ]  # fmt: skip


def edits_text(edits: Sequence[Edit]) -> str:
    """Edits for a cell of a table.

    >>> edits_text([Edit(7, 8, "S", "环"), Edit(9, 10, "R", "")])
    '7-8 S 环; 9-10 R'
    """
    some = (e for e in edits if e.type != NOOP.type)
    return "; ".join(f"{e.start}-{e.end} {e.type} {e.correction}".rstrip() for e in some) or NOOP.type
