"""Teachers' distributions as data: the k most probable entries of every position, kept once, read many times.

A store is a folder: store.json, which says what it is of, and parts (`teachers.parts`), each written whole. One that
was cut short goes on at its missing parts (FuseLLM/FuseChat spec section 2.3), in the format that it was begun in.
Several hosts write one store in a folder that all of them see. One on a bucket is read through a copy on the local
disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import safetensors

from fusion_jax.copies import Fetched
from fusion_jax.data.documents import TeacherRow, TeacherText
from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.hosts.agree import agreed, wait_for
from fusion_jax.hosts.join import Host, HostSettings
from fusion_jax.json_files import RESTORE, read_json
from fusion_jax.lazy import Indexed
from fusion_jax.paths import as_path, check_bucket, listed, remove
from fusion_jax.store.lock import LOCK, Held, held, is_trace, sweep
from fusion_jax.teachers.blocks import LogProbs, rounding
from fusion_jax.teachers.parts import FORMAT, BlockCache, OtherPart, PartFile, PartForm, write_part

STORE, OTHER = "store.json", "is of another text or store"
WRITE = "Write it with experiments/cache_teacher.py"
DELETE_PART = "Delete the part and run the same command again: it goes on"
RowsOf = Callable[[range], Sequence[TeacherRow]]
"""The rows of a range of records."""


@dataclass(frozen=True)
class StoreIdentity:
    """What a store is of: model, tokenizer, documents: sha256 of their content; k entries a position.

    part_size: records of a part, the unit that is lost by a kill and that hosts share out.
    log_probs: how they are kept, to the bit of float16 or in 8 bits (`teachers.blocks`).
    format: of the parts of a store that is begun; one that is there is read and goes on in its own.
    """

    model: str
    tokenizer: str
    documents: str
    k: int
    records: int
    part_size: int = 1024
    log_probs: LogProbs = field(default="float16", repr=False)
    format: int = field(default=FORMAT, repr=False, compare=False)

    @property
    def parts(self) -> int:
        """How many parts hold the records."""
        return -(-self.records // self.part_size)

    def part(self, number: int) -> PartForm:
        """What a part holds."""
        start = number * self.part_size
        size = min(self.part_size, self.records - start)
        return PartForm(start, size, self.k, self.log_probs, self.format)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.array_record"


def _there(folder: Path, identity: StoreIdentity) -> np.ndarray:
    """bool[parts]: which of the parts are there."""
    names = set(listed(folder)) if folder.exists() else set()
    return np.asarray([_part(folder, number).name in names for number in range(identity.parts)], bool)


def write_store(
    folder: str | os.PathLike[str],
    identity: StoreIdentity,
    rows_of: RowsOf,
    progress: Callable[[int], None] = lambda done: None,
    *,
    host: Host = Host(),
    settings: HostSettings = HostSettings(),
    together: bool = False,
) -> int:
    """Write the parts that are not there yet; with several hosts, return when all parts are there.

    Args:
      rows_of: the rows of a range of records; asked for one part at a time, in order.
      host: this host, which writes every `host.count`-th part; the first one also writes store.json.
      settings: how long a host waits for the others.
      together: `rows_of` computes over all hosts: each is asked for every part, the first one writes.

    Returns:
      How many parts were there before.

    Raises:
      InputError: the folder holds a store of something else, a row is not as `TeacherRow` says, or nothing comes from
        another host any more.
    """
    path = as_path(folder)
    check_bucket(path, "--out")
    complete = (path / STORE).exists() and bool(_there(path, identity).all())
    if bool(agreed(np.asarray(complete))) if together else complete:  # nothing is written, so nothing is held
        _check_identity(path, identity)
        progress(identity.records)
        return identity.parts
    with ExitStack() as stack:
        writes = host.first or not together
        identity, lock = _begin(path, identity, host, settings, stack if writes else None)
        if writes:
            sweep(path, lambda name: _is_own(name, host, together))
        return _write_missing(path, identity, rows_of, progress, lock, host=host, settings=settings, together=together)


def _is_own(name: str, host: Host, together: bool) -> bool:
    """Whether a temporary file of a killed process is this host's to remove: others may be writing theirs."""
    number = re.match(r"\.part-(\d+)", name)
    owner = int(number[1]) % host.count if number and not together else 0
    return owner == host.index


