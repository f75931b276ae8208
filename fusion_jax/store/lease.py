"""One process at a time writes a folder of a bucket, where there are no file locks.

The lock is an object that is made only where there is none. Its holder writes it again every `BEAT` seconds. Another
process takes it over when it has stood still for `LEASE` seconds, or at once where the holder was a process of this
host that has ended. Each writing names the generation that it replaces, so that of two processes one succeeds, and a
holder that was cut off for so long that it lost the folder learns it and stops.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.paths import check_bucket, generation_of, opened, remove_if, write_if

BEAT, LEASE = 10.0, 60.0


class Lease:
    """A folder of a bucket held by this process until `release` or the end of the process. note: as of `lock.Lock`."""

    note = ""

    def __init__(self, path: Path, holder: dict[str, Any], generation: int) -> None:
        self.path, self._holder, self._generation = path, holder, generation
        self._lost, self._ended = False, threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            try:
                new = write_if(self.path, _text(self._holder | {"beats": beats}), self._generation)
            except Exception:  # the network may come back
                continue
            if new is None:
                found = _read(self.path)  # a request that was repeated may have been heard the first time
                if found is None or found[1].get("id") != self._holder["id"]:
                    self._lost = True
                    return
                new = found[0]
            self._generation = new

    @property
    def lost(self) -> bool:
        """Whether another process is known to have taken the folder over."""
        return self._lost

    def check(self) -> None:
        """Raises InputError where another process has taken the folder over."""
        if self._lost:
            problem = f"another process took the folder over, after this one was not heard of for {LEASE:g} s"
            raise InputError(problem, file=self.path, cure="Let that one go on, or end it and resume")

    def release(self, path: Path | None = None) -> None:
        """Let the folder go and remove the lock's object."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            if not self._lost:
                remove_if(self.path, self._generation)


def acquire(path: Path, me: dict[str, Any], ended: Any, refused: Any) -> Lease:
    """The lock of a folder.

    Args:
      path: of the lock's object. me: what tells this process to others.
      ended: (holder) -> whether it was a process of this host that has ended. refused: (holder) -> the error.

    Raises:
      InputError: another process holds it; after `BEAT` seconds or a little more.
    """
    me = me | {"id": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    replaced = 0
    seen: tuple[int, float] | None = None
    while True:
        generation = write_if(path, _text(me), replaced)
        if generation is not None:
            return Lease(path, me, generation)
        found = _read(path)
        replaced = 0
        if found is None:
            check_bucket(path)
            time.sleep(0.2)
            continue
        generation, holder = found
        if holder.get("id") == me["id"]:
            return Lease(path, me, generation)
        if seen is not None and generation != seen[0]:
            raise refused(holder)
        seen = seen or (generation, time.monotonic())
        if ended(holder) or time.monotonic() - seen[1] > LEASE:
            replaced = generation
        else:
            time.sleep(min(1.0, BEAT))


def _text(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder).encode()


def _read(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Generation and holder; the generation is read first, so that it is never newer than the holder."""
    generation = generation_of(path)
    if generation is None:
        return None
    try:
        with opened(path) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        found = {}
    return generation, found if isinstance(found, dict) else {}
