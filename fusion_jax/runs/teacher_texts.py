"""Texts as one teacher reads them, and what its store says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.data.documents import Document, TeacherText, encode_documents, leading_token
from fusion_jax.data.loaders import load_texts
from fusion_jax.data.windows import window_documents
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import stored_surprise
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.plan.fits import check_decoder
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


def read_texts(
    file: str, model: str, windows_for: Sequence[str], *, k: int, max_length: int, console: Console
) -> TeacherTexts:
    """What the teacher is to read, in windows of at most max_length tokens of each model of `windows_for`, too.

    Raises:
      InputError: k entries are more than the vocabulary has, no text with words in it.
    """
    config = check_decoder(model_path(model))
    own = [] if model in windows_for else [("--model", model)]
    named = [*own, *(("--windows-for", name) for name in windows_for)]
    tokenizers = [tokenizer_of(model_path(name, option), option) for option, name in named]
    tokenizer = tokenizers[[name for _, name in named].index(model)]
    entries = min(len(tokenizer), config.vocab_size)
    if k > entries:
        raise InputError(f"{k} entries are more than the vocabulary's {entries}", field="--k", cure="Give fewer")
    limit = min(max_length, config.max_positions)
    if limit < max_length:
        console.print(f"max_length is {limit}: the model reads no more")
    documents, counts = window_documents(load_texts(file), tokenizers, limit - 1)
    if not documents:
        raise InputError("holds no text that is not blank", file=file, field="--texts", cure="Give other texts")
    return TeacherTexts(tokenizer, documents, encode_documents(tokenizer, documents, max_length=limit), counts, entries)


def store_table(store: TeacherStore, read: TeacherTexts, again: str) -> str:
    """What the store holds, and how well its teacher knows the texts. again: the difference when scored again."""
    surprise = stored_surprise(store, read.documents)
    return markdown_table([{
        **{what: read.counts[what] for what in ("texts", "windows", "blank texts")},
        "tokens": sum(len(row.ids) for row in store), "nats a token": f"{surprise.nats_per_token:.4f}",
        "bits_per_byte": f"{surprise.bits_per_byte:.4f}",
        "mass of the k entries": f"{1 - np.mean(np.concatenate([row.tail for row in store])):.4f}",
        "largest difference when scored again": again,
    }])  # fmt: skip
