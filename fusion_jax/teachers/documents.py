"""What one model makes of documents: rows that are stored once, or computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.align.views import TokenizerView, view_of
from fusion_jax.data.chat import turn_end
from fusion_jax.data.documents import (
    Document,
    TeacherRow,
    TeacherText,
    documents_fingerprint,
    encode_documents,
    leading_token,
)
from fusion_jax.hosts.join import this_host
from fusion_jax.lazy import Indexed
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model
from fusion_jax.store.parts import digest
from fusion_jax.teachers.blocks import LogProbs
from fusion_jax.teachers.live import LiveTeacher
from fusion_jax.teachers.reading import store_identity, teacher_rows, tokenizer_fingerprint
from fusion_jax.teachers.store import StoreIdentity, TeacherStore, identity_of, write_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str, int, int], None]


class Reading(NamedTuple):
    """What one model makes of the documents: as it reads them, its tokens, its rows, stored or live."""

    name: str
    view: TokenizerView
    turn_end: int | None
    documents: Sequence[Document]
    texts: Sequence[TeacherText]
    rows: TeacherStore | LiveTeacher | SomeRows

    @property
    def live(self) -> bool:
        """Whether its rows are computed when they are asked for."""
        return isinstance(self.rows, LiveTeacher)


class SomeRows(Indexed[TeacherRow]):
    """Some of a teacher's stored rows; identity: as of a store of these documents alone."""

    def __init__(self, identity: StoreIdentity, rows: TeacherStore, numbers: Sequence[int]) -> None:
        self.identity, self._rows, self._numbers = identity, rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def _at(self, i: int) -> TeacherRow:
        return self._rows[self._numbers[i]]


def part_of(reading: Reading, numbers: Sequence[int]) -> Reading:
    """What a model makes of some of its documents, from its store or live."""
    rows, some = reading.rows, [reading.texts[i] for i in numbers]
    of = f"{rows.identity.documents} {digest([np.asarray(numbers, np.int64)])}"
    identity = replace(rows.identity, documents=of, records=len(numbers))
    if isinstance(rows, TeacherStore):
        part: SomeRows | LiveTeacher = SomeRows(identity, rows, numbers)
    else:
        assert isinstance(rows, LiveTeacher)  # no part is cut twice
        part = rows.part(identity, numbers)
    return reading._replace(documents=[reading.documents[i] for i in numbers], texts=some, rows=part)


def read_alike(one: Reading, other: Reading) -> bool:
    """Whether two models make the same tokens of the same texts, which can then be aligned from end to end."""
    same = len(one.documents) == len(other.documents) and one.view == other.view
    return same and all(a.text == b.text for a, b in zip(one.documents, other.documents))


def read_documents(
    folder: Path | None,
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

    Args:
      folder: of the store; None: the model stays live, and is asked for the rows of a batch of documents.
    """
    texts = encode_documents(model.tokenizer, documents, max_length=min(max_length, model.config.max_positions))
    assert model.tokenizer is not None  # `encode_documents` has looked
    identity = replace(store_identity(model, documents, k), log_probs=log_probs)
    bos = leading_token(model.tokenizer, documents)
    rows = teacher_rows(model, texts, k, compute, batch_size=batch_size, bos=bos)
    views = view_of(model.tokenizer), turn_end(model.tokenizer)
    if folder is None:
        live = LiveTeacher(identity, rows, at_once=8 * batch_size)
        return Reading(name, *views, documents, texts, live)
    write_store(
        folder, identity, rows, lambda done: progress(f"reading by {name}", done, len(documents)),
        host=this_host(), together=True,
    )  # fmt: skip
    store = TeacherStore(folder, identity, texts)
    return Reading(name, *views, documents, texts, store)


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
    reader, read = tokenizer_fingerprint(tokenizer, documents), documents_fingerprint(documents)
    identity = replace(identity_of(folder), tokenizer=reader, documents=read, k=k, records=len(documents))
    store = TeacherStore(folder, identity, texts)
    return Reading(name, view_of(tokenizer), turn_end(tokenizer), documents, texts, store)
