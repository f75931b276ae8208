"""Before a long run: do all hosts hold the same code, see all devices, reach each other and the shared folder?

    tpu_scripts/tpu.sh preflight -- --devices 16 --path /mnt/share      # on all hosts of a TPU slice
    python tpu_scripts/preflight.py --hosts.coordinator ADDRESS:PORT --hosts.count 2 --hosts.index 0    # likewise 1

Every host takes part in every check and comes to the same verdict; host 0 prints one line for each. Exit code 0: all is
well; 1: a check failed, or took longer than its limit; 2: a setting does not fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from fusion_jax.errors import InputError
from fusion_jax.hosts.join import Host, HostSettings, join
from fusion_jax.options import Folder
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_program
from fusion_jax.sharding import make_mesh

ROOT = Path(__file__).resolve().parent.parent
Report = dict[str, Any]  # JSON values: what one host found
SOURCES = ("fusion_jax", "experiments", "tpu_scripts")
REPEATS = 5
CLOCK_LIMIT_S = 2.0


@dataclass(frozen=True)
class Settings:
    """What all hosts together should have."""

    devices: int | None = None
    """Devices that all hosts together should see."""
    size_mb: float = 64.0
    """Megabytes that each device adds to the all-reduce."""
    path: Folder = ""
    """A folder that all hosts share, /mnt/share or gs://BUCKET/FOLDER; without, none is tried."""
    limit_s: float = 120.0
    """Seconds after which a check counts as hanging."""
    hosts: HostSettings = field(default_factory=HostSettings)

    def __post_init__(self) -> None:
        bounded(self, "size_mb", "limit_s", above=0)
        if self.devices is not None:
            bounded(self, "devices", least=1)


@dataclass(frozen=True)
class Verdict:
    """What all hosts' reports say together: passed where there are no problems."""

    detail: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """measure: this host's part, at the same time on all hosts. hint: why it hangs, where it does."""

    name: str
    measure: Callable[[Settings, Host], Report]
    judge: Callable[[Settings, list[Report]], Verdict]
    hint: str


