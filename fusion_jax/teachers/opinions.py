"""From teachers and documents to opinions on the pivot's tokens: every stage a folder that is made once.

Each model reads the documents once (a teacher store); then each source is aligned with the pivot (FuseLLM/FuseChat
spec sections 2 to 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.align.corpus import PairRecord, align_corpus, align_rows, whole_text
from fusion_jax.align.rules import RowRule, Rules
from fusion_jax.align.sequences import Alignment
from fusion_jax.align.settings import AlignSettings
from fusion_jax.align.views import TokenizerView, view_of
from fusion_jax.align.vocabulary import count_pairs, load_map
from fusion_jax.data.chat import turn_end
from fusion_jax.data.documents import (
    Document,
    TeacherRow,
    TeacherText,
    documents_fingerprint,
    encode_documents,
    inside,
)
from fusion_jax.errors import InputError
from fusion_jax.hosts.agree import agreed_exists, on_first
from fusion_jax.hosts.join import this_host
from fusion_jax.lazy import Lazy
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model
from fusion_jax.teachers.blocks import LogProbs
from fusion_jax.teachers.reading import store_identity, teacher_rows, tokenizer_fingerprint
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.store import TeacherStore, identity_of, write_store
from fusion_jax.teachers.targets import Opinions, metrics_of, own_opinion, source_opinion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str, int, int], None]


class Reading(NamedTuple):
    """What one model made of the documents: as it reads them, its tokens, its stored rows."""

    name: str
    view: TokenizerView
    turn_end: int | None
    documents: Sequence[Document]
    texts: Sequence[TeacherText]
    rows: TeacherStore


def read_documents(
    folder: Path,
    name: str,
    model: Model,
    documents: Sequence[Document],
    *,
    k: int,
    max_length: int,
    compute: Compute,
    batch_size: int,
    progress: Progress,
    log_probs: LogProbs = "float16",
) -> Reading:
    """Run a model over its documents once, or read the store where it is there already.

    log_probs: how they are kept.
    """
    texts = encode_documents(model.tokenizer, documents, max_length=min(max_length, model.config.max_positions))
    assert model.tokenizer is not None  # `encode_documents` has looked
    identity = replace(store_identity(model, documents, k), log_probs=log_probs)
    rows = teacher_rows(model, texts, k, compute, batch_size=batch_size)
    write_store(
        folder, identity, rows, lambda done: progress(f"reading by {name}", done, len(documents)),
        host=this_host(), together=True,
    )  # fmt: skip
    store = TeacherStore(folder, identity, texts)
    return Reading(name, view_of(model.tokenizer), turn_end(model.tokenizer), documents, texts, store)


def read_store(
    folder: Path,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    k: int,
    max_length: int,
) -> Reading:
    """What a model made of its documents before or elsewhere: a store by experiments/cache_teacher.py.

    Raises:
      InputError: no finished store; one of other documents, another tokenizer or another k.
    """
    texts = encode_documents(tokenizer, documents, max_length=max_length)
    reader, read = tokenizer_fingerprint(tokenizer), documents_fingerprint(documents)
    identity = replace(identity_of(folder), tokenizer=reader, documents=read, k=k, records=len(documents))
    store = TeacherStore(folder, identity, texts)
    return Reading(name, view_of(tokenizer), turn_end(tokenizer), documents, texts, store)


def own_opinions(pivot: Reading, fusion: FusionSettings) -> Opinions:
    """The pivot's on its own tokens."""
    metrics = metrics_of(pivot.rows, pivot.documents, fusion)
    identity = pivot.rows.identity
    made_of = f"own {identity!r}" + (f" {identity.log_probs}" if identity.log_probs != "float16" else "")
    return Opinions(metrics, lambda i: own_opinion(pivot.rows[i], float(metrics[i]), fusion), made_of)


def source_opinions(
    folder: Path,
    pivot: Reading,
    source: Reading,
    settings: AlignSettings,
    fusion: FusionSettings,
    *,
    whole: bool,
    progress: Progress,
) -> tuple[Opinions, dict[str, float]]:
    """A source's opinions on the pivot's tokens, and the share that each rule decided of the pivot's tokens
    whose next token is scored.

    Args:
      whole: both read the same text, which is aligned from end to end; else only the documents' contents are, each
        with its counterpart, and the token before each.
    """
    if settings.rules == "chat_v1" and fusion.tail == "bucket":
        raise InputError("needs probabilities, and chat_v1 scales logits", field="tail", cure='Set it to "none"')
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
             settings.duplicates, "".join(str(int(flag)) for flag in flags))  # fmt: skip
    aligned = align_rows(
        folder / ("-".join(("rows", *marks)) + _suffix(settings)), records, ranges, rules, raw=raw,
        workers=settings.workers,
        progress=lambda done: progress(f"moving rows of {name}", done, len(records)),
    )  # fmt: skip
    metrics = metrics_of(source.rows, source.documents, fusion)
    opinions = Opinions(metrics, lambda i: source_opinion(aligned[i], float(metrics[i])), repr(aligned.made_of))
    counts = np.zeros(len(RowRule))
    for rows, text in zip(aligned, pivot.texts, strict=True):
        counts += np.bincount(rows.rule[:-1][text.scored[1:]], minlength=len(RowRule))
    return opinions, {rule.name.lower(): float(counts[rule] / max(counts.sum(), 1)) for rule in RowRule}


def _suffix(settings: AlignSettings) -> str:
    """What tells the files of other comparisons than the published one."""
    return "" if settings.pieces == "raw" else f"-{settings.pieces}"


def _records(pivot: Reading, source: Reading, whole: bool) -> Lazy[PairRecord]:
    """Every document as the pivot and the source read it, put together when asked for."""
    if len(pivot.documents) != len(source.documents):
        told = f"{pivot.name} read {len(pivot.documents)}, {source.name} {len(source.documents)}"
        raise InputError(told, field="documents", cure="Give both the same texts")

    def record(i: int) -> PairRecord:
        text, row = pivot.texts[i], source.rows[i]
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
        (p, q), (s, t) = _tokens_of(text.offsets, ours), _tokens_of(row.offsets, theirs)
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


def _tokens_of(offsets: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """First token inside a span and the one behind the last."""
    places = np.flatnonzero(inside(offsets, span))
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


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
        on_first(lambda: settings.make_map(views, counts, ids).save(file))
    pairs = _special_pairs(pivot, source) if settings.special_pairs else ()
    return settings.rules_of(views, load_map(file, *views), counts, pairs)


def _special_pairs(pivot: Reading, source: Reading) -> Iterator[tuple[int, int]]:
    """BOS, EOS and, where answers are read, what ends a turn; there the last stands above the others."""
    ours, theirs = ((r.view.bos, r.view.eos, r.turn_end) for r in (pivot, source))
    kinds = 2 if any(d.eos for d in pivot.documents) else 3
    pairs = zip(theirs[:kinds], ours[:kinds], strict=True)
    return ((t, p) for t, p in pairs if t is not None and p is not None)
