"""From teachers and documents to opinions on the pivot's tokens, of teachers that are stored or live.

A stored one reads the documents once, and every stage is a folder that is made once; a live one reads what it is asked
for. Each source is aligned with the pivot (FuseLLM/FuseChat spec sections 2 to 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.align.corpus import PairRecord, align_corpus, align_rows, moved, top_rows, whole_text
from fusion_jax.align.coverage import ClassCoverage, by_class
from fusion_jax.align.distributions import AlignedRows, planned_rules
from fusion_jax.align.prefixes import PlacedText, prefix_rows, same_prefixes
from fusion_jax.align.rules import RowRule, Rules
from fusion_jax.align.sequences import Alignment
from fusion_jax.align.settings import AlignSettings
from fusion_jax.align.vocabulary import count_pairs, load_map
from fusion_jax.data.documents import (
    Document,
    TeacherRow,
    TeacherText,
    scored_bytes,
    token_range,
)
from fusion_jax.errors import InputError
from fusion_jax.hosts.agree import agreed_exists, on_first
from fusion_jax.lazy import Lazy
from fusion_jax.store.parts import digest
from fusion_jax.teachers.documents import Progress, Reading
from fusion_jax.teachers.live import unread
from fusion_jax.teachers.rows import Opinion, Opinions, metric_of, metrics_of, own_opinion, source_opinion
from fusion_jax.teachers.settings import FusionSettings

MOST_TEXTS = 256  # by which a source's mass is measured, spread over the corpus


class Reach(NamedTuple):
    """How much of a source reaches the pivot.

    rules: share of the pivot's tokens whose next token is scored by what decided their rows, keys of `RowRule` in small
      letters. classes: by class of token. listed: share of the source's probability that its k entries hold; it and the
      mass in `classes` are measured on up to `MOST_TEXTS` texts, where the next token is scored.
    """

    rules: dict[str, float]
    classes: dict[str, ClassCoverage]
    listed: float

    @property
    def mass(self) -> dict[str, float]:
        """Where the source's probability goes, sum 1: onto the same text, another text, no image, or it is unlisted."""
        parts = {
            name: self.listed * sum(c.mass * getattr(c, name) for c in self.classes.values())
            for name in ("kept", "altered", "unmapped")
        }
        return {**parts, "unlisted": 1.0 - self.listed}


def own_opinions(pivot: Reading, fusion: FusionSettings) -> Opinions:
    """The pivot's on its own tokens."""

    def together(wanted: Sequence[int]) -> list[Opinion]:
        rows = pivot.rows.some(wanted)
        return [own_opinion(r, metric_of(r, pivot.documents[i], fusion), fusion) for i, r in zip(wanted, rows)]

    metrics, scored = _known(pivot, fusion)
    made_of = f"own {_known_by(pivot)}"
    return Opinions(metrics, lambda i: together([i])[0], made_of, together, scored)


def _known_by(reading: Reading) -> str:
    """What a teacher's rows are known by; how log-probs are kept stands there only where that is not as ever."""
    identity = reading.rows.identity
    return f"{identity!r}" + (f" {identity.log_probs}" if identity.log_probs != "float16" else "")


def _known(reading: Reading, fusion: FusionSettings) -> tuple[np.ndarray, np.ndarray]:
    """A teacher's metrics, as far as they are known beforehand, and where they will be finite."""
    if reading.live:
        pairs = zip(reading.texts, reading.documents, strict=True)
        scored = [bool(t.scored[1:].any()) and _counted(t, d, fusion) for t, d in pairs]
        return np.full(len(scored), np.nan), np.asarray(scored, bool)
    metrics = metrics_of(reading.rows, reading.documents, fusion)
    return metrics, np.isfinite(metrics)


def _counted(text: TeacherText, document: Document, fusion: FusionSettings) -> bool:
    """Whether there is something that the metric is divided by, besides tokens."""
    return fusion.metric == "ce" or scored_bytes(document, text.offsets) > 0


