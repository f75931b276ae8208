"""Safetensors by byte range: read any slice of any tensor, write tensor by tensor; no torch, no pickle.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the bytes. The
header's rules are those of `safetensors_header`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.files import regular_file, replacing
from fusion_jax.json_files import CURE, read_json
from fusion_jax.models.gguf_header import gguf_instead
from fusion_jax.models.safetensors_header import BITS, LARGEST, parse_header
from fusion_jax.paths import exists, is_remote, listed, read_range, size_of, write_text

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {name: BITS[name][1] for name in ("F64", "F32", "F16", "BF16")}  # of weights that are read
NAMES = {dtype: name for name, (_, dtype) in BITS.items() if dtype != np.void}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, first byte, dtype, shape; `stored` is the format's name of the dtype.

    dtype: numpy's; np.void for numbers of less than a byte, which are not read.
    """

    file: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    stored: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * BITS[self.stored][0] // 8

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its numbers are made of."""
        return (self.file,)

    def check_weight(self, name: str) -> None:
        """Raises InputError where the tensor, needed as a weight, has a dtype that is not read."""
        if self.stored not in DTYPES:
            cure = f"Convert the weights to one of {', '.join(DTYPES)} (dequantise a quantised model)"
            raise InputError(f"has dtype {self.stored}", file=self.file, field=name, cure=cure)

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor or a slice of it; only the slice's pages are read or, from a bucket, the rows that it is in."""
        if not (is_remote(self.file) and index and 0 not in self.shape):
            return np.array(self.mapped()[index])
        first, last, _ = index[0].indices(self.shape[0])
        row = self.nbytes // self.shape[0]
        some = replace(self, start=self.start + first * row, shape=(last - first, *self.shape[1:]))
        return np.array(some.mapped()[(slice(None), *index[1:])])

    def read_into(self, out: np.ndarray) -> None:
        """The whole tensor into an array of its shape, cast where the dtype is another; contiguous where it is not."""
        if out.dtype != self.dtype or is_remote(self.file):
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
        """The tensor as the file's own pages, read-only; fetched, where the file is on a bucket."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        if not self.dtype.itemsize:
            raise InputError(f"numbers of dtype {self.stored} are not read", file=self.file)
        if is_remote(self.file):
            raw = read_range(self.file, self.start, self.start + self.nbytes)
            if len(raw) != self.nbytes:
                raise InputError("was cut short while it was read", file=self.file, cure="Copy the file again")
            return np.frombuffer(raw, self.dtype).reshape(self.shape)
        return np.memmap(self.file, self.dtype, "r", offset=self.start, shape=self.shape)


class MadeEntry(TensorEntry):
    """A tensor whose numbers are made as `read` is called, not those of the file as they are."""

    def read_into(self, out: np.ndarray) -> None:
        """The whole tensor into an array of its shape."""
        out[...] = self.read()

    def mapped(self) -> np.ndarray:
        """The whole tensor."""
        return self.read()


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Every tensor of one file, of any dtype of the format.

    Raises:
      InputError: no regular file, a broken header, or a file that is cut short; names file and tensor.
    """
    size = size_of(regular_file(file))
    prefix = read_range(file, 0, min(8, size))
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < length <= min(LARGEST, size - 8):
        raise InputError("is not a whole safetensors file (its header does not fit)", file=file, cure=CURE)
    first = 8 + length
    raw = read_range(file, 8, first)
    return {
        name: TensorEntry(file, first + one.start, BITS[one.dtype][1], one.shape, one.dtype)
        for name, one in parse_header(raw, size - first, file).items()
    }


