"""Work on a corpus in parts: each a safetensors file that is there whole or not at all, made by parallel processes.

A folder holds identity.json, which says what its parts were made of, and part-00000.safetensors and so on. Work that
was cut short goes on at its first missing part; what a part holds does not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from fusion_jax.copies import Fetched
from fusion_jax.errors import InputError
from fusion_jax.files import replacing, write_json, writing
from fusion_jax.hosts.agree import on_first, wait_for
from fusion_jax.hosts.join import HostSettings, this_host
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.lazy import Indexed
from fusion_jax.paths import is_remote, listed
from fusion_jax.store.lock import Checked, claim, held, sweep

IDENTITY, CHECKSUM = "identity.json", "xxh3_128"
DELETE = "Delete this part and run again: it goes on"
Arrays = dict[str, np.ndarray]
Row = TypeVar("Row")


class Task(Protocol):
    """What is done with records. It goes to each process once, so it may be large; records go part by part."""

    def one(self, item: Any) -> Any:
        """The result of one record; an `InputError` that it raises is told with the record's number."""

    def pack(self, results: Sequence[Any]) -> Arrays:
        """The arrays of a part: `lengths`, int32[records of the part], and whatever reads by it."""


class Job(NamedTuple):
    """A folder of parts: `made_of`, all of it JSON's plain values, is what the parts depend on besides the split."""

    folder: Path
    made_of: Mapping[str, object]
    records: int
    part_size: int

    def path(self, number: int) -> Path:
        """Part `number`, counted from 0."""
        return self.folder / f"part-{number:05d}.safetensors"

    def span(self, number: int) -> range:
        """The records of a part."""
        return range(number * self.part_size, min((number + 1) * self.part_size, self.records))


