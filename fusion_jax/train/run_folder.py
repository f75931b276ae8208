"""A run is a folder: config.json, metrics.jsonl, checkpoints/, stage files, report.md, model/, log.txt.

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

from rich.console import Console

from fusion_jax.data.jsonl import read_jsonl, write_jsonl
from fusion_jax.errors import InputError
from fusion_jax.files import read_json, write_json

CONFIG, METRICS, FINISHED = "config.json", "metrics.jsonl", "finished.json"
LOG, REPORT = "log.txt", "report.md"


@dataclass(frozen=True)
class RunFolder:
    """Where a run (or one training stage of it) keeps its files."""

    path: Path
    console: Console

    def file(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> RunFolder:
        """A stage's own folder inside the run."""
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return RunFolder(self.path / name, self.console)

    def log(self, message: str) -> None:
        """One line on the screen and, with the time, in log.txt."""
        self.console.print(message, highlight=False, markup=False, emoji=False, soft_wrap=True)
        with open(self.path / LOG, "a", encoding="utf-8") as out:
            out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def progress(self, what: str, done: int, of: int) -> None:
        """How far a long stage is: one line that overwrites itself on a terminal, the last one stays."""
        if self.console.is_terminal or done == of:
            end = "\n" if done == of else "\r"
            self.console.print(f"  {what}: {done} of {of}", end=end, highlight=False, markup=False)

    def stage(self, name: str, make: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The records of a stage: read from its file when it is there, else made and written whole."""
        path = self.file(name)
        if path.exists():
            found = read_jsonl(path)
            self.log(f"{name}: {len(found)} records, read")
            return found
        started = time.monotonic()
        records = list(make())
        write_jsonl(path, records)
        self.log(f"{name}: {len(records)} records, {time.monotonic() - started:.0f} s")
        return records

    def finish(self) -> None:
        write_json(self.file(FINISHED), {"finished": True})


def open_run(out: str | os.PathLike[str], config: dict[str, Any], *, resume: bool) -> RunFolder:
    """Make or reopen a run folder.

    Args:
      config: every setting, resolved; compared with the folder's own on resume (`out` and `resume` apart).

    Raises:
      InputError: the folder holds a finished run, an unfinished one without `resume`, a run of other settings, or
        files that are no run.
    """
    path = Path(out)
    kept = {k: v for k, v in config.items() if k not in ("out", "resume")}
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
    return RunFolder(path, Console())


def _made_nothing(path: Path, kept: dict[str, Any]) -> bool:
    """Whether a run of this experiment stopped before its first file, for instance at a wrong path in its settings."""
    before = read_json(path / CONFIG)
    ours = isinstance(before, dict) and before.keys() == kept.keys()
    return ours and all(p.name in (CONFIG, LOG, REPORT) for p in path.rglob("*") if not p.is_dir())


def _check_same(path: Path, kept: dict[str, Any], *, resume: bool) -> None:
    """Refuse a run that is finished, not to be resumed, or of other settings."""
    before = read_json(path / CONFIG)
    changed = sorted(k for k in before.keys() | kept.keys() if before.get(k) != kept.get(k))
    if not resume:
        state = "a finished run" if (path / FINISHED).exists() else "an unfinished run"
        cure = "Choose another --out" + ("" if (path / FINISHED).exists() else " or continue it with --resume True")
        raise InputError(f"holds {state}", file=path, field="--out", cure=cure)
    if changed:
        name = changed[0]
        raise InputError(
            f"the run was started with {before.get(name)!r}, now it is {kept.get(name)!r}",
            file=path / CONFIG, field=name, cure="Resume with the same settings or choose another --out",
        )  # fmt: skip


def append_metrics(run: RunFolder, record: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    with open(run.file(METRICS), "a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def truncate_metrics(run: RunFolder, step: int) -> None:
    """Drop what was logged at or after `step` (a killed run logs past its last checkpoint) and any broken last line."""
    path = run.file(METRICS)
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] >= step:
            break
        kept.append(record)
    write_jsonl(path, kept)
