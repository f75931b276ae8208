"""TPU chips and slices by their cloud names."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

import jax

from fusion_jax.errors import InputError

ASYNCHRONOUS = {
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
"""Options under which parameters are gathered while the layer before them computes, instead of in pieces between."""

OFFLOADED = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_tpu_sparse_core_all_reduce_offload_min_size_in_bytes": str(2**20),
}
"""Options under which sparse cores sum gradients while the others compute; the small sums of decoding wait for none."""

_PCIE = 16e9
"""Bytes a second of a chip's link to its host, one way: PCIe of v4 by "How to Scale Your Model", part 2
(jax-ml.github.io/scaling-book); of the other generations no figure was found, they are taken to be no faster."""


@dataclass(frozen=True)
class Chip:
    """One chip of a generation.

    flops: bf16 a second; bandwidth: HBM bytes a second; hbm: bytes that a program may use; link: bytes a second, one
    way, of one link to a neighbour; host_link: of the link to the host. efficiency: of the peak that matmuls reach,
    fitted to the compiler's own cycles. vmem_kib: of vector memory that a fusion may use, 0: as the compiler does by
    itself. clock: cycles a second. cores: counted in a cloud name, of one chip. torus: whether slices of full cubes of
    4 wrap around, else only a dimension of 16 does. kind: what JAX calls a device of it. sparse_core: whether it has
    cores that carry collectives.
    """

    name: str
    flops: float
    bandwidth: float
    hbm: float
    link: float
    efficiency: float
    vmem_kib: int
    clock: float
    cores: int
    torus: bool
    shapes: tuple[tuple[int, ...], ...]
    kind: str
    host_link: float = _PCIE
    options: dict[str, Any] = field(default_factory=dict)
    sparse_core: bool = False

    @property
    def compiler_options(self) -> dict[str, str]:
        """What programs are compiled with for this chip, here and in a run."""
        vmem = {"xla_tpu_scoped_vmem_limit_kib": str(self.vmem_kib)} if self.vmem_kib else {}
        return ASYNCHRONOUS | vmem | (OFFLOADED if self.sparse_core else {})


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))
_GIB = 2**30
_V4 = Chip(
    name="v4", flops=275e12, bandwidth=1228e9, hbm=30.75 * _GIB, link=45e9, efficiency=0.75, vmem_kib=0, clock=1.05e9,
    cores=2, torus=True, shapes=_CUBES, kind="TPU v4", options={"chip_config_name": "megacore"},
)  # fmt: skip
_V5E = Chip(
    name="v5e", flops=197e12, bandwidth=819e9, hbm=15.75 * _GIB, link=45e9, efficiency=0.95, vmem_kib=81920,
    clock=1.5e9, cores=1, torus=False, shapes=_FLAT, kind="TPU v5 lite",
)  # fmt: skip
_V5P = Chip(
    name="v5p", flops=459e12, bandwidth=2765e9, hbm=95.74 * _GIB, link=90e9, efficiency=0.95, vmem_kib=49152,
    clock=1.75e9, cores=2, torus=True, shapes=_CUBES, kind="TPU v5", sparse_core=True,
)  # fmt: skip
_V6E = Chip(
    name="v6e", flops=918e12, bandwidth=1640e9, hbm=31.25 * _GIB, link=90e9, efficiency=0.86, vmem_kib=98304,
    clock=1.75e9, cores=1, torus=False, shapes=_FLAT, kind="TPU v6 lite", sparse_core=True,
)  # fmt: skip
CHIPS = {chip.name: chip for chip in (_V4, _V5E, _V5P, _V6E)}


def compute_dtype() -> str:
    """What the devices here compute in: bfloat16 where they multiply it natively, float32 on a CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def compiler_options(kind: str) -> dict[str, str]:
    """What to compile with for devices that JAX calls `kind`; nothing for those that are not in the table."""
    return next((chip.compiler_options for chip in CHIPS.values() if kind.removesuffix("p") == chip.kind), {})


@dataclass(frozen=True)
class Slice:
    """A slice: chips in a grid of `shape`."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Which dimensions are rings."""
        if self.chip.torus:
            return (all(n % 4 == 0 for n in self.shape),) * len(self.shape)
        return tuple(n == 16 for n in self.shape)

    @property
    def topology(self) -> str:
        """The compiler's name of it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def topology_options(self) -> dict[str, Any]:
        """What `get_topology_desc` must be told besides the name."""
        single = {"chips_per_host_bounds": [1, 1, 1]} if self.chips == 1 else {}
        return self.chip.options | single


SLICES = {
    f"{chip.name}-{math.prod(shape) * chip.cores}": Slice(f"{chip.name}-{math.prod(shape) * chip.cores}", chip, shape)
    for chip in CHIPS.values()
    for shape in chip.shapes
}


def slice_of(name: str) -> Slice:
    """A slice by its cloud name: v5e-16 and v6e-8 count chips, v4-64 and v5p-64 count cores, two a chip.

    Raises:
      InputError: no such slice; names the nearest.
    """
    known = name.lower().replace("v5litepod", "v5e")
    if known in SLICES:
        return SLICES[known]
    chip = known.partition("-")[0]
    near = [s for s in SLICES if s.startswith(f"{chip}-")] or difflib.get_close_matches(known, SLICES, 5, 0.3)
    raise InputError(
        f"no slice is called '{name}'", field="--plan", cure=f"Known and near: {', '.join(near or SLICES)}"
    )