def source_opinions(
    folder: Path,
    pivot: Reading,
    source: Reading,
    settings: AlignSettings,
    fusion: FusionSettings,
    *,
    whole: bool,
    progress: Progress,
) -> tuple[Opinions, Reach]:
    """A source's opinions on the pivot's tokens, and how much of it reaches them.

    Args:
      folder: of the stages; of a live source, whose rows are moved when they are asked for, of ranges and map alone.
      whole: both read the same text, which is aligned from end to end; else only the documents' contents are, each
        with its counterpart, and the token before each.
    """
    if settings.rules == "chat_v1" and fusion.keeps_mass:
        raise InputError("needs probabilities, and chat_v1 scales logits", field="tail", cure='Set it to "none"')
    if settings.tokens == "prefix":
        return _by_prefixes(folder, pivot, source, settings, fusion)
    records = _records(pivot, source, whole)
    if (
        whole
        and settings.tokens == "byte_offsets"
        and any(p.text != s.text for p, s in zip(pivot.documents, source.documents, strict=True))
    ):
        problem = "counts characters of one text, and the template writes each model's own EOS"
        raise InputError(problem, field="tokens", cure='Set it to "dp", or the template to "own"')
    variant = settings.rules if settings.tokens == "dp" else "byte_offsets"
    name = f"{source.name} to {pivot.name}"
    ranges = align_corpus(
        folder / f"ranges-{variant}{_suffix(settings)}", records, pivot.view, source.view, variant=variant,
        pieces=settings.pieces, workers=settings.workers,
        progress=lambda done: progress(f"aligning {name}", done, len(records)),
    )  # fmt: skip
    rules = _rules(folder, pivot, source, settings, ranges)
    raw = fusion.rounding != "none"  # bfloat16 rounds logits and log-probs differently
    flags = (settings.hard, settings.one_to_many, settings.special_pairs, raw)
    marks = (settings.rules, settings.tokens, settings.vocabulary, settings.ms_weight, settings.fallback,
             settings.duplicates, *([str(settings.least_mass)] if settings.least_mass else ()),
             "".join(str(int(flag)) for flag in flags))  # fmt: skip

    metrics, scored = _known(source, fusion)
    if source.live:
        if settings.rules == "chat_v1" and settings.one_to_many:
            problem = "blends rows to widths that nobody knows before they are there"
            raise InputError(problem, field="rules", cure="Store the teachers, or take chat_v2")

        def asked(wanted: Sequence[int]) -> list[Opinion]:
            found = []
            for i, row in zip(wanted, source.rows.some(wanted), strict=True):
                aligned = moved(records[i]._replace(source=row), ranges[i], rules, raw=raw)
                found.append(source_opinion(aligned, metric_of(row, source.documents[i], fusion)))
            return found

        made_of = f"live {_known_by(source)} {marks} {digest([rules.images])}"
        opinions = Opinions(metrics, lambda i: asked([i])[0], made_of, asked, scored)
        return opinions, _reach(pivot, source, rules, _planned(records, ranges, rules))

    read = Lazy(len(records), lambda i: records[i]._replace(source=source.rows[i]))
    aligned = align_rows(
        folder / ("-".join(("rows", *marks)) + _suffix(settings)), read, ranges, rules, raw=raw,
        workers=settings.workers,
        progress=lambda done: progress(f"moving rows of {name}", done, len(records)),
    )  # fmt: skip
    stored = Opinions(metrics, lambda i: source_opinion(aligned[i], float(metrics[i])), repr(aligned.made_of))
    return stored, _reach(pivot, source, rules, (rows.rule for rows in aligned))


def _planned(records: Sequence[PairRecord], ranges: Sequence[Alignment], rules: Rules) -> Iterator[np.ndarray]:
    """The rule of each pivot token of each text, as tokens alone decide it."""
    for record, alignment in zip(records, ranges, strict=True):
        rule = planned_rules(alignment, record.pivot_ids, record.source.ids, rules)
        rule[np.asarray(record.anchors, np.int64).reshape(-1, 2)[:, 0]] = RowRule.ONE_TO_ONE
        yield rule


