"""The inputs of a merge's tensors: read into host memory ahead of their use, hashed, checked for NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import xxhash

from fusion_jax.errors import InputError
from fusion_jax.merge.executor.prepare import Prepared
from fusion_jax.merge.recipes.plan import TensorInput, TensorPlan
from fusion_jax.merge.vocabulary.rows import remap
from fusion_jax.models.safetensors_io import TensorEntry

Hashes = dict[str, Future[str]]
AHEAD = 512 << 20  # bytes of inputs; larger tensors are read and merged with nothing else in memory


class Loaded(NamedTuple):
    """A tensor's inputs in host memory. models: float[K,...]; None: the base is copied.

    hashes: of each input, perhaps still being computed.
    """

    tensor: TensorPlan
    models: np.ndarray | None
    base: np.ndarray | None
    hashes: Hashes


def read_ahead(prepared: Prepared, tensors: Sequence[TensorPlan], hashers: Executor) -> Iterator[Loaded]:
    """Each tensor's inputs, in order; while one is used, the next is read in another thread, if both are small.

    Small tensors reuse three buffers in turn, so that the system gives their pages once and not for each tensor: a
    tensor's inputs stay valid until the next tensor but one is requested.
    """
    small = [prepared.held(t) <= AHEAD for t in tensors]
    room = 64 + max((prepared.held(t) for t, is_small in zip(tensors, small) if is_small), default=0)
    slabs = [np.empty(room, np.uint8) for _ in range(min(3, sum(small)))]
    slab_of = {number: slabs[turn % 3] for turn, number in enumerate(np.flatnonzero(small).tolist())}
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Loaded] | None = None
        for number, tensor in enumerate(tensors):
            now = ahead.result() if ahead else load_tensor(prepared, tensor, hashers, slab_of.get(number))
            ahead = None
            if number + 1 < len(tensors) and small[number] and small[number + 1]:
                ahead = reader.submit(load_tensor, prepared, tensors[number + 1], hashers, slab_of[number + 1])
            yield now
            del now


def load_tensor(
    prepared: Prepared, tensor: TensorPlan, hashers: Executor | None = None, slab: np.ndarray | None = None
) -> Loaded:
    """Read a tensor's inputs once, rewritten to the output's vocabulary where the recipe says so.

    hashers: where their bytes are hashed meanwhile. slab: memory that the inputs may lie in, if there is room.
    """
    if tensor.rows is not None and prepared.rows is not None:
        found = _rewritten(prepared, tensor)
        content = {one: prepared.entry(one).mapped() for one in tensor.reads}
        models = np.stack([found[one] for one in tensor.inputs]) if tensor.inputs else None
        base = found[tensor.base] if tensor.base else None
    else:
        count = len(tensor.inputs)
        rows = _read_stack(prepared, tensor.reads, slab)
        models = rows[:count] if count else None
        base = rows[count, ...] if tensor.base else None
        content = {one: _as_stored(prepared.entry(one), rows[i, ...]) for i, one in enumerate(tensor.reads)}
    hashes: Hashes = {}
    if hashers is not None:
        hashes = {f"{one.model}/{one.tensor}": hashers.submit(_content_hash, array) for one, array in content.items()}
    return Loaded(tensor, models, base, hashes)


def _content_hash(array: np.ndarray) -> str:
    """128 bits of the tensor's bytes: names a content, and takes a tenth of the time of a hash that resists forgers."""
    return xxhash.xxh3_128_hexdigest(array.reshape(-1).view(np.uint8).data)


def _rewritten(prepared: Prepared, tensor: TensorPlan) -> dict[TensorInput, np.ndarray]:
    """The models' rows in the order of the output's vocabulary; models that lack the tensor have no rows to give."""
    assert prepared.rows is not None
    of_model = {one.model: one for one in tensor.reads}
    listed = [model for model in prepared.recipe.inputs if model in of_model]
    stored = {model: jnp.asarray(prepared.entry(of_model[model]).mapped()) for model in listed}
    return {of_model[model]: np.asarray(new) for model, new in remap(prepared.rows.of(listed), stored).items()}


def _as_stored(entry: TensorEntry, array: np.ndarray) -> np.ndarray:
    """A tensor's own bytes: the array that was read, unless reading cast it."""
    return array if array.dtype == entry.dtype else entry.mapped()


def _read_stack(prepared: Prepared, inputs: Sequence[TensorInput], slab: np.ndarray | None) -> np.ndarray:
    """[N,...] read into one array, of the files' dtype where it is one that the device takes, else float32."""
    entries = [prepared.entry(one) for one in inputs]
    out = _aligned((len(entries), *entries[0].shape), common_dtype({e.dtype for e in entries}), slab)
    for number, entry in enumerate(entries):
        entry.read_into(out[number, ...])
    return out


def common_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """The one dtype, or float32 where there are several or a device does not take it."""
    return dtypes.pop() if len(dtypes) == 1 and np.dtype(np.float64) not in dtypes else np.dtype(np.float32)


def _aligned(shape: tuple[int, ...], dtype: np.dtype, slab: np.ndarray | None) -> np.ndarray:
    """An array that a CPU device can take without a copy: it begins at a multiple of 64 bytes; in the slab if it fits.

    What it holds is not defined.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    raw = slab if slab is not None and size + 64 <= slab.size else np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def check_inputs(prepared: Prepared, tensor: TensorPlan) -> None:
    """Raises InputError where what is read for a tensor holds NaN or infinity; names the file."""
    for one in tensor.reads:
        entry = prepared.entry(one)
        if not np.isfinite(entry.mapped().astype(np.float32)).all():
            cure = "Restore or leave out this model"
            raise InputError("holds NaN or infinity", file=entry.file, field=one.tensor, cure=cure)
