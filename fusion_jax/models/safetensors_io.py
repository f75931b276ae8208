"""Safetensors by byte range: read any slice of any tensor, write tensor by tensor; no torch, no pickle.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.files import replacing

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, first byte, dtype, shape."""

    file: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor or a slice of it; only the pages of the slice are read."""
        return np.array(self.mapped()[index])

    def read_into(self, out: np.ndarray) -> None:
        """The whole tensor into an array of its shape, cast where the dtype is another; contiguous where it is not."""
        if out.dtype != self.dtype:
            out[...] = self.mapped()
            return
        with open(self.file, "rb", buffering=0) as source:
            source.seek(self.start)
            rest = out.reshape(-1).view(np.uint8).data
            while rest:
                count = source.readinto(rest)
                if not count:
                    raise InputError("was cut short while it was read", file=self.file, cure="Copy the file again")
                rest = rest[count:]

    def mapped(self) -> np.ndarray:
        """The tensor as the file's own pages, read-only."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", offset=self.start, shape=self.shape)


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Every tensor of one file.

    Raises:
      InputError: the file is broken or cut short, or a tensor has a dtype we do not read; names file and tensor.
    """
    cure = "Download or copy the file again"
    size = file.stat().st_size
    with open(file, "rb") as source:
        prefix = source.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(MAX_HEADER, max(size - 8, 0)):
            raise InputError("is not a whole safetensors file (its header does not fit)", file=file, cure=cure)
        raw = source.read(length)
    try:
        header = json.loads(raw)
        items = [(name, v) for name, v in header.items() if name != "__metadata__"]
        entries = {name: (v["dtype"], tuple(map(int, v["shape"])), *map(int, v["data_offsets"])) for name, v in items}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("has a broken safetensors header", file=file, cure=cure) from None
    out = {}
    for name, (dtype, shape, start, end) in entries.items():
        if dtype not in DTYPES:
            raise InputError(
                f"has dtype {dtype}", file=file, field=name, cure=f"Convert the weights to one of {', '.join(DTYPES)}"
            )
        if end - start != int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize or start < 0:
            raise InputError(f"its bytes do not match its shape {shape}", file=file, field=name, cure=cure)
        if 8 + length + end > size:
            raise InputError(
                f"the file is cut short ({size} bytes, {8 + length + end} needed)", file=file, field=name, cure=cure
            )
        out[name] = TensorEntry(file, 8 + length + start, DTYPES[dtype], shape)
    return out


def open_folder(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint folder: one file, or the files its index lists."""
    index = folder / INDEX
    if index.exists():
        try:
            weight_map = {str(k): str(v) for k, v in json.loads(index.read_text("utf-8"))["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError("is a broken index", file=index, cure="Download or copy the file again") from None
        headers: dict[str, dict[str, TensorEntry]] = {}
        for name in sorted(set(weight_map.values())):
            if Path(name).name != name:
                raise InputError(f"lists '{name}', which is not a file name", file=index)
            if not (folder / name).exists():
                raise InputError(f"lists {name}, which is not there", file=index, cure="Copy the missing file")
            headers[name] = read_header(folder / name)
        for tensor, name in weight_map.items():
            if tensor not in headers[name]:
                raise InputError(f"is listed in the index but not in {name}", file=index, field=tensor)
        return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise InputError(
            "holds pickled weights, which are not read", file=folder, cure="Convert the model to safetensors"
        )
    raise InputError("holds no model.safetensors", file=folder, cure="Give a Hugging Face model folder")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its bytes are asked for only when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file to write, and the tensors in it in their order."""

    file: str
    tensors: tuple[PlannedTensor, ...]


def plan_shards(tensors: Iterable[PlannedTensor], *, shard_bytes: int = 5 * 10**9) -> list[Shard]:
    """Tensors in order in one file or, beyond `shard_bytes`, in several."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return [Shard(SINGLE, tuple(shards[0]))]
    count = len(shards)
    return [Shard(f"model-{i:05d}-of-{count:05d}.safetensors", tuple(s)) for i, s in enumerate(shards, 1)]


def write_folder(folder: Path, tensors: Iterable[PlannedTensor], *, shard_bytes: int = 5 * 10**9) -> None:
    """Write tensors in order, into one file or, beyond `shard_bytes`, several with an index."""
    shards = plan_shards(tensors, shard_bytes=shard_bytes)
    for shard in shards:
        write_shard(folder, shard)
    write_index(folder, shards)


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """The index of several files; nothing for one file, which needs none."""
    if len(shards) > 1:
        total = sum(t.nbytes for shard in shards for t in shard.tensors)
        weight_map = {t.name: shard.file for shard in shards for t in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_shard(folder: Path, shard: Shard, *, sync: bool = True) -> None:
    """One file, there whole or not at all; each tensor's bytes are asked for when their turn comes.

    sync: see `files.replacing`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for t in shard.tensors:
        header[t.name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [start, start + t.nbytes]}
        start += t.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with replacing(folder / shard.file, sync=sync) as temporary, open(temporary, "wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for t in shard.tensors:
            value = t.value()
            if value.shape != t.shape or value.dtype != t.dtype:
                raise ValueError(f"{t.name}: planned {t.dtype}{t.shape}, got {value.dtype}{value.shape}")
            out.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def metadata_dtype(entries: Mapping[str, TensorEntry]) -> np.dtype:
    """The dtype that most bytes of a checkpoint have."""
    sizes: dict[np.dtype, int] = {}
    for e in entries.values():
        sizes[e.dtype] = sizes.get(e.dtype, 0) + int(np.prod(e.shape, dtype=np.int64)) * e.dtype.itemsize
    return max(sizes, key=lambda d: sizes[d])
