"""Weights between the files' tensors and the parameters, slice by slice; parts of one tensor are cut out on reading and
put together again on writing, with the same bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.buffers import is_buffer
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.tensors import HfTensor
from fusion_jax.models.int8 import read_int8
from fusion_jax.models.parameters import LORA, abstract_params
from fusion_jax.models.safetensors_io import DTYPES, PlannedTensor, TensorEntry
from fusion_jax.ops.int8 import Int8
from fusion_jax.sharding import fetched

Array = jax.Array
Params = dict[str, Any]


def check_weights(
    folder: Path, config: ModelConfig, entries: Mapping[str, TensorEntry], tensors: Sequence[HfTensor],
    ignored: Sequence[str], lost: Mapping[str, str], named: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """Every weight is there, none is left over but buffers, and each has the shape that the config gives.

    Args:
      ignored: patterns of tensors beside the weights. lost: what else would help where a tensor is missing, by name.
      named: what the files call a tensor, for messages.

    Raises:
      InputError: names the file and the tensor.
    """
    specs = abstract_params(config)
    for tensor in tensors:
        entry = entries.get(tensor.name)
        if entry is None:
            raise _missing(folder, tensor.name, entries, lost, named)
        entry.check_weight(named(tensor.name))
        shape = tensor.shape or _in_file(_at(specs, tensor.path).shape, tensor)
        if entry.shape != shape:
            raise InputError(
                f"has shape {entry.shape}, config.json gives {shape}", file=entry.file, field=named(tensor.name),
                cure="Use the config.json that belongs to the weights",
            )  # fmt: skip
    expected = {tensor.name for tensor in tensors}
    for name, entry in entries.items():
        if name not in expected and not is_buffer(name, entry, ignored):
            cure = "Remove it, or correct model_type in config.json"
            problem = "is a weight that this architecture does not have"
            raise InputError(problem, file=entry.file, field=named(name), cure=cure)


def _missing(
    folder: Path, name: str, entries: Mapping[str, TensorEntry], lost: Mapping[str, str], named: Callable[[str], str]
) -> InputError:
    problem, cure = "the weight is missing", "Restore the checkpoint's files" + lost.get(name, "")
    other = sorted({e.stored for e in entries.values() if e.stored not in DTYPES})
    problem += f" (the files hold tensors of dtype {', '.join(other)}, which are no weights)" if other else ""
    return InputError(problem, file=folder, field=named(name), cure=cure)


def read_params(
    config: ModelConfig, entries: Mapping[str, TensorEntry], tensors: Sequence[HfTensor], dtype: Any,
    mesh: Mesh | None, *, int8: bool = False,
) -> Params:  # fmt: skip
    """The parameters in `dtype`; with a mesh, every device's slice is read on its own. int8: the layers' kernels so."""
    sources: dict[tuple[str, ...], dict[tuple[int, ...], HfTensor]] = {}
    for tensor in tensors:
        sources.setdefault(tensor.path, {})[tensor.index] = tensor

    def read(path: tuple[str, ...], abstract: Any) -> Any:
        indexed = sources[path]
        leading = len(next(iter(indexed)))
        if isinstance(abstract, Int8):

            def wide(place: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
                tensor = indexed[place]
                return slice_of(entries[tensor.name], tensor, abstract.shape[leading:], index, np.dtype(np.float32))

            return read_int8(abstract, leading, wide)

        def part(index: Any) -> np.ndarray:
            ranges = [range(size)[one] for one, size in zip(index[:leading], abstract.shape, strict=False)]
            chosen = (indexed[place] for place in itertools.product(*ranges))
            rest = abstract.shape[leading:]
            found = [slice_of(entries[t.name], t, rest, index[leading:], dtype) for t in chosen]
            if not leading:
                return found[0]
            return np.stack(found).reshape(*map(len, ranges), *found[0].shape)

        sharding = abstract.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.make_array_from_callback(abstract.shape, sharding, part)

    return _map_with_path(read, abstract_params(config, dtype, mesh, int8=int8))


def planned_tensors(
    config: ModelConfig, params: Params, tensors: Sequence[HfTensor], dtype: np.dtype
) -> Iterator[PlannedTensor]:
    """The tensors of the files in the order in which the family names them, their values on demand."""
    together: dict[str, list[HfTensor]] = {}
    for tensor in tensors:
        together.setdefault(tensor.name, []).append(tensor)
    for name, parts in together.items():
        first = parts[0]
        if first.shape is None:
            shape = _in_file(_at(params, first.path).shape, first)
            yield PlannedTensor(name, dtype, shape, _value(params, first, dtype))
        else:
            values = [(part, _value(params, part, dtype)) for part in parts]
            yield PlannedTensor(name, dtype, first.shape, partial(_joined, values, first.shape, dtype))


def _value(params: Params, tensor: HfTensor, dtype: np.dtype) -> Callable[[], np.ndarray]:
    """Fetches one parameter, or one of a stack, as it lies in the file; an adapter that stands beside it is added."""
    value, beside = _at(params, tensor.path), _at(params, tensor.path[:-1])
    adapter = [beside[name] for name in LORA] if tensor.path[-1] == "kernel" and LORA[0] in beside else []

    def fetch() -> np.ndarray:
        one = indexed(value, tensor.index)
        if adapter:
            a, b = (indexed(each, tensor.index) for each in adapter)
            one = one.astype(a.dtype) + a @ b
        host = one.astype(dtype, copy=False)
        return np.swapaxes(host, -1, -2) if tensor.transpose else host

    return fetch


def indexed(value: Array, index: tuple[int, ...]) -> np.ndarray:
    """One of a stack of parameters, or for () the whole, on the host; where several hosts hold it, all ask together."""
    if value.is_fully_addressable:
        return np.asarray(value[index] if index else value)
    start, size = (index[0], 1) if index else (0, len(value))
    one = fetched(value, start, size)
    return one[(0, *index[1:])] if index else one


def _joined(
    parts: Sequence[tuple[HfTensor, Callable[[], np.ndarray]]], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """A tensor of several parameters."""
    out, written = np.empty(shape, dtype), 0
    for tensor, value in parts:
        place = out.reshape(tensor.view or shape)[tensor.part]
        place[...] = value().reshape(place.shape)
        written += place.size
    if written != math.prod(shape):
        raise ValueError(f"the parts of {parts[0][0].name} have {written} numbers, the tensor {math.prod(shape)}")
    return out


def slice_of(
    entry: TensorEntry, tensor: HfTensor, shape: tuple[int, ...], index: tuple[slice, ...], dtype: Any
) -> np.ndarray:
    """A slice of a parameter of this shape (the leading axes that `tensor.index` gives left out)."""
    if tensor.transpose:
        index = (*index[:-2], index[-1], index[-2])
    if tensor.shape is None:
        value = entry.read(index)
    elif tensor.view is None and index and len(tensor.part) == 1 and isinstance(rows := tensor.part[0], slice):
        start, stop, _ = index[0].indices(_turned(shape, tensor)[0])
        value = entry.read((slice(rows.start + start, rows.start + stop), *index[1:]))
    else:
        whole = entry.mapped().reshape(tensor.view or tensor.shape)[tensor.part]
        value = np.array(whole.reshape(_turned(shape, tensor))[index])
    value = np.swapaxes(value, -1, -2) if tensor.transpose else value
    return np.ascontiguousarray(value.astype(dtype, copy=False))


def _in_file(shape: tuple[int, ...], tensor: HfTensor) -> tuple[int, ...]:
    """The shape of the tensor of a parameter that has it for itself."""
    return _turned(shape[len(tensor.index) :], tensor)


def _turned(shape: tuple[int, ...], tensor: HfTensor) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if tensor.transpose else shape


def _at(tree: Params, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _map_with_path(fn: Any, tree: Params, prefix: tuple[str, ...] = ()) -> Params:
    return {
        k: _map_with_path(fn, v, (*prefix, k)) if isinstance(v, dict) else fn((*prefix, k), v) for k, v in tree.items()
    }
