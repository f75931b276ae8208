"""Ask the TPU compiler in a process of its own, and stop it when it has said enough.

Memory is settled seconds into a compile, long before code is generated: the compiler dumps the scheduled program with
its buffers, and the process is ended there. A full compile adds the compiler's own cycles of every fusion.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.plan.requests import Request, to_json
from fusion_jax.slices import slice_of

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip
SCHEDULED, BUFFERS = "after_optimizations_after_buffer_assignment.txt", "after_optimizations-buffer-assignment.txt"
USAGE, OVERFLOWN = "after_optimizations-memory-usage-report.txt", "oom_intermediate_module.txt"


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip's HBM, by the compiler's buffer assignment.

    arguments: what goes in and, donated, comes out; temporaries: the rest of the peak. largest: (bytes, what they
    are) of the greatest buffers.
    """

    arguments: int
    temporaries: int
    peak: int
    available: int
    largest: tuple[tuple[int, str], ...]

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a request. text: final HLO; coords: see `cost.step_time`; full: cycles included."""

    memory: Memory
    text: str
    coords: tuple[tuple[int, ...], ...]
    full: bool
    seconds: float

    def __repr__(self) -> str:
        return brief(self)


def check_compiler(option: str = "--plan") -> None:
    """Refuse where the TPU compiler, which an option asks for, is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "planning needs the TPU compiler, libtpu, which is not installed", field=option,
            cure='No TPU is needed: pip install "jax[tpu]==0.10.2"',
        )  # fmt: skip


def compile_for(request: Request, *, full: bool = False, limit: float = 3600.0) -> Compiled:
    """Compile a request for its slice.

    Raises:
      InputError: libtpu is not installed, the request does not go together, the compiler refuses it for a reason other
        than memory.
    """
    check_compiler()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = f"--xla_dump_to={folder / 'dump'} --xla_dump_hlo_as_text=true"
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | ENVIRONMENT | {"XLA_FLAGS": flags, "PYTHONPATH": path}
        command = [sys.executable, "-m", "fusion_jax.plan.child", name, "full" if full else "fast"]
        with open(folder / "stderr", "w") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=environment, text=True
            )
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps(to_json(request)))
                child.stdin.close()
                _wait(child, folder, full, started + limit)
            finally:
                child.kill()
                child.wait()
        return _read(request, folder, full, time.monotonic() - started)


def _wait(child: subprocess.Popen[str], folder: Path, full: bool, deadline: float) -> None:
    """Until the child has ended or, unless all is wanted, the scheduled program is on the disk."""
    while child.poll() is None and time.monotonic() < deadline:
        if not full and _complete(_dumped(folder, SCHEDULED)):
            return
        time.sleep(0.05)


def _dumped(folder: Path, ending: str) -> Path | None:
    """The file of the largest program dumped."""
    found = (folder / "dump").glob(f"*.{ending}")
    return max((f for f in found if ".cpu_" not in f.name), key=lambda f: f.stat().st_size, default=None)


def _complete(file: Path | None) -> bool:
    """Whether the whole program is written: its entry comes last."""
    if file is None:
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    entry = text.find("\nENTRY ")
    return entry >= 0 and text.find("\n}", entry) >= 0


def _read(request: Request, folder: Path, full: bool, seconds: float) -> Compiled:
    failed = json.loads((folder / "failed.json").read_text()) if (folder / "failed.json").exists() else {}
    if failed.get("kind") == "input":
        raise InputError(failed["problem"], field=failed["field"], cure=failed["cure"])
    scheduled, usage = _dumped(folder, SCHEDULED) or _dumped(folder, OVERFLOWN), _dumped(folder, USAGE)
    if scheduled is None or usage is None or failed.get("kind") == "compiler":
        said = failed.get("text") or "".join((folder / "stderr").read_text(errors="replace").splitlines(True)[-3:])
        raise InputError(
            f"the TPU compiler gave up ({' '.join(said.split())[:400] or 'it said nothing'})", field="--plan",
            cure="Is another process short of memory? Otherwise the program is not one that it can compile",
        )  # fmt: skip
    available = int(slice_of(request.slice).chip.hbm)
    buffers = _dumped(folder, BUFFERS)
    memory = memory_of(usage.read_text(), buffers.read_text() if buffers else "", available)
    final = folder / "final.txt"
    text = final.read_text() if full and final.exists() else scheduled.read_text()
    places: Any = json.loads((folder / "lowered.json").read_text())["coords"]
    rank = len(slice_of(request.slice).shape)
    coords = tuple(tuple(place[:rank]) for place in places)
    return Compiled(memory, text, coords, full and final.exists(), seconds)


def memory_of(usage: str, buffers: str, available: int) -> Memory:
    """The compiler's memory-usage report and buffer assignment as figures.

    Args:
      usage: `Total bytes` of the memory space with color 0 are the peak of HBM.
      buffers: allocations with `parameter N` are the arguments.
    """
    total = re.search(r"color=0\)\nTotal bytes: (\d+)", usage)
    peak = int(total.group(1)) if total else 0
    sizes = re.findall(r"^allocation \d+: size (\d+)(?:, color 0)?, parameter ", buffers, re.MULTILINE)
    arguments = sum(map(int, sizes))
    return Memory(arguments, max(peak - arguments, 0), peak, available, _largest(usage))


_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}


def _largest(usage: str) -> tuple[tuple[int, str], ...]:
    hbm = usage.partition("color=0)")[2].partition("Memory Space")[0]
    rows = re.findall(r"\); +([\d.]+)(GiB|MiB|KiB|B); +\d+; +\d+; (.*)", hbm)
    found = [(int(float(number) * _UNITS[unit]), shapes.strip()) for number, unit, shapes in rows]
    return tuple(sorted(found, key=lambda row: -row[0])[:12])