def _reach(pivot: Reading, source: Reading, rules: Rules, decided: Iterable[np.ndarray]) -> Reach:
    """decided: of each text, uint8[m] the rule of each pivot token."""
    counts, (there, taken) = np.zeros(len(RowRule)), np.zeros((2, rules.pivot.size), np.int64)
    for rule, text in zip(decided, pivot.texts, strict=True):
        here = np.flatnonzero(text.scored[1:])
        counts += np.bincount(rule[here], minlength=len(RowRule))
        there += np.bincount(text.ids[here], minlength=len(there))
        taken += np.bincount(text.ids[here[rule[here] < RowRule.FALLBACK]], minlength=len(taken))
    some = np.unique(np.linspace(0, len(source.texts) - 1, min(MOST_TEXTS, len(source.texts))).astype(int)).tolist()
    mass, positions = np.zeros(rules.source.size), 0
    for i, row in zip(some, source.rows.some(some), strict=True):
        here = np.flatnonzero(source.texts[i].scored[1:])
        probs = np.exp(row.topk_logprobs[here].astype(np.float64))
        mass += np.bincount(row.topk_ids[here].ravel(), probs.ravel(), len(mass))
        positions += len(here)
    shares = {rule.name.lower(): float(counts[rule] / max(counts.sum(), 1)) for rule in RowRule}
    return Reach(shares, by_class(rules, there, taken, mass), min(float(mass.sum()) / max(positions, 1), 1.0))


def _by_prefixes(
    folder: Path, pivot: Reading, source: Reading, settings: AlignSettings, fusion: FusionSettings
) -> tuple[Opinions, Reach]:
    """As `source_opinions`, by `align.prefixes`: so little work that nothing but the vocabulary map is kept."""
    rules, raw = _rules(folder, pivot, source, settings, ()), fusion.rounding != "none"

    def shared(i: int) -> np.ndarray:
        sides = ((pivot.texts[i], pivot), (source.texts[i], source))
        return same_prefixes(*(_side(text, reading, i) for text, reading in sides), alike=pivot.view == source.view)

    def aligned(i: int, row: TeacherRow) -> AlignedRows:
        ids = pivot.texts[i].ids
        labels = np.append(ids[1:], ids[-1:]) if settings.fallback == "next" else ids
        return prefix_rows(top_rows(row, raw), shared(i), labels, rules)

    def opinions(wanted: Sequence[int]) -> list[Opinion]:
        rows = zip(wanted, source.rows.some(wanted), strict=True)
        return [source_opinion(aligned(i, row), metric_of(row, source.documents[i], fusion)) for i, row in rows]

    (metrics, scored), every = _known(source, fusion), range(len(pivot.texts))
    if source.live:
        found = (np.where(shared(i) >= 0, RowRule.ONE_TO_ONE, RowRule.FALLBACK).astype(np.uint8) for i in every)
    else:
        found = (aligned(i, source.rows[i]).rule for i in every)
    made_of = f"prefixes {settings!r} {rules.vocab_map.kind} {digest([rules.images])} {_known_by(source)}"
    every_opinion = Opinions(metrics, lambda i: opinions([i])[0], made_of, opinions, scored)
    return every_opinion, _reach(pivot, source, rules, found)


def _side(text: TeacherText, reading: Reading, number: int) -> PlacedText:
    """A document as a reader reads it."""
    document = reading.documents[number]
    end = reading.view.eos if document.eos else reading.turn_end
    return PlacedText(text.ids, text.offsets, document.contents, end)


def _suffix(settings: AlignSettings) -> str:
    """What tells the files of other comparisons than the published one."""
    return "" if settings.pieces == "raw" else f"-{settings.pieces}"


