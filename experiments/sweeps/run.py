"""Sweeps over the settings of an experiment: resumable, several runs at once where there are devices, one table.

    python experiments/sweeps/run.py experiments/sweeps/wrpo/alpha.yaml --out runs/alpha
    python experiments/sweeps/run.py experiments/sweeps/wrpo/*.yaml --out runs/ablations          # one after the other

A sweep is a YAML file:

    about: what it asks
    experiment: wrpo                      # experiments/wrpo.py; a path ending in .py is from the sweep file's folder
    options: {dpo.loss: ipo}              # of every run, as on the experiment's command line
    grid: {wrpo.alpha: [0.1, 0.3]}        # every combination is a cell ...
    cells: {"no SFT": {sft_share: 0}}     # ... or, instead, cells by name, each with its options; {experiment: dpo}
                                          # among them: this cell is of another experiment
    models: [SFT-WRPO]                    # those of results.json that are shown; without: all
    published: {"alpha=0.1": "..."}       # shown beside a cell; {cell: {model: "..."}} beside a model's line

Every cell runs with every seed in a process of its own, in OUT/CELL/seed-N; what it prints is in OUT/CELL/seed-N.txt.
Started again, the same command skips the runs that are finished and resumes the others. --at-once N runs so many side
by side, each with --devices-each GPUs or TPU chips of its own; without, they share the GPU or the CPU's cores (a TPU
chip cannot be shared). The options of all cells are checked before the first run. One that fails is told below the
table, the others go on, and the exit code is 1.
Result: report.md with means and 95 % Student intervals over seeds, sweep.png, results.jsonl. Time of the shipped WRPO
sweeps on 2 CPU cores: 3 to 4 minutes a cell and seed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

from experiments.sweeps.files import Cell, Sweep, read_sweep
from experiments.sweeps.report import write_report
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.hosts.signals import PREEMPTED
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.jsonl import Record
from fusion_jax.options import Files, Folder, Positional
from fusion_jax.paths import refuse_remote
from fusion_jax.runs.opening import check_finished, check_settings, finished
from fusion_jax.settings import bounded, seeded
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.lock import held, is_held, is_trace
from fusion_jax.store.run_folder import CONFIG, RESULTS

SWEEP = "sweep.json"
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # chips of a process as libtpu wants them
ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


@dataclass(frozen=True)
class Settings:
    """Sweep files, and how their runs are spread over seeds and devices."""

    sweeps: Positional[Files] = ()
    """YAML files of sweeps."""
    out: Folder = "runs/sweep"
    """Folder of the sweep, which is made; the same command continues it."""
    seeds: int = 3
    """Runs of each cell, with seed, seed + 1, ..."""
    seed: int = 42
    """The first seed."""
    at_once: int = 1
    """Runs side by side."""
    devices_each: int = 0
    """GPUs or TPU chips that each run sees; 0: all."""

    def __post_init__(self) -> None:
        bounded(self, "seeds", "at_once", least=1)
        seeded(self, "seed")
        if self.devices_each not in (0, *TPU_BOUNDS):
            cure = f"Give 0 or one of {', '.join(map(str, TPU_BOUNDS))}"
            raise InputError(f"{self.devices_each} is out of range", field="devices_each", cure=cure)


@dataclass(frozen=True)
class Job:
    """One run: a cell with a seed."""

    sweep: Sweep
    cell: Cell
    seed: int
    folder: Path

    @property
    def finished(self) -> bool:
        return finished(self.folder) and (self.folder / RESULTS).exists()

    @property
    def command(self) -> list[str]:
        resume = ["--resume", "True"] if self.folder.exists() else []
        own = [f"--{self.cell.experiment.seed}", str(self.seed), "--out", str(self.folder)]
        return [sys.executable, str(self.cell.experiment.script), *self.cell.args, *own, *resume]


@dataclass
class Children:
    """The processes that run, to be ended with this one."""

    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self.stopped.set()
        for child in list(self.running):
            child.terminate()


def main(s: Settings) -> None:
    if not s.sweeps:
        cure = "Give a YAML file, such as experiments/sweeps/wrpo/alpha.yaml"
        raise InputError("is missing", field="sweeps", cure=cure)
    refuse_remote(s.out, "--out")
    slots = device_slots(s, os.environ)
    sweeps = [read_sweep(Path(file)) for file in s.sweeps]
    places: dict[Path, list[Job]] = {}
    for sweep in sweeps:
        place = Path(s.out) / sweep.name if len(sweeps) > 1 else Path(s.out)
        if place in places:
            raise InputError(f"two sweeps are called '{sweep.name}'", file=sweep.file, cure="Rename one of the files")
        check_place(place, sweep)
        places[place] = jobs_of(s, sweep, place)
    failed = 0
    for place, jobs in places.items():
        place.mkdir(parents=True, exist_ok=True)
        with held(place):
            write_json(place / SWEEP, identity(jobs[0].sweep))
            failures = carried_out(jobs, slots)
            records = [record for job in jobs if job.finished for record in results_of(job)]
            table = write_report(place, jobs[0].sweep, records, failures, s.seeds)
        print(f"\n{table}\n\nreport: {place / 'report.md'}\n")
        failed += len(failures)
    if failed:
        raise SystemExit(1)


def identity(sweep: Sweep) -> dict[str, str]:
    return {"sweep": sweep.name, "experiment": sweep.experiment}


def check_place(place: Path, sweep: Sweep) -> None:
    """Refuse a folder that holds something else than this sweep."""
    if place.exists() and not place.is_dir():
        raise InputError("is a file, not a folder", file=place, field="--out", cure="Choose another --out")
    if not place.exists() or all(is_trace(p.name) for p in place.iterdir()):
        return
    held = read_json(place / SWEEP, cure=RESTORE) if (place / SWEEP).exists() else None
    if held != identity(sweep):
        what = "files but no sweep" if held is None else f"the sweep '{held.get('sweep')}'"
        raise InputError(f"holds {what}", file=place, field="--out", cure="Choose an empty or new folder")


def jobs_of(s: Settings, sweep: Sweep, place: Path) -> list[Job]:
    """All runs of a sweep, every cell's first seed first.

    Raises:
      InputError: one was started with other settings, or its results are not as they were written.
    """
    jobs = [
        Job(sweep, cell, seed, place / cell.folder / f"seed-{seed}")
        for seed in range(s.seed, s.seed + s.seeds)
        for cell in sweep.cells
    ]
    for job in jobs:
        if job.finished and (job.folder / CONFIG).exists():
            check_settings(job.folder, sweep.settings(job.cell, job.seed))
            check_finished(job.folder, [RESULTS])
    return jobs


def device_slots(s: Settings, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """What the environment of each of the runs at once says of devices.

    Raises:
      InputError: CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS is set and lists too few.
    """
    if not s.devices_each:
        name, older = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # jax refuses both together
        said = name in environ or older in environ
        return [{} if s.at_once == 1 or said else {name: f"{0.9 / s.at_once:.2f}"}] * s.at_once
    slots: list[dict[str, str]] = [{} for _ in range(s.at_once)]
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        wanted = s.at_once * s.devices_each
        seen = environ[name].split(",") if environ.get(name) else [str(i) for i in range(wanted)]
        if len(seen) < wanted:
            cure = "Lower --at-once or --devices-each"
            raise InputError(f"{name} lists {len(seen)} devices for {wanted}", field="--devices-each", cure=cure)
        for i, slot in enumerate(slots):
            slot[name] = ",".join(seen[i * s.devices_each : (i + 1) * s.devices_each])
    bounds = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[s.devices_each]}
    return [slot | bounds for slot in slots]


def carried_out(jobs: Sequence[Job], slots: Sequence[dict[str, str]]) -> dict[tuple[str, int], str]:
    """Run what is not finished, as many at once as there are slots; (cell, seed) -> why it failed."""
    free: Queue[dict[str, str]] = Queue()
    for slot in slots:
        free.put(slot)
    left = [job for job in jobs if not job.finished]
    print(f"{jobs[0].sweep.name}: {len(jobs)} runs, {len(jobs) - len(left)} of them finished", flush=True)

    def one(job: Job) -> str:
        slot, started = free.get(), time.monotonic()
        try:
            failure = "not started" if children.stopped.is_set() else run_job(job, slot, children)
        finally:
            free.put(slot)
        outcome = failure or f"done, {time.monotonic() - started:.0f} s"
        print(f"  {job.cell.name}, seed {job.seed}: {outcome}", flush=True)
        return failure

    with ended_with_this() as children, ThreadPoolExecutor(len(slots)) as pool:
        try:
            failures = list(pool.map(one, left))
        except BaseException:
            children.stop()
            raise
    return {(job.cell.name, job.seed): failure for job, failure in zip(left, failures) if failure}


@contextmanager
def ended_with_this() -> Iterator[Children]:
    """While it is open, SIGTERM ends the children too, which save their state."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(PREEMPTED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield Children()
    finally:
        signal.signal(signal.SIGTERM, before)


