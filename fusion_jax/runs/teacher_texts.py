"""Texts or chats as one teacher reads them, and what its store says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.data.documents import Document, TeacherText, encode_documents, leading_token
from fusion_jax.data.loaders import load_records, load_texts
from fusion_jax.data.records import OnBad, parse_rows
from fusion_jax.data.windows import window_documents
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import stored_surprise
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import check_folder, tokenizer_of
from fusion_jax.plan.fits import check_decoder
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.corpora import Chats, Template, chats_as_read
from fusion_jax.teachers.store import TeacherStore
from fusion_jax.zoo import model_path

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase


class TeacherTexts(NamedTuple):
    """Texts in windows, as documents and in the teacher's tokens. entries: of its vocabulary."""

    tokenizer: PreTrainedTokenizerBase
    documents: Sequence[Document]
    texts: Sequence[TeacherText]
    counts: Mapping[str, int]
    entries: int

    @property
    def bos(self) -> int | None:
        """What stands before each text; see `leading_token`."""
        return leading_token(self.tokenizer, self.documents)


class Asked(NamedTuple):
    """A teacher, and what is asked of it. beside: models of a fusion that read the same, in its order."""

    model: str
    beside: Sequence[str]
    k: int
    max_length: int


class Readers(NamedTuple):
    """Tokenizers by the names of their models, of which one is the teacher's. limit: tokens that all of them read."""

    every: dict[str, PreTrainedTokenizerBase]
    own: str
    entries: int
    limit: int


def read_texts(file: str, asked: Asked, console: Console) -> TeacherTexts:
    """What the teacher is to read, in windows of at most max_length tokens of each model beside, too.

    Raises:
      InputError: k entries are more than the vocabulary has, no text with words in it.
    """
    readers = _readers(asked, console, together=False)
    documents, counts = window_documents(load_texts(file), list(readers.every.values()), readers.limit - 1)
    if not documents:
        raise InputError("holds no text that is not blank", file=file, field="--texts", cure="Give other texts")
    return _read(readers, documents, counts)


def read_chats(file: str, asked: Asked, console: Console, template: Template, on_bad: OnBad) -> TeacherTexts:
    """The chats that the teacher and each model beside read whole.

    Raises:
      InputError: k entries are more than the vocabulary has; a broken chat, unless such are left out.
    """
    readers = _readers(asked, console, together=True)
    rows, dropped = parse_rows(load_records(file), "sft", file=file, on_bad=on_bad)
    counts = dropped + Counter({"chats": len(rows)})
    documents = chats_as_read(Chats(file, template, readers.limit, on_bad), readers.every, rows, counts)
    return _read(readers, documents[readers.own], counts)


def _readers(asked: Asked, console: Console, *, together: bool) -> Readers:
    """together: all models read the same, so that the shortest decides how long texts may be."""
    own = [] if asked.model in asked.beside else [("--model", asked.model)]
    named = [*own, *(("--windows-for", name) for name in asked.beside)]
    config = check_decoder(model_path(asked.model))
    every = {model_name(name): tokenizer_of(model_path(name, option), option) for option, name in named}
    entries = min(len(every[model_name(asked.model)]), config.vocab_size)
    if asked.k > entries:
        raise InputError(f"{asked.k} entries are more than the vocabulary's {entries}", field="--k", cure="Give fewer")
    others = [check_folder(model_path(name)).max_positions for _, name in named] if together else []
    limit = min(asked.max_length, config.max_positions, *others)
    if limit < asked.max_length:
        console.print(f"max_length is {limit}: {'a' if together else 'the'} model reads no more")
    return Readers(every, model_name(asked.model), entries, limit)


def _read(readers: Readers, documents: Sequence[Document], counts: Mapping[str, int]) -> TeacherTexts:
    tokenizer = readers.every[readers.own]
    texts = encode_documents(tokenizer, documents, max_length=readers.limit)
    return TeacherTexts(tokenizer, documents, texts, counts, readers.entries)


def store_table(store: TeacherStore, read: TeacherTexts, again: str) -> str:
    """What the store holds, and how well its teacher knows the texts. again: the difference when scored again."""
    surprise = stored_surprise(store, read.documents)
    return markdown_table([{
        **{what: n for what, n in read.counts.items() if n or what in ("texts", "windows", "blank texts")},
        "tokens": sum(len(row.ids) for row in store), "nats a token": f"{surprise.nats_per_token:.4f}",
        "bits_per_byte": f"{surprise.bits_per_byte:.4f}",
        "mass of the k entries": f"{1 - np.mean(np.concatenate([row.tail for row in store])):.4f}",
        "largest difference when scored again": again,
    }])  # fmt: skip