def _records(pivot: Reading, source: Reading, whole: bool) -> Lazy[PairRecord]:
    """Every document as the pivot and the source read it, in tokens alone, put together when asked for."""
    if len(pivot.documents) != len(source.documents):
        told = f"{pivot.name} read {len(pivot.documents)}, {source.name} {len(source.documents)}"
        raise InputError(told, field="documents", cure="Give both the same texts")

    def record(i: int) -> PairRecord:
        text, row = pivot.texts[i], unread(source.texts[i])
        if whole:
            return whole_text(text.ids, text.offsets, row)
        contents = pivot.documents[i].contents, source.documents[i].contents
        return by_contents(text, row, *contents, ends=(pivot.turn_end, source.turn_end))

    return Lazy(len(pivot.documents), record)


def by_contents(
    text: TeacherText,
    row: TeacherRow,
    pivot_contents: Sequence[tuple[int, int]],
    source_contents: Sequence[tuple[int, int]],
    *,
    ends: tuple[int | None, int | None] = (None, None),
) -> PairRecord:
    """A record whose segments are the contents that both texts hold, anchored at the token before each.

    Where one tokenizer's first token of a content begins before it (a space of the template) and the other's does not,
    the tokens before predict different things and are no anchor. Likewise the last tokens are left out unless what
    ends a turn follows on both sides: a source whose template writes a space first predicts that.

    ends: the tokens that end a turn, of the pivot and of the source.
    """
    segments, anchors = [], []
    for ours, theirs in zip(pivot_contents, source_contents, strict=True):
        (p, q), (s, t) = token_range(text.offsets, ours), token_range(row.offsets, theirs)
        if p == q or s == t:
            continue
        follow = tuple(int(ids[n]) if n < len(ids) else None for ids, n in ((text.ids, q), (row.ids, t)))
        less = follow != ends
        if q - p > less and t - s > less:
            segments.append((p, q - less, s, t - less, ours[0], theirs[0]))
        if p and s and (text.offsets[p, 0] < ours[0]) == (row.offsets[s, 0] < theirs[0]):
            anchors.append((p - 1, s - 1))
    return PairRecord(
        text.ids, text.offsets, row, np.asarray(segments, np.int32).reshape(-1, 6),
        np.asarray(anchors, np.int32).reshape(-1, 2),
    )  # fmt: skip


def _rules(
    folder: Path, pivot: Reading, source: Reading, settings: AlignSettings, ranges: Sequence[Alignment]
) -> Rules:
    """The rules with the vocabulary map, which is kept in the folder."""
    marks = (settings.vocabulary, settings.ms_weight, settings.rules, settings.tokens)
    file = folder / ("-".join(("map", *marks)) + _suffix(settings) + ".json")
    counts, there, views = None, agreed_exists(file), (pivot.view, source.view)
    if settings.rules == "chat_v1" or (settings.vocabulary == "statistics" and not there):
        triples = ((p.ids, s.ids, r) for p, s, r in zip(pivot.texts, source.texts, ranges, strict=True))
        counts = count_pairs(triples, *views)
    if not there:
        ids = ((p.ids, s.ids) for p, s in zip(pivot.texts, source.texts, strict=True))
        on_first(lambda: folder.mkdir(parents=True, exist_ok=True))
        on_first(lambda: settings.make_map(views, counts, ids).save(file))
    pairs = _special_pairs(pivot, source) if settings.special_pairs else ()
    return settings.rules_of(views, load_map(file, *views), counts, pairs)


def _special_pairs(pivot: Reading, source: Reading) -> Iterator[tuple[int, int]]:
    """BOS, EOS and, where answers are read, what ends a turn; there the last stands above the others."""
    ours, theirs = ((r.view.bos, r.view.eos, r.turn_end) for r in (pivot, source))
    kinds = 2 if any(d.eos for d in pivot.documents) else 3
    pairs = zip(theirs[:kinds], ours[:kinds], strict=True)
    return ((t, p) for t, p in pairs if t is not None and p is not None)