def open_folder(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint folder: of model.safetensors, or of the files that an index lists.

    Where a folder holds both, and the index does not list model.safetensors, the single file is the model, as for
    transformers: the index is left over from an earlier save.

    Raises:
      InputError: neither is there, or one is broken; an index that lists a file that is not there, or a tensor that its
        file does not hold; a tensor in two of the files.
    """
    single, index = folder / SINGLE, folder / INDEX
    alone = exists(single)
    if not exists(index):
        if not alone:
            raise _no_weights(folder)
        return read_header(single)
    weight_map = _weight_map(index)
    files = sorted(set(weight_map.values()))
    for name in files:
        _check_listed(folder, name, index, alone)
    return read_header(single) if alone and SINGLE not in files else _indexed(folder, weight_map, files)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file of an index."""
    try:
        found = read_json(index).get("weight_map")
    except InputError as error:
        raise InputError(f"is a broken index ({error.problem})", file=index, cure=CURE) from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise InputError("is a broken index (its weight_map does not list files)", file=index, cure=CURE)
    return found


def _check_listed(folder: Path, name: str, index: Path, alone: bool) -> None:
    """A name that an index lists is a file of the folder."""
    if Path(name).name != name:
        raise InputError(f"lists {quoted(name)}, which is not a file name", file=index, cure=CURE)
    try:
        regular_file(folder / name)
    except InputError as error:
        missing = error.problem == "there is no such file"
        problem = f"lists {quoted(name)}, which " + ("is not there" if missing else error.problem)
        cure = "Copy the missing file" + (f", or remove the index if {SINGLE} is the whole model" if alone else "")
        raise InputError(problem, file=index, cure=cure) from None


def _indexed(folder: Path, weight_map: Mapping[str, str], files: Sequence[str]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for name in files:
        entries = read_header(folder / name)
        twice = next((tensor for tensor in entries if tensor in found), None)
        if twice is not None:
            problem = f"stands in two files, {found[twice].file.name} and {name}"
            raise InputError(problem, file=folder, field=twice, cure="Remove the file that does not belong")
        found |= entries
    for tensor, name in weight_map.items():
        if tensor not in found or found[tensor].file.name != name:
            problem = f"is listed in the index but not in {name}"
            raise InputError(problem, file=folder / INDEX, field=tensor, cure=CURE)
    return found


def _no_weights(folder: Path) -> InputError:
    """What a folder without safetensors holds instead, and what to do about it."""
    names = listed(folder)
    if (beside := gguf_instead(folder, names)) is not None:
        return beside
    if any(name.startswith("model-0") and name.endswith(".safetensors") for name in names):
        return InputError(f"holds parts of a model but not {INDEX}, which lists them", file=folder, cure="Copy it, too")
    if any(name.startswith("adapter_") for name in names):
        cure = "Copy the model's files, too, or give the adapter a folder of its own"
        return InputError("holds an adapter (LoRA) and a part of a model", file=folder, cure=cure)
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        cure = "Convert the model to safetensors (transformers: from_pretrained, then save_pretrained)"
        return InputError("holds pickled weights, which are not read", file=folder, cure=cure)
    if "consolidated.safetensors" in names:
        cure = "Download the folder's model-*.safetensors and their index, too"
        return InputError("holds weights under Mistral's own names only (consolidated)", file=folder, cure=cure)
    return InputError(f"holds no {SINGLE}", file=folder, cure="Give a Hugging Face model folder")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its bytes are asked for only when its turn comes.

    copied: whether it is a buffer, written as another checkpoint has it.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]
    copied: bool = False

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
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def write_shard(
    folder: Path, shard: Shard, *, sync: bool = True, before_end: Callable[[], object] = lambda: None
) -> None:
    """One file, there whole or not at all; each tensor's bytes are asked for when their turn comes.

    Args:
      sync: see `files.replacing`. before_end: called when all bytes are there, before the file is put in its place.
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
        before_end()


def metadata_dtype(entries: Mapping[str, TensorEntry]) -> np.dtype:
    """The dtype that most bytes of a checkpoint's weights have; float32 where there are none."""
    sizes: dict[np.dtype, int] = {}
    for e in entries.values():
        if e.stored in DTYPES:
            sizes[e.dtype] = sizes.get(e.dtype, 0) + e.nbytes
    return max(sizes, key=lambda d: sizes[d], default=np.dtype(np.float32))
