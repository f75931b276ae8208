"""A run is a folder: config.json, metrics.jsonl, checkpoints/, stage files, results.json, report.md, model/, log.txt.

`open_run` decides what may happen to a folder that is there already: a finished run is never overwritten, an
unfinished one goes on only with `resume`, and only with the settings it was started with; one that stopped before it
made anything is started anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fusion_jax.data.jsonl import read_jsonl, write_jsonl
from fusion_jax.errors import InputError
from fusion_jax.failures import doing
from fusion_jax.files import write_json
from fusion_jax.hosts import agreed, agreed_exists, first_host, on_first, seen
from fusion_jax.json_files import RESTORE, read_json

CONFIG, METRICS, FINISHED = "config.json", "metrics.jsonl", "finished.json"
LOG, REPORT = "log.txt", "report.md"
TIMES = "times.jsonl"  # {"stage", "seconds"}: a line for each part of a stage, added up by the report
RESULTS = "results.json"  # {model: {measure: [a value of each seed]}}


@dataclass(frozen=True)
class RunFolder:
    """Where a run (or one training stage of it) keeps its files. Where several hosts run it, all of them see the
    folder and read it; the first one writes, and its console alone speaks.
    """

    path: Path
    console: Console

    def file(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> RunFolder:
        """A stage's own folder inside the run."""
        if first_host():
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return RunFolder(self.path / name, self.console)

    def log(self, message: str) -> None:
        """One line on the screen and, with the time, in log.txt."""
        if not first_host():
            return
        self.console.print(message, highlight=False, markup=False, emoji=False, soft_wrap=True)
        with open(self.path / LOG, "a", encoding="utf-8") as out:
            out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def progress(self, what: str, done: int, of: int) -> None:
        """How far a long stage is: one line that overwrites itself on a terminal, the last one stays."""
        if self.console.is_terminal or done == of:
            end = "\n" if done == of else "\r"
            self.console.print(f"  {what}: {done} of {of}", end=end, highlight=False, markup=False)

    def clock(self, stage: str) -> Callable[[], None]:
        """A function that, each time it is called, adds the time since the last call to what the stage took."""
        last = time.monotonic()

        def lap() -> None:
            nonlocal last
            now = time.monotonic()
            if first_host():
                with open(self.path / TIMES, "a", encoding="utf-8") as out:
                    out.write(json.dumps({"stage": stage, "seconds": round(now - last, 3)}) + "\n")
            last = now

        return lap

    def stage(self, name: str, make: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The records of a stage: read from its file when it is there, else made and written whole."""
        path = self.file(name)
        if agreed_exists(path):
            found = read_jsonl(path)
            self.log(f"{name}: {len(found)} records, read")
            return found
        started, lap = time.monotonic(), self.clock(name)
        with doing(f"making {name}"):
            records = list(make())
            on_first(lambda: write_jsonl(path, records))
        lap()
        self.log(f"{name}: {len(records)} records, {time.monotonic() - started:.0f} s")
        return records

    def finish(self) -> None:
        on_first(lambda: write_json(self.file(FINISHED), {"finished": True}))


def open_run(out: str | os.PathLike[str], config: dict[str, Any], *, resume: bool) -> RunFolder:
    """Make or reopen a run folder.

    Args:
      config: every setting, resolved; compared with the folder's own on resume, but for what says where it runs
        (`out`, `resume`, hosts and mesh).

    Raises:
      InputError: the folder holds a finished run, an unfinished one without `resume`, a run of other settings, or
        files that are no run; a host does not see it or has other settings.
    """
    if "://" in os.fspath(out):
        raise InputError(
            "a run's files need a file system", file=out, field="--out",
            cure="Give a folder that all hosts see (a bucket: mounted with gcsfuse --rename-dir-limit 100000)",
        )  # fmt: skip
    path = Path(out)
    kept = _kept(config)
    on_first(lambda: _open(path, kept, resume=resume))
    seen(path / CONFIG, lambda file: file.exists() and read_json(file, cure=RESTORE) == kept)
    return RunFolder(path, Console(quiet=not first_host()))


def _open(path: Path, kept: dict[str, Any], *, resume: bool) -> None:
    if path.exists() and not path.is_dir():
        raise InputError("is a file, not a folder", file=path, field="--out", cure="Choose another --out")
    if path.exists() and any(path.iterdir()):
        if not (path / CONFIG).exists():
            raise InputError("holds files but no run", file=path, field="--out", cure="Choose an empty or new folder")
        if not _made_nothing(path, kept):
            _check_same(path, kept, resume=resume)
    elif resume and not path.exists():
        raise InputError("there is no run to resume", file=path, field="--resume", cure="Leave --resume out")
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, kept)


def _comparable(config: Any) -> Any:
    """Settings without those of the mesh, which only say where it runs."""
    if not isinstance(config, dict):
        return config
    return {k: _comparable(v) for k, v in config.items() if k not in ("mesh_data", "mesh_fsdp", "mesh_tensor")}


def _made_nothing(path: Path, kept: dict[str, Any]) -> bool:
    """Whether a run of this experiment stopped before its first file, for instance at a wrong path in its settings."""
    before = read_json(path / CONFIG, cure=RESTORE)
    ours = isinstance(before, dict) and before.keys() == kept.keys()
    return ours and all(p.name in (CONFIG, LOG, REPORT) for p in path.rglob("*") if not p.is_dir())


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("out", "resume", "hosts")}


def _check_same(path: Path, kept: dict[str, Any], *, resume: bool) -> None:
    """Refuse a run that is finished, not to be resumed, or of other settings."""
    if not resume:
        state = "a finished run" if (path / FINISHED).exists() else "an unfinished run"
        cure = "Choose another --out" + ("" if (path / FINISHED).exists() else " or continue it with --resume True")
        raise InputError(f"holds {state}", file=path, field="--out", cure=cure)
    check_settings(path, kept)


def check_settings(path: Path, config: dict[str, Any]) -> None:
    """Refuse a run that was started with other settings than `config`.

    Raises:
      InputError: names the first setting that differs.
    """
    before, kept = _comparable(read_json(path / CONFIG, cure=RESTORE)), _comparable(_kept(config))
    changed = sorted(k for k in before.keys() | kept.keys() if before.get(k) != kept.get(k))
    if changed:
        name = changed[0]
        raise InputError(
            f"the run was started with {before.get(name)!r}, now it is {kept.get(name)!r}",
            file=path / CONFIG, field=name, cure="Resume with the same settings or choose another --out",
        )  # fmt: skip


def append_metrics(run: RunFolder, record: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    if not first_host():
        return
    with open(run.file(METRICS), "a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def truncate_metrics(run: RunFolder, step: int) -> None:
    """Drop what was logged at or after `step` (a killed run logs past its last checkpoint) and any broken last line."""
    if first_host() and run.file(METRICS).exists():
        write_jsonl(run.file(METRICS), _logged_before(run, step))


def evaluated(run: RunFolder, step: int) -> bool:
    """Whether the evaluation after `step` is the last that metrics.jsonl holds; the same answer on all hosts."""
    last = _logged_before(run, step + 1)[-1:] if first_host() else []
    found = any(r["step"] == step and any(name.startswith("eval_") for name in r) for r in last)
    return bool(agreed(np.asarray(found)))


def _logged_before(run: RunFolder, step: int) -> list[dict[str, Any]]:
    path, kept = run.file(METRICS), []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] >= step:
            break
        kept.append(record)
    return kept