def run_job(job: Job, slot: dict[str, str], children: Children) -> str:
    """One run in a process of its own; why it failed, or nothing."""
    if is_held(job.folder):  # by a run that outlived its sweep
        return "another process runs it"
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(job.folder.with_name(f"{job.folder.name}.txt"), "ab") as out:
        begin = out.tell()
        child = subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=os.environ | slot
        )
        children.running.add(child)
        if children.stopped.is_set():
            child.terminate()
        code = child.wait()
        children.running.discard(child)
        name = out.name
    if job.finished and code == 0:
        return ""
    return reason(code, Path(name).read_bytes()[begin:].decode(errors="replace"))


def reason(code: int, text: str) -> str:
    """Why a process ended so, in one line."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == PREEMPTED:
        return "was told to stop; the same command resumes it"
    if code == 0:
        return f"wrote no {RESULTS}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if ERROR.match(line)] or lines
    return told[-1].removeprefix("error: ") if told else f"exit code {code}"


def results_of(job: Job) -> list[Record]:
    """A finished run's measures, a record for each model."""
    found = read_json(job.folder / RESULTS, cure=RESTORE)
    return [
        {
            "cell": job.cell.name, "options": dict(job.cell.options), "seed": job.seed, "model": model,
            "measures": {name: values[0] for name, values in measures.items()},
        } for model, measures in found.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
