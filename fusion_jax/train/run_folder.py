"""A run is a folder: config.json, metrics.jsonl, checkpoints/, stage files, results.json, report.md, model/, log.txt,
and manifests/, which say what of it is whole and what it was made from (see `store.manifest`).

`open_run` decides what may happen to a folder that is there already: a finished run is never overwritten, an
unfinished one goes on only with `resume`, and only with the settings it was started with; one that stopped before it
made anything is started anew. One process at a time writes it. A run that is refused before it made anything leaves no
folder behind.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_jax.data.jsonl import read_jsonl, write_jsonl
from fusion_jax.errors import InputError
from fusion_jax.failures import NothingToDo, doing
from fusion_jax.fields import Fields
from fusion_jax.files import write_json
from fusion_jax.hosts import agreed, first_host, on_first, seen
from fusion_jax.json_files import RESTORE, parse_json, read_json
from fusion_jax.store import manifest
from fusion_jax.store.lock import Lock, acquire, is_trace, sweep
from fusion_jax.store.manifest import Manifests, State

if TYPE_CHECKING:
    from rich.console import Console

CONFIG, METRICS, FINISHED = "config.json", "metrics.jsonl", "finished.json"
LOG, REPORT = "log.txt", "report.md"
TIMES = "times.jsonl"  # {"stage", "seconds"}: a line for each part of a stage, added up by the report
RESULTS = "results.json"  # {model: {measure: [a value of each seed]}}
FINAL = ("model", RESULTS)  # without which a finished run is not finished
RUN = f"{manifest.FOLDER}/run.json"


@dataclass(frozen=True)
class RunFolder:
    """Where a run (or one training stage of it) keeps its files. Where several hosts run it, all of them see the
    folder and read it; the first one writes, and its console alone speaks.

    Used in a `with` statement, it lets the folder go at the end, and removes one that it made for nothing.

    manifests: of the whole run, made when left out. lock: held by the first host until the end of the run.
    made: the folders that opening the run has made, the outermost first.
    """

    path: Path
    console: Console
    manifests: Manifests = None  # type: ignore[assignment]
    lock: Lock | None = field(default=None, repr=False, compare=False)
    made: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.manifests is None:
            object.__setattr__(self, "manifests", Manifests(self.path))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lock is not None:
            if error is not None:
                remove_unused(self.path, self.made)
            self.lock.release()

    def file(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> RunFolder:
        """A stage's own folder inside the run."""
        if first_host():
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return RunFolder(self.path / name, self.console, self.manifests, self.lock)

    def name(self, name: str) -> str:
        """What a file or folder of this folder is called in the manifests of the run."""
        return (self.path / name).relative_to(self.manifests.root).as_posix()

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

    def stage(
        self,
        name: str,
        make: Callable[[], Iterable[dict[str, Any]]],
        *,
        of: Iterable[str] | None = None,
        leaf: bool = False,
    ) -> list[dict[str, Any]]:
        """The records of a stage: read from its file when it is whole, else made and written.

        Args:
          of, leaf: see `made_once`.

        Raises:
          InputError: as `made_once`, and whatever `make` raises.
        """
        path, records = self.file(name), list[dict[str, Any]]()
        started, lap = time.monotonic(), self.clock(name)

        def write(file: Path) -> int:
            with doing(f"making {name}"):
                records.extend(make())
                on_first(lambda: write_jsonl(file, records))
            lap()
            return len(records)

        if self.made_once(name, write, of=of, leaf=leaf):
            self.log(f"{name}: {len(records)} records, {time.monotonic() - started:.0f} s")
            return records
        found = read_jsonl(path)
        self.log(f"{name}: {len(found)} records, read")
        return found

    def made_once(
        self,
        name: str,
        make: Callable[[Path], int | None],
        *,
        of: Iterable[str] | None = None,
        leaf: bool = False,
    ) -> bool:
        """Have a file or folder of the run made, unless it is there as it was made; whether it was made now.

        Args:
          make: writes it at the path that it is given, on all hosts in step; the number of records, if it holds such.
          of: names in this folder of what it is made from, or "what=digest" for what is none of the run's files; None:
            everything that the run has found or made so far, leaves left out.
          leaf: nothing else is made from it.

        Raises:
          InputError: it was changed, cut short or made from something else; says what is to be deleted.
        """
        own = self.name(name)
        sources = None if of is None else [one if "=" in one else self.name(one) for one in of]
        states: list[State] = ["missing"]
        on_first(lambda: states.append(self.manifests.state(own, sources)))
        there = bool(agreed(np.asarray(states[-1] == "made")))
        if there:
            seen(self.file(name))
        else:
            on_first(lambda: self.manifests.begin(own))
            records = make(self.file(name))
            on_first(lambda: self.manifests.seal(own, of=sources, records=records))
        if leaf:
            self.manifests.leave(own)
        return not there

    def finish(self) -> None:
        """Say that the run is at its end; its results and its model are then as they are."""

        def write() -> None:
            for name in FINAL:
                if self.file(name).exists() and not self.manifests.known(name):
                    self.manifests.seal(name)
            write_json(self.file(FINISHED), {"finished": True, "format": manifest.FORMAT})
            if self.lock is not None:
                self.lock.release()

        on_first(write)