def _write_missing(
    path: Path,
    identity: StoreIdentity,
    rows_of: RowsOf,
    progress: Callable[[int], None],
    lock: Held | None,
    *,
    host: Host,
    settings: HostSettings,
    together: bool,
) -> int:
    there = _there(path, identity)
    there = agreed(there) if together else there
    for number in range(identity.parts):
        form = identity.part(number)
        wanted = range(form.start, form.start + form.records)
        if (together or number % host.count == host.index) and not there[number]:
            rows = rows_of(wanted)
            if len(rows) != len(wanted):
                raise ValueError(f"{len(wanted)} rows were asked for, {len(rows)} came")
            if lock is not None:
                write_part(_part(path, number), rows, form, lock)
        progress(wanted.stop)

    def missing() -> dict[str, int]:
        owed = np.flatnonzero(~_there(path, identity)).tolist()
        return {os.fspath(_part(path, i)): 0 if together else i % host.count for i in owed}

    wait_for(missing, settings)
    return int(there.sum())


def _begin(
    path: Path, identity: StoreIdentity, host: Host, settings: HostSettings, stack: ExitStack | None
) -> tuple[StoreIdentity, Held | None]:
    """Have store.json there and checked, and the folder held by this host until the stack ends, if it writes; the
    identity has the format of the store."""
    lock: Held | None = None
    file = path / STORE
    names = {name for name in listed(path) if not is_trace(name)} if path.exists() else set()
    if names and file.name not in names:
        raise InputError("holds files but no teacher store", file=path, cure="Choose an empty or new folder")
    if stack is not None and host.first:
        path.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(held(path))
        if not names:
            if host.count == 1:  # others may have begun with parts
                stack.push(partial(_remove_unused, path, lock))
            write_json(file, asdict(identity))
    wait_for(lambda: {} if file.exists() else {os.fspath(file): 0}, settings)
    identity = _check_identity(path, identity)
    if stack is not None and not host.first:  # hosts that are not connected have a lock each
        lock = stack.enter_context(held(path, name=f"{LOCK}-{host.index}"))
    return identity, lock


