"""Tensors of a GGUF file as those of a checkpoint: dequantised by slices of rows, under their Hugging Face names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.json_files import CURE
from fusion_jax.models.gguf_header import Header, Stored
from fusion_jax.models.safetensors_io import MadeEntry

BYTES_AT_ONCE = 32 << 20  # of float32 numbers
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def gguf_package(file: Path) -> ModuleType:
    """The package `gguf`, whose tables and NumPy code say what quantised numbers mean.

    Raises:
      InputError: it is not installed; names the file that needs it.
    """
    try:
        import gguf
    except ImportError:
        problem = "a GGUF file needs the package gguf, which is not installed"
        raise InputError(problem, file=file, cure="Install it with: pip install gguf") from None
    return gguf


@dataclass(frozen=True)
class Quantisation:
    """name: as llama.cpp calls it. block: numbers of a block; size: its bytes."""

    number: int
    name: str
    block: int
    size: int


@cache
def _quantisation(number: int) -> Quantisation | str:
    """A quantisation that is read, else what is wrong with it."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        return f"has quantisation number {number}, which the installed gguf package does not know"
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return f"has quantisation {kind.name}, which is not read"
    return Quantisation(number, kind.name, block, size)


@dataclass(frozen=True)
class GgufEntry(MadeEntry):
    """A tensor that is dequantised; `dtype` and `stored` are those of the numbers.

    quantisation: of the bytes in the file. heads: of a tensor whose rows llama.cpp has interleaved within each of so
    many heads; 0: none. offset: what is added to every number.
    """

    quantisation: Quantisation = Quantisation(0, "F32", 1, 4)
    heads: int = 0
    offset: float = 0.0

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor, of one axis or two, or a slice of it; only its rows are dequantised, a few megabytes at once."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)[index]
        places, stored = _places(self.shape[0], self.heads), self._rows()
        if len(self.shape) == 1:
            return self._numbers(stored)[0][places][index]
        rows, columns = (*index, slice(None), slice(None))[:2]
        wanted = places[rows]
        out = np.empty((len(wanted), len(range(self.shape[1])[columns])), self.dtype)
        step = max(1, BYTES_AT_ONCE // (4 * self.shape[1]))
        for at in range(0, len(wanted), step):
            out[at : at + step] = self._numbers(stored[wanted[at : at + step]])[:, columns]
        return out

    def _rows(self) -> np.ndarray:
        """The file's own bytes, [rows, bytes of a row]."""
        count, block = math.prod(self.shape[:-1]), self.quantisation
        width = self.shape[-1] // block.block * block.size
        return np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(count, width))

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """[rows, columns] of the tensor's dtype, from bytes."""
        rows = np.ascontiguousarray(rows)
        if self.quantisation.name in PLAIN:
            values = rows.view(PLAIN[self.quantisation.name])
        else:
            import gguf

            values = gguf.dequantize(rows, gguf.GGMLQuantizationType(self.quantisation.number))
        return values.astype(np.float32) + np.float32(self.offset) if self.offset else values


def _places(rows: int, heads: int) -> np.ndarray:
    """Where in the file each row lies: llama.cpp puts the two halves of a head's rows in turn."""
    if not heads:
        return np.arange(rows)
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def entry_of(header: Header, name: str, stored: Stored, **more: Any) -> GgufEntry:
    """A tensor of a header; no byte of it is read.

    Raises:
      InputError: a quantisation that is not read, rows that are no whole blocks, a tensor behind the file's end, and
        one that heads do not divide; names the file and the tensor.
    """

    def wrong(problem: str, cure: str = CURE) -> InputError:
        return InputError(problem, file=header.file, field=name, cure=cure)

    kind = _quantisation(stored.kind)
    if isinstance(kind, str):
        cure = "Take a file of another quantisation, or the model's Hugging Face folder, or a newer gguf package"
        raise wrong(kind, cure)
    columns = stored.shape[-1] if stored.shape else 1
    if columns % kind.block:
        raise wrong(f"has rows of {columns} numbers, which are no whole blocks of {kind.block} ({kind.name})")
    size = math.prod(stored.shape) // kind.block * kind.size
    end = header.start + stored.offset + size
    if end > header.size:
        raise wrong(f"the file is cut short ({header.size} bytes, {end} needed)")
    plain = kind.name if kind.name in PLAIN and not more.get("offset") else "F32"
    start = header.start + stored.offset
    entry = GgufEntry(header.file, start, PLAIN[plain], stored.shape, plain, kind, **more)
    if entry.heads and (not stored.shape or stored.shape[0] % (2 * entry.heads)):
        raise wrong(f"has shape {stored.shape}, which {entry.heads} heads do not divide")
    return entry
