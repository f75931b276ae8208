"""The device mesh and the one table that maps logical axis names to mesh axes.

Mesh axes: `data` (replicated parameters), `fsdp` (parameters and optimiser state sharded, batch sharded), `tensor`
(heads, feed-forward width and vocabulary sharded). Every axis is Auto: the compiler places the collectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusion_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "tokens": None,
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": None,
    "rank": "fsdp",
    "latent": None,
    "labels": None,
}


def mesh_sizes(count: int, data: int = 1, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
    """(data, fsdp, tensor) over `count` devices; one of the sizes may be -1 and takes what the others leave.

    Raises:
      InputError: sizes that are not positive, or whose product is not `count`.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise InputError(
            f"mesh sizes {tuple(sizes)} are not valid", field="mesh", cure="Give positive sizes, at most one of them -1"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(count // math.prod(s for s in sizes if s != -1), 1)
    if math.prod(sizes) != count:
        raise InputError(
            f"mesh {dict(zip(AXES, sizes))} needs {math.prod(sizes)} devices, {count} are here",
            field="mesh",
            cure="Make the product of mesh-data, mesh-fsdp and mesh-tensor equal to the number of devices",
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `mesh_sizes` over `devices`, all without. An axis may take a part of a dimension of the slice, as one
    of 8 in a slice of 4 x 4."""
    devices = list(jax.devices()) if devices is None else list(devices)
    sizes = mesh_sizes(len(devices), data, fsdp, tensor)
    placed = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axis names, one for each dimension, to a PartitionSpec by `RULES`."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in axes))


def _axis_size(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return int(np.prod([mesh.shape[n] for n in names], dtype=np.int64))


def named(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
    """The sharding of an array with these logical axes; a dimension the mesh does not divide stays whole."""
    entries = list(partition_spec(axes))
    if shape is not None:
        entries = [e if size % _axis_size(mesh, e) == 0 else None for e, size in zip(entries, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*entries))


def constrain(x: jax.Array, mesh: Mesh | None, axes: Sequence[str | None]) -> jax.Array:
    """`with_sharding_constraint` by logical names; the identity without a mesh."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, named(mesh, axes, x.shape))


def data_ways(mesh: Mesh | None) -> int:
    """How many ways a batch is split."""
    return 1 if mesh is None else _axis_size(mesh, RULES["batch"])


def padded_rows(rows: int, ways: int) -> int:
    """The rows of a batch with those that fill it, so that every one of `ways` devices has as many."""
    return -(-rows // ways) * ways


def local_rows(count: int, mesh: Mesh | None) -> np.ndarray:
    """int[n], which of `count` rows of a batch the devices of this host hold, in ascending order."""
    if mesh is None:
        return np.arange(count)
    held = named(mesh, ("batch",)).addressable_devices_indices_map((count,)).values()
    return np.unique([row for index in held for row in np.arange(count)[index]])


def placed(value: np.ndarray, mesh: Mesh | None, axes: Sequence[str | None]) -> jax.Array:
    """An array that every host has whole onto the devices, by logical names."""
    if mesh is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, named(mesh, axes, value.shape), value.__getitem__)


def fetched(value: jax.Array, start: int, size: int) -> np.ndarray:
    """value[start:start + size] on every host, where each may hold a part only: all have to ask for it together."""
    assert isinstance(value.sharding, NamedSharding)
    whole = NamedSharding(value.sharding.mesh, PartitionSpec())
    take = jax.jit(jax.lax.dynamic_slice_in_dim, static_argnums=2, out_shardings=whole)
    return np.asarray(take(value, start, size))


def tensor_shards(mesh: Mesh | None) -> int:
    """How many ways the vocabulary is split."""
    return 1 if mesh is None else int(mesh.shape["tensor"])
