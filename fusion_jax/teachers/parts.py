"""Part files of a teacher store, in both formats: array_record files that are there whole or not at all.

Format 2: the first record of a part is JSON, its index: {"format", "start", "k", "log_probs", "texts": how many each
block holds}; a record follows for each block (`teachers.blocks`). Format 1, which stores without a format number have:
a record for each text, safetensors of the fields of its row.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from fusion_jax.data.documents import TeacherRow
from fusion_jax.errors import InputError
from fusion_jax.files import replacing, writing
from fusion_jax.store.lock import Held
from fusion_jax.teachers.blocks import DTYPES, Block, LogProbs, decode, encode, falls, spans

FORMAT = 2
OPTIONS = {1: "group_size:1", 2: "group_size:1,zstd:1"}  # of array_record: a record alone is read, and how it is packed
CACHED = 4  # blocks of a store that are kept after they were read: what few readers, each in order, need


class PartForm(NamedTuple):
    """What a part is to hold. start: its first record, from 0; records: how many."""

    start: int
    records: int
    k: int
    log_probs: LogProbs
    format: int


class OtherPart(ValueError):
    """A part, or a record of it, is of other texts or another store."""


def write_part(path: Path, rows: Sequence[TeacherRow], form: PartForm, lock: Held) -> None:
    """Write a part.

    Raises:
      InputError: a row is not as `TeacherRow` says; names its record in the part.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with writing("a part of a teacher store", path), replacing(path) as temporary:
        writer = ArrayRecordWriter(os.fspath(temporary), OPTIONS[form.format])
        try:
            for record in _records(path, rows, form):
                writer.write(record)
        finally:
            writer.close()
        lock.check()


def _records(path: Path, rows: Sequence[TeacherRow], form: PartForm) -> Iterator[bytes]:
    """What the records of a part hold."""
    checked = [_checked(row, form, path, number) for number, row in enumerate(rows, form.start + 1)]
    if form.format == 1:
        for row in checked:
            yield safetensors.numpy.save(row._asdict())
        return
    blocks = spans([len(row.ids) for row in checked], form.k)
    yield json.dumps(_known(form) | {"texts": [len(block) for block in blocks]}).encode()
    for block in blocks:
        yield encode(checked[block.start : block.stop], form.log_probs, form.start + block.start)


def _known(form: PartForm) -> dict[str, object]:
    """What the index of a part says of it."""
    return {"format": form.format, "start": form.start, "k": form.k, "log_probs": form.log_probs}


def _checked(row: TeacherRow, form: PartForm, path: Path, number: int) -> TeacherRow:
    """The row with the dtypes of `DTYPES`, where it is as `TeacherRow` says."""
    tokens, k = len(row.ids), form.k
    shapes = {
        "ids": (tokens,), "offsets": (tokens, 2), "topk_ids": (tokens, k), "topk_logprobs": (tokens, k),
        "logsumexp": (tokens,), "tail": (tokens,), "metric": (2,),
    }  # fmt: skip
    for name, shape in shapes.items():
        value = np.asarray(getattr(row, name))
        if value.shape != shape:
            raise InputError(f"has shape {value.shape} instead of {shape}", file=path, record=number, field=name)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(
                "is not finite", file=path, record=number, field=name, cure="Check the teacher's weights and the text"
            )
    cast = TeacherRow(*(np.ascontiguousarray(x, DTYPES[name]) for name, x in row._asdict().items()))
    if form.log_probs == "8bit" and not falls(cast.topk_logprobs):
        cure = "Give entries in the order of their log-probs, or keep these as float16"
        raise InputError("does not fall, or rises above 0", file=path, record=number, field="topk_logprobs", cure=cure)
    return cast


class PartFile:
    """A part, read text by text.

    Raises:
      RuntimeError, ValueError, OSError: it is no whole array_record file.
    """

    def __init__(self, file: Path, form: PartForm) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._source, self._form = ArrayRecordDataSource([os.fspath(file)]), form
        self._bounds: np.ndarray | None = None
        if form.format == 1:
            self.texts = len(self._source)
        else:
            self.texts = form.records if len(self._source) else 0  # its index is read with the first row

    def row(self, place: int, cache: BlockCache) -> TeacherRow:
        """The row of text `place` of the part.

        Raises:
          OtherPart: the part is of something else.
          ValueError, RuntimeError, KeyError, safetensors.SafetensorError: it cannot be read.
        """
        if self._form.format == 1:
            arrays = safetensors.numpy.load(self._source[place])
            return TeacherRow(**{name: arrays[name] for name in TeacherRow._fields})
        if self._bounds is None:
            self._bounds = self._index()
        number = int(np.searchsorted(self._bounds, place, "right")) - 1
        first, end = self._bounds[number : number + 2].tolist()
        block = cache.get((self._form.start, number), lambda: self._block(number, first, end - first))
        return block.row(place - first)

    def _index(self) -> np.ndarray:
        """int[blocks+1], the text that each block begins with."""
        index: Any = json.loads(self._source[0])
        if not isinstance(index, dict) or "format" not in index:
            raise ValueError("it has no index")
        texts = index.pop("texts", None)
        if index != _known(self._form) or sum(texts) != self._form.records or len(texts) != len(self._source) - 1:
            raise OtherPart
        return np.cumsum([0, *texts])

    def _block(self, number: int, first: int, texts: int) -> Block:
        block = decode(self._source[1 + number], self._form.log_probs, self._form.start + first)
        if len(block.bounds) - 1 != texts:
            raise OtherPart
        return block


class BlockCache:
    """The blocks that were read last, by (first record of the part, number of the block); for several threads."""

    def __init__(self, size: int = CACHED) -> None:
        self._size, self._kept, self._lock = size, OrderedDict[tuple[int, int], Block](), threading.Lock()

    def get(self, key: tuple[int, int], read: Callable[[], Block]) -> Block:
        """The block, read where it is not kept any more."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        found = read()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return found