def open_run(out: str | os.PathLike[str], config: dict[str, Any], *, resume: bool) -> RunFolder:
    """Make or reopen a run folder; use it in a `with` statement.

    Args:
      config: every setting, resolved; compared with the folder's own on resume, but for what says where it runs
        (`out`, `resume`, hosts and mesh).
      resume: go on with a run that is there; where there is none, start it.

    Raises:
      InputError: the folder holds a finished run and is not resumed, an unfinished one without `resume`, a run of other
        settings, files that are no run or not as they were made; another process writes it; a host does not see it
        or has other settings.
      NothingToDo: after saying so: the run is finished, and `resume` has nothing to do.
    """
    from rich.console import Console

    if "://" in os.fspath(out):
        raise InputError(
            "a run's files need a file system", file=out, field="--out",
            cure="Give a folder that all hosts see (a bucket: mounted with gcsfuse --rename-dir-limit 100000)",
        )  # fmt: skip
    path, console = Path(out), Console(quiet=not first_host())
    kept = _kept(config)
    opened: list[RunFolder | None] = [None]
    on_first(lambda: opened.append(_open(path, kept, console, resume=resume)))
    if bool(agreed(np.asarray(first_host() and opened[-1] is None))):
        _say_finished(path, console)
        raise NothingToDo
    run = opened[-1] or RunFolder(path, console)
    seen(path / CONFIG, lambda file: file.exists() and read_json(file, cure=RESTORE) == kept)
    return run


def _open(path: Path, kept: dict[str, Any], console: Console, *, resume: bool) -> RunFolder | None:
    """The first host's part of `open_run`; None: the run is finished, and nothing is to be done."""
    if path.exists() and not path.is_dir():
        raise InputError("is a file, not a folder", file=path, field="--out", cure="Choose another --out")
    names = [p.name for p in path.iterdir() if not is_trace(p.name)] if path.exists() else []
    if names and not (path / CONFIG).exists():
        raise InputError("holds files but no run", file=path, field="--out", cure="Choose an empty or new folder")
    if names and finished(path):
        _check_same(path, kept, resume=resume)
        check_finished(path)
        return None
    made = tuple(reversed([p for p in (path, *path.parents) if not p.exists()]))
    path.mkdir(parents=True, exist_ok=True)
    lock = acquire(path)  # before this nothing is ours to remove
    try:
        swept = sweep(path)
        inputs = _inputs(kept)
        if names and not _made_nothing(path, kept):
            _check_same(path, kept, resume=resume)
            _check_format(path)
            Manifests(path).check_all()
        write_json(path / CONFIG, kept)
        (path / RUN).parent.mkdir(exist_ok=True)
        write_json(path / RUN, {"format": manifest.FORMAT, "inputs": inputs})
    except BaseException:
        remove_unused(path, made)
        lock.release()
        raise
    run = RunFolder(path, console, Manifests(path, inputs), lock, made)
    if lock.note:
        run.log(f"{path}: {lock.note}")
    if swept:
        run.log(f"removed what a killed process had left half-written: {', '.join(p.name for p in swept)}")
    return run


