"""The header of a GGUF file: metadata by key, and where each tensor lies.

Format (version 2 and 3, little-endian): "GGUF", uint32 version, uint64 counts of tensors and of metadata; each entry of
the metadata a string key, uint32 type, value; each tensor its name, uint32 count of sizes, uint64 sizes (the fastest
first), uint32 number of its quantisation, uint64 offset; then the data, aligned. A string is a uint64 length and UTF-8.
Every length is held against the bytes that are left, so that a damaged file ends in one error and in bounded time.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.files import regular_file
from fusion_jax.json_files import CURE
from fusion_jax.paths import is_remote

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT, STRING, ARRAY = 6, 8, 9
ALIGNMENT = 32


@dataclass(frozen=True)
class Stored:
    """One tensor as the header gives it: number of its quantisation, shape (rows first), offset from the first byte of
    the data."""

    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """metadata: values by key, arrays as lists. tensors: by name. start: first byte of the data. size: of the file."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    start: int
    size: int


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a GGUF file: by its ending, as long as it is no folder."""
    text = os.fspath(path)
    return text.lower().endswith(SUFFIX) and (is_remote(text) or not os.path.isdir(text))


def gguf_instead(folder: Path, names: Sequence[str]) -> InputError | None:
    """What is wrong with a model folder of these files that holds a GGUF file in the place of a model."""
    found = [name for name in names if name.lower().endswith(SUFFIX)]
    if not found:
        return None
    return InputError("holds a GGUF file, no Hugging Face model", file=folder, cure=f"Give {folder / found[0]}")


def read_gguf_header(path: Path) -> Header:
    """The header of a file; that of a file which is read again is kept.

    Raises:
      InputError: no such file, one of a bucket, no GGUF file, another version, one that ends within its header, a key
        or tensor that stands twice; names the file and the field.
    """
    if is_remote(path):
        raise InputError(
            "a GGUF file is read from a disk, not from a bucket", file=path, cure="Copy it to this machine"
        )
    file = regular_file(path)
    found = file.stat()
    return _read(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, size: int, _written: int) -> Header:
    with open(file, "rb") as source:
        start = source.read(8)
        if start[:4] != MAGIC:
            problem = "is not a GGUF file (it does not begin with 'GGUF')"
            raise InputError(problem, file=file, cure="Give a GGUF file, or a Hugging Face folder")
        version = int.from_bytes(start[4:], "little")
        if len(start) == 8 and version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            problem = "is big-endian" if version and not version % 65536 else f"is {version}; known are {known}"
            raise InputError(problem, file=file, field="version", cure="Convert the model with a newer llama.cpp")
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(file, content, size).header()


class _Reader:
    """Reads one value after the other; `field` is what is being read, for messages."""

    def __init__(self, file: Path, content: mmap.mmap, size: int) -> None:
        self.file, self.content, self.size, self.at, self.field = file, content, size, 8, "header"

    def header(self) -> Header:
        """The whole header."""
        tensors, pairs = self._numbers("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._named(metadata, "key")
            metadata[key] = self._value(self._numbers("I")[0])
        found: dict[str, Stored] = {}
        for _ in range(tensors):
            name = self._named(found, "tensor")
            found[name] = self._tensor()
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            self.field = "general.alignment"
            raise self._wrong(f"is {quoted(alignment)}, not a power of two")
        start = -(-self.at // alignment) * alignment
        return Header(self.file, metadata, found, start, self.size)

    def _wrong(self, problem: str) -> InputError:
        return InputError(problem, file=self.file, field=self.field, cure=CURE)

    def _room(self, count: int) -> None:
        if count > self.size - self.at:
            raise self._wrong(f"the file is cut short or damaged here (byte {self.at} of {self.size})")

    def _numbers(self, form: str) -> tuple[Any, ...]:
        length = struct.calcsize(f"<{form}")
        self._room(length)
        self.at += length
        return struct.unpack_from(f"<{form}", self.content, self.at - length)

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        self._room(length)
        self.at += length
        try:
            return self.content[self.at - length : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._wrong("holds a string that is not UTF-8") from None

    def _named(self, known: Mapping[str, Any], what: str) -> str:
        """The name of the next entry, which is not there yet."""
        name = self._text()
        self.field = name
        if name in known:
            raise self._wrong(f"the {what} stands twice")
        return name

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise self._wrong(f"has type {kind}, which is not of the format")
        (value,) = self._numbers(SCALARS[kind])
        return float(str(np.float32(value))) if kind == FLOAT else value  # 1e-05, not 9.999999747378752e-06

    def _array(self) -> list[Any]:
        kind, count = self._numbers("IQ")
        if kind == STRING:
            self._room(8 * count)
            return [self._text() for _ in range(count)]
        if kind not in SCALARS:
            raise self._wrong(f"is an array of type {kind}, which is not read")
        self._room(count * struct.calcsize(SCALARS[kind]))
        return list(self._numbers(f"{count}{SCALARS[kind]}"))

    def _tensor(self) -> Stored:
        (axes,) = self._numbers("I")
        if axes > 4:
            raise self._wrong(f"has {axes} axes, 4 at most")
        sizes = self._numbers(f"{axes}Q")
        if math.prod(max(size, 1) for size in sizes) >= 2**60:
            raise self._wrong("its shape is too large")
        kind, offset = self._numbers("IQ")
        return Stored(kind, tuple(reversed(sizes)), offset)
