"""One process at a time writes a folder of a bucket, where there are no file locks.

The lock is an object that is made only where there is none. Its holder writes it again every `BEAT` seconds. Another
process takes it over when it has stood still for `LEASE` seconds, or at once where the holder was a process of this
machine that has ended. Each writing names the generation that it replaces, so that of two processes one succeeds.

A holder that was stopped or cut off for so long may have lost the folder. So it checks before it writes there: the lock
was written again less than `SAFE` seconds ago, or is written now.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.paths import check_bucket, generation_of, read_bytes, remove_if, write_if

BEAT, SAFE, LEASE = 10.0, 30.0, 60.0
Holder = Mapping[str, object]  # what the lock says of the process that holds it; "id" tells it from all others


class FolderLost(InputError):
    """Another process holds a folder that this one held; nothing in it is this process's to write or remove."""

    @classmethod
    def at(cls, lock: Path) -> FolderLost:
        """The error for the folder with this lock."""
        problem = f"another process took the folder over, after this one was not heard of for {LEASE:g} s"
        return cls(problem, file=lock, cure="Let that one go on, or end it and resume")


class _Pulse:
    """What keeps a lock: its object as it was last written, and the loop that writes it again.

    lost: whether another process is known to hold it. ended: set when it is to be kept no more.
    """

    def __init__(self, path: Path, holder: Holder, generation: int, written: float) -> None:
        self.path, self.lost, self.ended = path, False, threading.Event()
        self._holder, self._generation, self._written = holder, generation, written
        self._turn = threading.Lock()

    def beat(self, younger: float = 0.0) -> None:
        """Write the object again, unless that was done less than `younger` seconds ago.

        Raises:
          DiskError: the bucket does not take it.
        """
        if self.lost or _now() - self._written < younger:
            return
        with self._turn:
            if self.lost or _now() - self._written < younger:
                return
            started = _now()
            new = write_if(self.path, _text(self._holder), self._generation)
            if new is None:  # a request that was repeated may have been heard the first time
                found = _read(self.path)
                new = found.generation if found is not None and found.id == self._holder["id"] else None
            if new is None:
                self.lost = True
            else:
                self._generation, self._written = new, started

    def keep(self) -> None:
        """Write the object again and again, until it is lost or let go."""
        while not self.lost and not self.ended.wait(BEAT):
            with suppress(Exception):  # the network may come back
                self.beat()

    def remove(self) -> None:
        """Remove the object; one that cannot be removed stands still from now on, and is taken over."""
        with suppress(Exception):
            if not self.lost:
                remove_if(self.path, self._generation)


class Lease:
    """A folder of a bucket held by this process until `release`, the end of the process or of this object.

    note: as of `lock.Lock`.
    """

    note = ""

    def __init__(self, path: Path, holder: Holder, generation: int, written: float) -> None:
        self.path = path
        self._pulse = _Pulse(path, holder, generation, written)
        self._let_go = weakref.finalize(self, self._pulse.ended.set)  # the thread does not know this object
        self._thread = threading.Thread(target=self._pulse.keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called before something in the folder is written or removed; seldom asks the bucket.

        Raises:
          FolderLost: another process has taken the folder over.
          DiskError: the bucket does not answer, so that nobody knows.
        """
        self._pulse.beat(younger=SAFE)
        if self._pulse.lost:
            raise FolderLost.at(self.path)

    def release(self, path: Path | None = None) -> None:
        """Let the folder go and remove the lock's object. Raises nothing that would hide an earlier error."""
        if self._let_go.alive:
            self._let_go()
            self._thread.join(BEAT)
            self._pulse.remove()


def acquire(path: Path, me: Holder, ended: Callable[[Holder], bool], refused: Callable[[Holder], InputError]) -> Lease:
    """The lock of a folder.

    Args:
      path: of the lock's object. me: what tells this process to others.
      ended: whether a holder was a process of this machine that has ended. refused: the error that names a holder.

    Raises:
      InputError: another process holds it; after `BEAT` seconds or a little more.
    """
    me = {**me, "id": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    replaced = 0
    seen: tuple[int, float] | None = None
    while True:
        started = _now()
        generation = write_if(path, _text(me), replaced)
        if generation is not None:
            return Lease(path, me, generation, started)
        found = _read(path)
        replaced = 0
        if found is None:
            check_bucket(path)
            time.sleep(0.2)
            continue
        if found.id == me["id"]:
            return Lease(path, me, found.generation, started)
        if seen is not None and found.generation != seen[0]:
            raise refused(found.holder)
        seen = seen or (found.generation, time.monotonic())
        if ended(found.holder) or time.monotonic() - seen[1] > LEASE:
            replaced = found.generation
        else:
            time.sleep(min(1.0, BEAT))


class Claim(NamedTuple):
    """Who holds a folder, for other processes and hosts that write there for it. lock: its path."""

    lock: Path
    id: object

    def check(self) -> None:
        """As `Lease.check`; asks the bucket each time."""
        found = _read(self.lock)
        if found is None or found.id != self.id:
            raise FolderLost.at(self.lock)


def claim(lock: Path) -> Claim:
    """That of the process that holds the lock now.

    Raises:
      FolderLost: there is none.
    """
    found = _read(lock)
    if found is None or found.id is None:
        raise FolderLost.at(lock)
    return Claim(lock, found.id)


class _Found(NamedTuple):
    generation: int
    holder: Holder

    @property
    def id(self) -> object:
        return self.holder.get("id")


def _read(path: Path) -> _Found | None:
    """The lock's object; the generation is read first, so that it is never newer than the holder."""
    generation = generation_of(path)
    if generation is None:
        return None
    try:
        found = json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        found = {}
    return _Found(generation, found if isinstance(found, dict) else {})


def _text(holder: Holder) -> bytes:
    return json.dumps(holder).encode()


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