@contextlib.contextmanager
def limited(name: str, hint: str, seconds: float) -> Iterator[None]:
    """End this process with a hint when the block takes longer: a hanging collective cannot be interrupted."""

    def give_up() -> None:
        print(f"{name:<11} FAILED  no end after {seconds:g} s on {platform.node()}", flush=True)
        print(f"  Usual causes: {hint}.", flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def gather(report: Report) -> list[Report]:
    """The reports of all hosts, in the order of the hosts; a barrier."""
    raw = np.frombuffer(json.dumps(report).encode(), np.uint8)
    sizes = gather_rows(np.array([raw.size], np.int32))[:, 0]
    rows = gather_rows(np.pad(raw, (0, int(sizes.max()) - raw.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def gather_rows(row: np.ndarray) -> np.ndarray:
    """[width] of each host -> [hosts, width]. `process_allgather` needs equally many devices on all hosts."""
    mesh = make_mesh(data=-1)
    rows = jax.make_array_from_callback(
        (mesh.size, row.size), NamedSharding(mesh, PartitionSpec("data")), lambda _: row[None]
    )
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(rows)
    of_host = {device.process_index: i for i, device in enumerate(mesh.devices.flat)}
    return np.asarray(everywhere.addressable_data(0))[[of_host[index] for index in range(jax.process_count())]]


def by_hosts(values: list[Any]) -> str:
    """'A on host 0, 2; B on host 1'"""
    hosts: dict[str, list[str]] = {}
    for index, value in enumerate(values):
        hosts.setdefault(str(value), []).append(str(index))
    return "; ".join(f"{value} on host {', '.join(where)}" for value, where in hosts.items())


def differing(reports: list[Report]) -> tuple[str, ...]:
    """A line for each entry that is not the same on all hosts."""
    columns = {name: [report[name] for report in reports] for name in reports[0]}
    return tuple(f"{name}: {by_hosts(values)}" for name, values in columns.items() if len(set(values)) > 1)


def source_hash(root: Path) -> str:
    """The first 12 digits of the sha256 of all Python sources, names included."""
    digest = hashlib.sha256()
    for file in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions(s: Settings, host: Host) -> Report:
    packages = {name: installed(name) for name in ("jax", "jaxlib", "libtpu")}
    return {"python": platform.python_version(), **packages, "sources": source_hash(ROOT)}


def judge_versions(s: Settings, reports: list[Report]) -> Verdict:
    return Verdict(" ".join(f"{name} {value}" for name, value in reports[0].items()), differing(reports))


def devices(s: Settings, host: Host) -> Report:
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    return {"kind": ", ".join(kinds), "devices": jax.local_device_count()}


def judge_devices(s: Settings, reports: list[Report]) -> Verdict:
    total = sum(report["devices"] for report in reports)
    detail = f"{total} x {reports[0]['kind']}, hosts: {len(reports)}"
    missing = (f"{total} devices are here, {s.devices} are expected",) if s.devices not in (None, total) else ()
    return Verdict(detail, missing + differing(reports))


def all_reduce(s: Settings, host: Host) -> Report:
    """Device i adds an array of i + 1, so that a device left out shows in the sum."""
    mesh = make_mesh(data=-1)
    width = max(int(s.size_mb * 1e6) // 4, 1)

    def row(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return np.full((1, width), (index[0].start or 0) + 1, np.float32)

    sharding = NamedSharding(mesh, PartitionSpec("data"))
    values = jax.make_array_from_callback((mesh.size, width), sharding, row)
    add = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec()
        )
    )
    total = np.asarray(jax.block_until_ready(add(values)).addressable_data(0))
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(add(values))
        times.append(time.perf_counter() - started)
    right = bool((total == mesh.size * (mesh.size + 1) // 2).all())
    return {"right": right, "seconds": statistics.median(times), "bytes": 4 * width, "devices": mesh.size}


def judge_all_reduce(s: Settings, reports: list[Report]) -> Verdict:
    first, slowest = reports[0], max(report["seconds"] for report in reports)
    speed = f"{first['bytes'] / slowest / 1e9:.3g} GB/s"
    detail = f"{first['bytes'] / 1e6:.3g} MB on each of {first['devices']} devices in {slowest * 1e3:.3g} ms: {speed}"
    wrong = tuple(f"the sum is wrong on host {i}" for i, report in enumerate(reports) if not report["right"])
    return Verdict(detail, wrong)


def fault_of(action: Callable[[], object]) -> str:
    """What went wrong, or nothing: storage clients raise anything, and every host has to come to the next barrier."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def shared_path(s: Settings, host: Host) -> Report:
    """Each host writes a file, reads those of all hosts and deletes its own."""
    folder, content = epath.Path(s.path), uuid.uuid4().hex
    name = f"preflight-{host.index}-{content}"
    started = time.perf_counter()
    problems = {"write": fault_of(partial(folder.joinpath(name).write_text, content))}
    written = gather({"name": "" if problems["write"] else name, "content": content})
    for index, other in enumerate(written):
        if other["name"]:
            problems[f"read what host {index} wrote"] = fault_of(partial(_compare, folder, other))
    gather({})  # all have read
    if not problems["write"]:
        problems["delete"] = fault_of(folder.joinpath(name).unlink)
    return {"problems": {k: v for k, v in problems.items() if v}, "seconds": time.perf_counter() - started}


def _compare(folder: epath.Path, file: Report) -> None:
    if folder.joinpath(file["name"]).read_text() != file["content"]:
        raise OSError(f"{file['name']} holds something else")


def judge_shared_path(s: Settings, reports: list[Report]) -> Verdict:
    problems = tuple(
        f"host {index} cannot {action}: {problem}"
        for index, report in enumerate(reports)
        for action, problem in report["problems"].items()
    )
    return Verdict(f"{s.path}, hosts: {len(reports)}", problems)


def clock(s: Settings, host: Host) -> Report:
    gather({})  # so that all read their clocks at about the same time
    return {"time": time.time()}


def judge_clock(s: Settings, reports: list[Report]) -> Verdict:
    times = [report["time"] for report in reports]
    first, last = times.index(min(times)), times.index(max(times))
    apart = times[last] - times[first]
    problem = (f"the clock of host {last} is {apart:.1f} s ahead of that of host {first}",)
    return Verdict(f"at most {apart:.3f} s apart", problem if apart > CLOCK_LIMIT_S else ())


CHECKS = (
    Check("versions", versions, judge_versions, "unlike versions (compare the lines above), or a host that ended"),
    Check("devices", devices, judge_devices, "another program holds the chips, or a host ended"),
    Check(
        "all-reduce", all_reduce, judge_all_reduce,
        "a chip or a link of the slice is down, or hosts are of unlike versions; create the slice anew",
    ),
    Check("path", shared_path, judge_shared_path, "a mount that does not answer, or no route to the bucket"),
    Check("clock", clock, judge_clock, "a host ended"),
)  # fmt: skip


def passes(check: Check, s: Settings, host: Host) -> bool:
    """Run one check on all hosts; host 0 prints its line."""
    started = time.perf_counter()
    with limited(check.name, check.hint, s.limit_s):
        verdict = check.judge(s, gather(check.measure(s, host)))
    if host.first:
        word, seconds = "FAILED" if verdict.problems else "OK", time.perf_counter() - started
        print(f"{check.name:<11} {word:<6} {seconds:7.2f} s  {verdict.detail}", flush=True)
        for problem in verdict.problems:
            print(f"  {problem}", flush=True)
    return not verdict.problems


def main(s: Settings) -> None:
    hint = "a host that has not started or ended at once, a firewall between the hosts, a program that holds the chips"
    with limited("connect", hint, s.limit_s):
        print(f"{platform.node()}: {judge_versions(s, [versions(s, Host())]).detail}", flush=True)
        host = join(s.hosts)
    if host.count != jax.process_count():
        raise InputError(
            f"{host.count} hosts are not connected", field="--hosts.coordinator", cure="Give ADDRESS:PORT of host 0"
        )
    passed = [passes(check, s, host) for check in CHECKS if s.path or check.measure is not shared_path]
    if not all(passed):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(Settings, main, description=__doc__)