def finished(path: Path) -> bool:
    """Whether a folder holds a run that came to its end, and what it ended with."""
    if not (path / FINISHED).exists():
        return False
    checked = Manifests(path)
    return all(checked.whole(name) for name in FINAL if checked.file(name).exists())


def check_finished(path: Path, names: Iterable[str] = FINAL) -> None:
    """Compare what a finished run ended with with its manifests, and the sizes of everything else that is there.

    A run of an older version has none, and is taken as it is.

    Raises:
      InputError: names the first file that differs and what is to be deleted.
    """
    checked = Manifests(path)
    checked.check_all()
    for name in names:
        if checked.file(name).exists() and checked.whole(name):
            checked.compare(name)


def _say_finished(path: Path, console: Console) -> None:
    found = [f"{what}: {path / what}" for what in (REPORT, "model") if (path / what).exists()]
    message = "; ".join([f"{path}: finished already, nothing to do", *found])
    console.print(message, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _check_format(path: Path) -> None:
    if not (path / RUN).exists():
        raise InputError(
            "was begun by an older version, and nothing says which of its files are whole", file=path,
            cure="Start a new run in another folder",
        )  # fmt: skip


def remove_unused(path: Path, made: Iterable[Path]) -> None:
    """Remove the folders that opening a run has made, if nothing was made in them."""
    made = list(made)
    if path in made and not any(_kept_file(file, path) for file in path.rglob("*")):
        shutil.rmtree(path, ignore_errors=True)
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()


def _kept_file(file: Path, root: Path) -> bool:
    """Whether a file is more than what a run writes before it makes something."""
    if file.is_dir() and not file.is_symlink():
        return False
    begun = file.parent.name == manifest.FOLDER or manifest.FOLDER in file.relative_to(root).parts
    return not (begun or is_trace(file.name) or file.name in (CONFIG, LOG, REPORT, TIMES))


def _inputs(kept: dict[str, Any]) -> dict[str, str]:
    """What everything in the folder depends on: the settings, and the files and models that they name."""
    out = {"settings": manifest.digest({"": json.dumps(_comparable(kept), sort_keys=True)})}
    for name, value in _texts(kept):
        with suppress(OSError, ValueError):
            found = manifest.signature(Path(value)) if value else None
            if found:
                out[f"{value} (--{name.replace('_', '-')})"] = found
    return out


def _texts(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Every text of the settings, with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, name)


def _comparable(config: Any) -> Any:
    """Settings without those of the mesh, which only say where it runs."""
    if not isinstance(config, dict):
        return config
    return {k: _comparable(v) for k, v in config.items() if k not in ("mesh_data", "mesh_fsdp", "mesh_tensor")}


def _made_nothing(path: Path, kept: dict[str, Any]) -> bool:
    """Whether a run of this experiment stopped before its first file, for instance at a wrong path in its settings."""
    before = read_json(path / CONFIG, cure=RESTORE)
    ours = isinstance(before, dict) and before.keys() == kept.keys()
    return ours and not any(_kept_file(file, path) for file in path.rglob("*"))


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("out", "resume", "hosts")}


def _check_same(path: Path, kept: dict[str, Any], *, resume: bool) -> None:
    """Refuse a run that is not to be resumed, or of other settings."""
    if not resume:
        state = "a finished run" if (path / FINISHED).exists() else "an unfinished run"
        cure = "Choose another --out" + ("" if (path / FINISHED).exists() else " or continue it with --resume")
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
    path, kept = run.file(METRICS), list[dict[str, Any]]()
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line, file=path, record=number, cure="Remove the line")
            before = Fields(record, path, number, cure="Remove the line").integer("step", low=0) < step
        except InputError:
            if number < len(lines):  # the last line may be cut short or empty
                raise
            break
        if not before:
            break
        kept.append(record)
    return kept
