"""Reads the kernels of layers as int8: tensor by tensor, so that no more than one of them is here in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import jax
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.int8 import Int8, holds_int8, is_int8, rounded

Index = tuple[slice, ...]
Weights = Literal["stored", "int8"]
"""How the layers' kernels of a model that only reads or writes texts are held: as its files have them, or in int8."""


def dtype_of(weights: Weights) -> str | None:
    """What `load` takes for it."""
    return None if weights == "stored" else weights


def refuse_int8(params: Any, what: str) -> None:
    """Raises InputError where parameters hold kernels in int8. what: that they cannot be, for instance "trained"."""
    if holds_int8(params):
        cure = 'Load the model without dtype="int8"'
        raise InputError(f"weights in int8 cannot be {what}: they are for reading and writing texts", cure=cure)


def int8_numbers(config: ModelConfig) -> int:
    """How many of a model's numbers are held so."""
    params = jax.tree.leaves(abstract_params(config, int8=True), is_leaf=is_int8)
    return sum(math.prod(one.shape) for one in params if is_int8(one))


def read_int8(abstract: Int8, leading: int, read: Callable[[tuple[int, ...], Index], np.ndarray]) -> Int8:
    """A stacked kernel as the shardings of `abstract` spread it.

    Args:
      leading: how many of its leading axes are places of tensors in the files.
      read: (place, index of the rest) -> that part of one tensor, float.
    """
    shape = tuple(abstract.values.shape)
    values, scales = list[jax.Array](), list[jax.Array]()
    for group in _alike(abstract.values):
        first = next(iter(group.values()))
        ranges = [range(*one.indices(size)) for one, size in zip(first[:leading], shape, strict=False)]
        rest = (*first[leading:-2], slice(None), first[-1])  # a scale is that of all inputs
        parts = [rounded(read(place, rest)) for place in product(*ranges)]

        def joined(of: list[np.ndarray], sizes: list[int]) -> np.ndarray:
            return np.stack(of).reshape(*sizes, *of[0].shape)

        sizes = [len(one) for one in ranges]
        whole = joined([part.values for part in parts], sizes)
        scale = joined([part.scale for part in parts], sizes)
        for device, index in group.items():
            values.append(jax.device_put(np.ascontiguousarray(whole[..., index[-2], :]), device))
            scales.append(jax.device_put(scale, device))
    return Int8(_assembled(abstract.values, values), _assembled(abstract.scale, scales))


def _alike(abstract: jax.ShapeDtypeStruct) -> list[dict[jax.Device, Index]]:
    """This host's devices and what each holds, together where they hold the same outputs, of any inputs."""
    groups: dict[tuple[Any, ...], dict[jax.Device, Index]] = {}
    for device, index in _sharding(abstract).addressable_devices_indices_map(abstract.shape).items():
        assert index is not None
        held = [one.indices(size) for one, size in zip(index, abstract.shape, strict=True)]
        groups.setdefault((*held[:-2], held[-1]), {})[device] = index
    return list(groups.values())


def _sharding(abstract: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return abstract.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _assembled(abstract: jax.ShapeDtypeStruct, parts: list[jax.Array]) -> jax.Array:
    return jax.make_array_from_single_device_arrays(abstract.shape, _sharding(abstract), parts)