def _remove_unused(
    path: Path, lock: Held, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """At the end of a block that raised an error: remove a store that was begun in it and holds nothing, with its
    folder, which is held."""
    if error is None:
        return
    with suppress(Exception):  # the error that came first is the one that is raised
        lock.check()
        if not any(name.startswith("part-") for name in listed(path)):
            remove(path / STORE)
            remove(path / LOCK)
            path.rmdir()


def _check_identity(path: Path, identity: StoreIdentity) -> StoreIdentity:
    """The identity with the format of the store that is there, which is the same but for it."""
    stored: Any = {"format": 1, "log_probs": "float16"} | read_json(path / STORE, cure=RESTORE)
    form = stored["format"]
    if form not in (1, FORMAT):
        problem = f"the store has format {form}, this version reads 1 and {FORMAT}"
        raise InputError(problem, file=path / STORE, field="format", cure="Read it with a newer fusion_jax")
    for name, value in asdict(replace(identity, format=form)).items():
        if stored.get(name) != value:
            before = stored.get(name)
            both = f" ({before}, now {value})" if isinstance(value, int) or name == "log_probs" else ""
            other, cure = f"another {name}", "Read it with what it was written with, or write a new store"
            if name == "documents":
                other, cure = "other documents", f"{cure}; windows of texts depend on --max-length and on tokenizers"
            raise InputError(f"the store was written with {other}{both}", file=path / STORE, field=name, cure=cure)
    return replace(identity, format=form)


def identity_of(folder: str | os.PathLike[str]) -> StoreIdentity:
    """What a store says that it is of.

    Raises:
      InputError: no store, or a store.json that is not as it was written.
    """
    file = as_path(folder) / STORE
    if not file.exists():
        raise InputError("holds no teacher store", file=folder, cure=WRITE)
    stored: Any = {"format": 1, "log_probs": "float16"} | read_json(file, cure=RESTORE)
    names = [one.name for one in fields(StoreIdentity)]
    for name in names:
        if type(stored.get(name)) is not (int if name in ("k", "records", "part_size", "format") else str):
            raise InputError("is missing or of another type", file=file, field=name, cure=RESTORE)
    if stored["part_size"] < 1:
        raise InputError("is no number of records", file=file, field="part_size", cure=RESTORE)
    return StoreIdentity(**{name: stored[name] for name in names})


class TeacherStore(Indexed[TeacherRow]):
    """A finished store, read row by row.

    Args:
      texts: what the rows are of, where it is at hand: each row's tokens are compared as it is read.

    Raises:
      InputError: no store, a store of something else than `identity`, a part that is missing or cut short; when it is
        read, a row that is damaged or of another text.
    """

    def __init__(
        self, folder: str | os.PathLike[str], identity: StoreIdentity, texts: Sequence[TeacherText] | None = None
    ) -> None:
        self._path, self._texts, self._cache = as_path(folder), texts, BlockCache()
        if not (self._path / STORE).exists():
            raise InputError("holds no teacher store", file=folder, cure=WRITE)
        self.identity = identity = _check_identity(self._path, identity)
        parts = [_part(self._path, i) for i in range(identity.parts)]
        for part, there in zip(parts, _there(self._path, identity)):
            if not there:
                raise InputError("is missing", file=part, cure="Run experiments/cache_teacher.py again: it goes on")
        self._copy = Fetched(self._path, [part.name for part in parts])
        self._parts = [self._opened(part, identity.part(number)) for number, part in enumerate(parts)]
        found = sum(part.texts for part in self._parts)
        if found != identity.records:
            problem = f"holds {found} records instead of {identity.records}"
            raise InputError(problem, file=folder, cure="Delete the parts and write them again")

    def _opened(self, part: Path, form: PartForm) -> PartFile:
        try:
            return PartFile(self._copy.path / part.name, form)
        except (RuntimeError, ValueError, OSError) as error:
            problem = f"is damaged ({' '.join(str(error).split())[:120]})"
            raise InputError(problem, file=part, cure=DELETE_PART) from None

    def __len__(self) -> int:
        return self.identity.records

    def _at(self, index: int) -> TeacherRow:
        number, place = divmod(index, self.identity.part_size)
        try:
            row = self._parts[number].row(place, self._cache)
        except OtherPart:
            raise self._broken(index, OTHER) from None
        except (safetensors.SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if "open files" in str(error):
                raise InputError("too many open files", file=self._path, cure="Raise the limit (ulimit -n)") from None
            raise self._broken(index, f"cannot be read ({error})") from None
        ids = row.ids if self._texts is None else self._texts[index].ids
        if not np.array_equal(row.ids, ids) or row.topk_ids.shape != (len(ids), self.identity.k):
            raise self._broken(index, OTHER)
        return row

    def _broken(self, index: int, problem: str) -> InputError:
        number, record = divmod(index, self.identity.part_size)
        return InputError(problem, file=_part(self._path, number), record=record + 1, cure=DELETE_PART)


def verified(store: TeacherStore, rows: RowsOf, count: int) -> float:
    """Score rows spread over the store again; the largest difference of a log-prob, beyond what 8 bits explain, or of a
    normaliser.

    Raises:
      InputError: it is greater than what float16 rounding explains.
    """
    worst = 0.0
    for index in np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(int)).tolist():
        kept: TeacherRow = store[index]
        (again,) = rows(range(index, index + 1))
        lost = np.abs(kept.topk_logprobs.astype(np.float32) - again.topk_logprobs.astype(np.float32))
        lost -= rounding(again.topk_logprobs, store.identity.log_probs)
        worst = max(worst, float(np.abs(kept.logsumexp - again.logsumexp).max()), float(lost.max()))
        if worst > 0.05:
            problem = f"scored again, the row differs by {worst:.3f}"
            raise InputError(problem, record=index + 1, field="--out", cure="Delete the store and write it again")
    return worst