def digest(arrays: Iterable[np.ndarray]) -> str:
    """sha256 of arrays in their order: types, shapes and values; the same in every process."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def make_parts(
    job: Job, task: Task, items: Callable[[range], list[Any]], workers: int, progress: Callable[[int], None]
) -> None:
    """Make the parts that are not there yet, in order; at most 2 * workers of them are under way at a time.

    Hosts that share a mesh share out the parts, and return when all are there.

    Processes are spawned, as JAX's threads forbid forking: a script that calls this needs `if __name__ == "__main__"`.
    They end with their parent, however it ends; an interrupt lets them finish what they have begun.

    Args:
      items: the records of a range, in this process, one part at a time.
      workers: number of processes; 0 works in this one.
      progress: told how many records are in finished parts.

    Raises:
      InputError: the folder holds something else, a part is cut short, or the task's own: with the number of the
        record in the corpus, that of the first part that has one, and without leaving anything of its part behind.
    """
    if workers < 0:
        raise InputError(f"{workers} is no number of processes", field="workers", cure="Give 0 for this process alone")
    if job.part_size < 1:
        raise InputError(f"{job.part_size} records are no part", field="part_size", cure="Give at least 1")
    with ExitStack() as stack:
        on_first(lambda: _claim(job, stack))
        _make_missing(job, task, items, workers, progress)


def _make_missing(
    job: Job, task: Task, items: Callable[[range], list[Any]], workers: int, progress: Callable[[int], None]
) -> None:
    host = this_host()
    numbers = range(-(-job.records // job.part_size))
    missing = _missing(job)
    for number in sorted(set(numbers) - set(missing)):
        _check_part(job, number)
    done = job.records - sum(len(job.span(number)) for number in missing)
    progress(done)
    mine = [number for number in missing if number % host.count == host.index]
    calls = ((job.path(number), job.span(number).start, items(job.span(number))) for number in mine)
    holder = claim(job.folder) if mine else None
    if workers:
        finished = _in_processes(task, holder, calls, min(workers, max(1, len(mine))))
    else:
        finished = (_make(task, holder, *call) for call in calls)
    for count in finished:
        done += count
        progress(done)
    others = {n for n in missing if n % host.count != host.index}

    def owed() -> dict[str, int]:
        return {os.fspath(job.path(n)): n % host.count for n in _missing(job) if n in others} if others else {}

    wait_for(owed, HostSettings())


def _missing(job: Job) -> list[int]:
    """The parts that are not there."""
    names = set(listed(job.folder)) if job.folder.exists() else set()
    return [n for n in range(-(-job.records // job.part_size)) if job.path(n).name not in names]


def _claim(job: Job, stack: ExitStack) -> None:
    """Make the folder one of this job, or find that it is; held until the stack ends, unless all parts are there."""
    path, known = job.folder / IDENTITY, {**job.made_of, "records": job.records, "part_size": job.part_size}
    if not path.exists() or _missing(job):
        there = listed(job.folder) if job.folder.exists() else []
        # What a killed run had begun to write does not count.
        if not path.exists() and any(not name.startswith(".") for name in there):
            raise InputError("holds other files", file=job.folder, cure="Choose an empty or new folder")
        job.folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(held(job.folder))
        sweep(job.folder)
    if not path.exists():
        write_json(path, known)
    stored = read_json(path, cure=RESTORE)
    for name in sorted({*known, *(stored if isinstance(stored, dict) else ())}):
        if not isinstance(stored, dict) or name not in stored or name not in known or stored[name] != known[name]:
            raise InputError(
                f"the folder was made with another {name}", file=path, field=name,
                cure="Go on with what it was made with, or choose a new folder",
            )  # fmt: skip


def _make(task: Task, holder: Checked | None, path: Path, start: int, items: Sequence[Any]) -> int:
    """Make one part, of the records from `start` on (counted from 0); the number of its records.

    holder: for whom the folder is written; None: nobody can take it over.
    """
    results = []
    for number, item in enumerate(items, start + 1):
        try:
            results.append(task.one(item))
        except InputError as error:
            raise InputError(
                error.problem, file=error.file, record=number, field=error.field, cure=error.cure
            ) from None
    arrays = task.pack(results)
    with writing("a part of the aligned records", path), replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={CHECKSUM: _checksum(arrays, start)})
        if holder is not None:
            holder.check()
    return len(results)


def _checksum(arrays: Arrays, start: int) -> str:
    """xxh3_128 of arrays by name, and of the number of the record that they begin with."""
    total = xxhash.xxh3_128(str(start).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str}{array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _check_part(job: Job, number: int) -> None:
    """Read a part that was there before and compare it with its checksum.

    Raises:
      InputError: as `open_part`; it was changed, or is another part.
    """
    path, span = job.path(number), job.span(number)
    with open_part(path, len(span)) as part:
        if part.checksum != _checksum(part.arrays(), span.start):
            raise InputError("was changed after it was written (its hash differs)", file=path, cure=DELETE)


_task: tuple[Task, Checked | None] | None = None  # of a worker process, with the holder of its folder


def _start(task: Task, holder: Checked | None) -> None:
    """Begin a worker process: it keeps the task, leaves interrupts to its parent, and does not outlive it."""
    global _task
    _task = task, holder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_in_worker(path: Path, start: int, items: Sequence[Any]) -> int:
    assert _task is not None
    return _make(*_task, path, start, items)


def _in_processes(
    task: Task, holder: Checked | None, calls: Iterator[tuple[Path, int, list[Any]]], workers: int
) -> Iterator[int]:
    """`_make` of each call, in worker processes; results, or the first error, in the order of the calls."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(task, holder))
    running: deque[Future[int]] = deque()
    try:
        for call in calls:
            if len(running) == 2 * workers:
                yield running.popleft().result()
            running.append(pool.submit(_make_in_worker, *call))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Part:
    """An open part."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.lengths = self.whole("lengths")

    @property
    def checksum(self) -> str:
        """What was written beside the arrays; empty where nothing was."""
        return (self._file.metadata() or {}).get(CHECKSUM, "")

    def arrays(self) -> Arrays:
        """All arrays."""
        return {name: self.whole(name) for name in self._file.keys()}  # noqa: SIM118

    def whole(self, name: str) -> np.ndarray:
        """All of an array."""
        return self._file.get_tensor(name)

    def some(self, name: str, lengths: np.ndarray, number: int) -> np.ndarray:
        """The entries of record `number`, counted from 0, of an array that holds `lengths` entries of each record."""
        start, found = int(lengths[:number].sum()), self._file.get_slice(name)
        if not found.get_shape()[0]:  # which safetensors does not slice
            return self.whole(name)
        return found[start : start + int(lengths[number])]


@contextmanager
def open_part(path: Path, records: int, *, copy: Path | None = None) -> Iterator[Part]:
    """A part of so many records; copy: on this machine, of one on a bucket, where there is one already.

    Raises:
      InputError: it is missing, cut short, or holds another number of records.
    """
    try:
        with (
            nullcontext(copy) if copy else Fetched(path) as here,
            safetensors.safe_open(here, framework="numpy") as file,
        ):
            part = Part(file)
            if len(part.lengths) != records:
                raise InputError(f"holds {len(part.lengths)} records instead of {records}", file=path, cure=DELETE)
            yield part
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read ({error})", file=path, cure=DELETE) from None


class Stored(Indexed[Row]):
    """Finished parts as a sequence of records, each read from the disk when it is asked for.

    A part on a bucket is copied to the local disk when the first of its records is asked for, and kept by this.

    read: record `number` of a part, counted from 0 within it.

    Raises:
      InputError: when a record is read whose part is gone or cut short.
    """

    def __init__(self, job: Job, read: Callable[[Part, int], Row]) -> None:
        self._job, self._read = job, read
        self._copies: dict[int, Fetched] = {}

    @property
    def made_of(self) -> Mapping[str, object]:
        """What the records were made of, as their folder says."""
        return self._job.made_of

    def __len__(self) -> int:
        return self._job.records

    def _at(self, i: int) -> Row:
        number, within = divmod(i, self._job.part_size)
        file, copy = self._job.path(number), None
        if is_remote(file):
            if number not in self._copies:
                self._copies[number] = Fetched(file)
            copy = self._copies[number].path
        with open_part(file, len(self._job.span(number)), copy=copy) as part:
            return self._read(part, within)
