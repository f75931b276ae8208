"""A run is a folder: config.json, metrics.jsonl, checkpoints/, stage files, results.json, report.md, model/, log.txt,
times.jsonl, and manifests/, which say what of it is whole and what it was made from (see `store.manifest`).
`runs.opening` opens it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_jax.errors import DiskError, InputError
from fusion_jax.failures import KEPT, doing, for_log
from fusion_jax.fields import Fields
from fusion_jax.files import write_json
from fusion_jax.hosts.agree import agreed, first_host, on_first, seen
from fusion_jax.json_files import parse_json
from fusion_jax.jsonl import read_jsonl, write_jsonl
from fusion_jax.paths import files_below, is_remote, read_bytes, remove
from fusion_jax.store import manifest
from fusion_jax.store.appending import Appending
from fusion_jax.store.lease import FolderLost
from fusion_jax.store.lock import Held, is_trace
from fusion_jax.store.manifest import Manifests, State
from fusion_jax.store.times import TIMES, Clock
from fusion_jax.store.trackers import TRACKERS, Tracker

if TYPE_CHECKING:
    from rich.console import Console

CONFIG, METRICS, FINISHED = "config.json", "metrics.jsonl", "finished.json"
LOG, REPORT = "log.txt", "report.md"
RESULTS = "results.json"  # {model: {measure: [a value of each seed]}}
FINAL = ("model", RESULTS)  # without which a finished run is not finished
RUN = f"{manifest.FOLDER}/run.json"


@dataclass(frozen=True)
class RunFolder:
    """Where a run (or one training stage of it) keeps its files. Where several hosts run it, all of them see the
    folder and read it; the first one writes, and its console alone speaks.

    Used in a `with` statement, it lets the folder go at the end, and removes one that it made for nothing.

    manifests: of the whole run, made when left out. lock: held by the first host until the end of the run.
    appending: of the whole run, too; it asks the lock.
    made: the folders that opening the run has made, the outermost first. tracker: what shows the metrics besides.
    clocks: of the stages that are under way, the innermost last; spoken: when a line of progress was last printed; all
      folders of a run share both.
    """

    path: Path
    console: Console
    manifests: Manifests = None  # type: ignore[assignment]
    lock: Held | None = field(default=None, repr=False, compare=False)
    made: tuple[Path, ...] = ()
    appending: Appending = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    tracker: Tracker | None = field(default=None, repr=False, compare=False)
    clocks: list[Clock] = field(default_factory=list, repr=False, compare=False)
    spoken: list[float] = field(default_factory=lambda: [time.monotonic()], repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.manifests is None:
            object.__setattr__(self, "manifests", Manifests(self.path))
        if self.appending is None:
            object.__setattr__(self, "appending", Appending(self.lock.check) if self.lock is not None else Appending())

    def __enter__(self) -> RunFolder:
        self.clocks.append(Clock("between the stages", self._write_times))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.secure()
            elif self.lock is not None:
                with suppress(Exception):  # the error that came first is the one that is raised
                    self.lock.check()
                    self._end_with(error)
        finally:
            if self.lock is not None:
                self.lock.release()

    def _end_with(self, error: BaseException) -> None:
        """Write what is known of a run that an error ends, or remove a folder in which nothing was made."""
        remove_unused(self.path, self.made)
        if not self.path.is_dir():
            return
        self.settle()
        unexpected = isinstance(error, Exception) and not isinstance(error, InputError)
        if unexpected:
            self.appending.add(self.file(LOG), for_log(error))
        self.appending.flush()
        if unexpected:
            error.add_note(f"{KEPT}{self.file(LOG)}")

    def file(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> RunFolder:
        """A stage's own folder inside the run."""
        if first_host():
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return replace(self, path=self.path / name, made=())

    def name(self, name: str) -> str:
        """What a file or folder of this folder is called in the manifests of the run."""
        return (self.path / name).relative_to(self.manifests.root).as_posix()

    def log(self, message: str) -> None:
        """One line on the screen and, with the time, in log.txt."""
        if not first_host():
            return
        self.console.print(message, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.appending.add(self.path / LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def progress(self, what: str, done: int, of: int) -> None:
        """How far a long stage is: one line that overwrites itself on a terminal, the last one stays."""
        if self.console.is_terminal or done == of:
            end = "\n" if done == of else "\r"
            self.console.print(f"  {what}: {done} of {of}", end=end, highlight=False, markup=False)

    def heartbeat(self, what: str, done: int, of: int) -> None:
        """Where the screen is no terminal, which has bars: a line a minute of how far a long stage is."""
        if self.console.is_terminal or not first_host() or done == of or time.monotonic() - self.spoken[0] < 60:
            return
        self.spoken[0] = time.monotonic()
        self.console.print(f"  {what}: {done} of {of}", highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def timed(self, stage: str) -> Iterator[Clock]:
        """Count the time inside as that of a stage, in times.jsonl."""
        clock = Clock(stage, self._write_times, self.clocks[-1] if self.clocks else None)
        self.clocks.append(clock)
        try:
            yield clock
        finally:
            clock.lap()
            self.clocks.pop()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the time inside as that of a phase of the stage that is under way."""
        return self.clocks[-1].during(name) if self.clocks else nullcontext()

    def settle(self) -> None:
        """Write what the innermost stage has taken so far."""
        if self.clocks:
            self.clocks[-1].lap()

    def _write_times(self, line: dict[str, Any]) -> None:
        if not first_host():
            return
        with suppress(OSError, DiskError, FolderLost):  # no result hangs on it, and an error may be on its way
            self.appending.add(self.path / TIMES, json.dumps(line) + "\n")
        if "step" in line:
            self.track({name: value for name, value in line.items() if name not in ("stage", "seconds")})

    def track(self, record: dict[str, Any]) -> None:
        """Show a record of metrics, or of times, in the run's tracker too, if it has one."""
        if self.tracker is not None and first_host():
            values = {name: value for name, value in record.items() if name != "step"}
            self.tracker.log(self.name("."), record["step"], values)

    def secure(self) -> None:
        """On the first host, before something of the run is written: the folder is still this process's, and the logs
        are on the disk up to here.

        Raises:
          FolderLost: another process has taken the folder over, which only happens on a bucket.
        """
        if first_host():
            if self.lock is not None:
                self.lock.check()
            self.appending.flush()

    def on_first(self, write: Callable[[], object]) -> None:
        """Have the first host write something of the run, after `secure`; the others wait, and fail as it fails.

        Raises:
          InputError: as `secure` and `hosts.agree.on_first`.
        """

        def secured() -> None:
            self.secure()
            write()

        on_first(secured)

    def stage(
        self,
        name: str,
        make: Callable[[], Iterable[dict[str, Any]]],
        *,
        made_from: Iterable[str] | None = None,
        leaf: bool = False,
    ) -> list[dict[str, Any]]:
        """The records of a stage: read from its file when it is whole, else made and written.

        Args:
          made_from, leaf: see `made_once`.

        Raises:
          InputError: as `made_once`, and whatever `make` raises.
        """
        path, records = self.file(name), list[dict[str, Any]]()
        took = ""

        def write(file: Path) -> int:
            nonlocal took
            with doing(f"making {name}"), self.timed(name) as clock:
                records.extend(make())
                self.on_first(lambda: write_jsonl(file, records))
                took = clock.in_words()
            return len(records)

        if self.made_once(name, write, made_from=made_from, leaf=leaf):
            self.log(f"{name}: {len(records)} records, {took}")
            return records
        found = read_jsonl(path)
        self.log(f"{name}: {len(found)} records, read")
        return found

    def made_once(
        self,
        name: str,
        make: Callable[[Path], int | None],
        *,
        made_from: Iterable[str] | None = None,
        leaf: bool = False,
    ) -> bool:
        """Have a file or folder of the run made, unless it is there as it was made; whether it was made now.

        Args:
          make: writes it at the path that it is given, on all hosts in step; the number of records, if it holds such.
          made_from: names in this folder of what it is made from, or "what=digest" for what is none of the run's files;
            None: everything that the run has found or made so far, leaves left out.
          leaf: nothing else is made from it.

        Raises:
          InputError: it was changed, cut short or made from something else; says what is to be deleted.
        """
        own = self.name(name)
        sources = None if made_from is None else [one if "=" in one else self.name(one) for one in made_from]
        states: list[State] = ["missing"]
        on_first(lambda: states.append(self.manifests.state(own, sources)))
        there = bool(agreed(np.asarray(states[-1] == "made")))
        if there:
            seen(self.file(name))
        else:
            self.on_first(lambda: self.manifests.begin(own))
            records = make(self.file(name))
            self.on_first(lambda: self.manifests.seal(own, made_from=sources, records=records))
        if leaf:
            self.manifests.leave(own)
        return not there

    def finish(self) -> None:
        """Say that the run is at its end; its results and its model are then as they are."""

        def write() -> None:
            for name in FINAL:
                if self.file(name).exists() and not self.manifests.known(name):
                    self.manifests.seal(name)
            self.secure()
            write_json(self.file(FINISHED), {"finished": True, "format": manifest.FORMAT})

        self.on_first(write)


def remove_unused(path: Path, made: Iterable[Path]) -> None:
    """Remove the folders that opening a run has made, if nothing was made in them."""
    made = list(made)
    unused = path in made and not any(kept_file(file, path) for file in files_below(path))
    if is_remote(path):  # where folders are what their files have in common
        if unused:
            remove(path)
        return
    if unused:
        shutil.rmtree(path, ignore_errors=True)
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()


def kept_file(file: Path, root: Path) -> bool:
    """Whether a file, none of the folders, is more than what a run writes before it makes something."""
    begun = file.parent.name == manifest.FOLDER or manifest.FOLDER in file.relative_to(root).parts
    shown = file.relative_to(root).parts[0] in TRACKERS
    return not (begun or shown or is_trace(file.name) or file.name in (CONFIG, LOG, REPORT, TIMES))


def append_metrics(run: RunFolder, record: dict[str, Any]) -> None:
    """One line of metrics.jsonl, shown in the tracker as well."""
    if first_host():
        run.appending.add(run.file(METRICS), json.dumps(record) + "\n")
        run.track(record)


def truncate_metrics(run: RunFolder, step: int) -> None:
    """Drop what was logged at or after `step` (a killed run logs past its last checkpoint) and any broken last line."""
    run.appending.forget(run.file(METRICS))
    if first_host() and run.file(METRICS).exists():
        kept = read_metrics(run, step)
        run.secure()
        write_jsonl(run.file(METRICS), kept)
    if first_host() and run.tracker is not None:
        run.tracker.start(run.name("."), step)


def evaluated(run: RunFolder, step: int) -> bool:
    """Whether the evaluation after `step` is the last that metrics.jsonl holds; the same answer on all hosts."""
    last = read_metrics(run, step + 1)[-1:] if first_host() else []
    found = any(r["step"] == step and any(name.startswith("eval_") for name in r) for r in last)
    return bool(agreed(np.asarray(found)))


def read_metrics(run: RunFolder, step: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that were logged before a step."""
    path, kept = run.file(METRICS), list[dict[str, Any]]()
    run.appending.flush()
    lines = read_bytes(path).split(b"\n") if path.exists() else []
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
