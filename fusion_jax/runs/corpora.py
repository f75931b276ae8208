"""What a fusion of distributions learns from: texts or chats, the user's or the zoo's, as each model reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

from fusion_jax.data.documents import Document, chat_documents, token_counts
from fusion_jax.data.loaders import load_records, load_texts
from fusion_jax.data.records import OnBad, Row, parse_rows
from fusion_jax.data.windows import window_documents
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import check_folder, tokenizer_of
from fusion_jax.options import File, ModelPath
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fusing import Corpus, FusingSettings
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.prompts import eval_set, held_out_skills, zoo_problems
from fusion_jax.zoo.tasks import answered, plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Readers = Mapping[str, PreTrainedTokenizerBase]

S = TypeVar("S", bound=FusingSettings)
Template = Literal["own", "pivot"]
Documents = dict[str, list[Document]]
"""{model: what it reads}."""


@dataclass(frozen=True)
class TextSettings(FusingSettings):
    """Texts."""

    texts: File = ""
    """JSON lines with "text", or plain lines; without, problems of the zoo's skills with their answers."""
    held_out_texts: File = ""
    """Texts on which bits per byte are measured."""


@dataclass(frozen=True)
class PlainTextSettings(TextSettings):
    """Base models and texts."""

    target: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, a GGUF file, or zoo:NAME."""


@dataclass(frozen=True)
class ChatSettings(FusingSettings):
    """Chats, and the template through which models read them."""

    chats: File = ""
    """Conversations, messages, or prompts with responses; without, problems of the zoo's skills with right answers."""
    held_out_chats: File = ""
    """Chats on whose answers bits per byte are measured."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    template: Template = "own"
    """Each model reads chats through its own template, or all through the pivot's, as published."""


@dataclass(frozen=True)
class ChatModelSettings(ChatSettings):
    """Chat models and chats."""

    pivot: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, a GGUF file, or zoo:NAME."""


def text_tests(s: TextSettings) -> EvalSet:
    """Test prompts as plain text; beside the user's texts the user's only."""
    return eval_set(s, [] if s.texts else held_out_skills(s), chat=False)


def text_corpus(
    s: TextSettings, desk: Desk, folders: Mapping[str, Path], *, per_skill: int, window: int
) -> Corpus:
    """Texts, cut so that no model needs more tokens than it reads, EOS included.

    Args:
      folders: of the models by their names, the pivot first. per_skill: the zoo's problems of each skill that stand in
        where no file is given. window: tokens at which texts to train on are cut, EOS not included; 0: as many as fit.
    """
    s = _as_long_as_read(s, desk, folders, "texts")
    problems = zoo_problems(s, per_skill, own_data=bool(s.texts))
    learnt, unseen = ([plain_text(problem) for problem in some] for some in problems)
    if s.texts:
        learnt, unseen = load_texts(s.texts), load_texts(s.held_out_texts) if s.held_out_texts else []
    tokenizers = [tokenizer_of(folder) for folder in folders.values()]
    most = s.max_length - 1
    windows, found = window_documents(learnt, tokenizers, min(window or most, most))
    if not windows:
        raise InputError("all are blank", field="texts", cure="Give texts with words in them")
    desk.counter("records").update(found)
    held, _ = window_documents(unseen, tokenizers, most)
    documents, held_out = dict.fromkeys(folders, windows), dict.fromkeys(folders, held)
    return Corpus(folders, s.max_length, documents, held_out, text_tests(s))


def chat_corpus(s: ChatSettings, desk: Desk, folders: Mapping[str, Path], *, per_skill: int) -> Corpus:
    """Chats as each model reads them, held-out ones through its own template; arguments as of `text_corpus`."""
    s, counts = _as_long_as_read(s, desk, folders, "chats"), desk.counter("records")
    problems = zoo_problems(s, per_skill, own_data=bool(s.chats))
    learnt, unseen = map(answered, problems)
    if s.chats:
        learnt, unseen = load_records(s.chats), load_records(s.held_out_chats) if s.held_out_chats else []
    rows, dropped = parse_rows(learnt, "sft", file=s.chats or None, on_bad=s.on_bad)
    counts.update(dropped + Counter({"chats": len(rows)}))
    readers = {name: tokenizer_of(folder) for name, folder in folders.items()}
    how = Chats(s.chats, s.template, s.max_length, s.on_bad)
    documents, held_out, dropped = chats_as_read(how, readers, rows, counts), Documents(), Counter[str]()
    if unseen:
        rows, _ = parse_rows(unseen, "sft", file=s.held_out_chats or None)
        held_out = chats_as_read(how._replace(template="own"), readers, rows, dropped)
        counts.update({f"held out: {what}": n for what, n in dropped.items()})
    return Corpus(folders, s.max_length, documents, held_out, eval_set(s, problems[1]))


def check_entries(k: int, configs: Mapping[str, ModelConfig]) -> None:
    """Refuse to keep more entries of a distribution than a model's vocabulary has."""
    name, smallest = min(configs.items(), key=lambda item: item[1].vocab_size)
    if k > smallest.vocab_size:
        problem = f"{k} entries of a distribution are asked for, '{name}' has {smallest.vocab_size}"
        raise InputError(problem, field="k", cure="Lower it")


def _as_long_as_read(s: S, desk: Desk, folders: Mapping[str, Path], what: str) -> S:
    """The settings with the greatest length that every model reads.

    Raises:
      InputError: k entries are more than the smallest vocabulary has.
    """
    configs = {name: check_folder(folder) for name, folder in folders.items()}
    check_entries(s.k, configs)
    limit = min(s.max_length, *(config.max_positions for config in configs.values()))
    if limit < s.max_length:
        desk.run.log(f"{what} have {limit} tokens at most instead of {s.max_length}: a model reads no more")
    return replace(s, max_length=limit)


class Chats(NamedTuple):
    """Conversations that models read whole. file: where they are from; template: each model's own, or the first one's
    for all; on_bad: what one does that a template refuses."""

    file: str
    template: Template
    max_length: int
    on_bad: OnBad


def chats_as_read(how: Chats, readers: Readers, chats: Sequence[Row], counts: Counter[str]) -> Documents:
    """Every chat as each model reads it; what one of them cannot read, none reads, which is counted.

    Raises:
      InputError: a chat that a template refuses or changes, unless such are left out; none is short enough.
    """
    pivot = next(iter(readers.values()))
    templates = {name: reader if how.template == "own" else pivot for name, reader in readers.items()}
    documents: Documents = {name: [] for name in templates}
    for chat in chats:
        try:
            views = [chat_documents([chat], templates[name], reader) for name, reader in readers.items()]
        except InputError as error:
            if how.on_bad == "error":
                cure = f"{error.cure}, or leave such chats out with --on-bad skip"
                problem = error.problem
                raise InputError(problem, file=error.file, record=chat.name, field=error.field, cure=cure) from None
            counts["refused by a template"] += 1
            continue
        for some, view in zip(documents.values(), views, strict=True):
            some += view
    lengths = [token_counts(reader, documents[name]) for name, reader in readers.items()]
    kept = np.max(lengths, axis=0) <= how.max_length
    counts["longer than max_length in some tokenizer"] = int((~kept).sum())
    if not kept.any():
        problem = f"all are longer than {how.max_length} tokens"
        raise InputError(problem, file=how.file, field="--max-length", cure="Raise it")
    return {name: [d for d, keep in zip(some, kept, strict=True) if keep] for name, some in documents.items()}
