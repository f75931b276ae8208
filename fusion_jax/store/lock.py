"""One process at a time writes a folder; what killed processes left half-written in it is swept away by the next one.

The lock is `flock` on a file of the folder: the system lets it go when its process ends in any way. The file says who
holds it. On a bucket it is an object that its holder renews (see `store.lease`), and nothing is half-written there.
Reading takes no lock. Of several hosts at one run, the first one holds it for all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fusion_jax.errors import InputError
from fusion_jax.paths import is_remote
from fusion_jax.store import lease
from fusion_jax.store.lease import Claim, Holder, Lease

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network disks have none
TEMPORARY = re.compile(r"\..+\.(\d+|[0-9a-f]{32})\.tmp")
NOTE = "the file system has no locks: a second process on this folder is noticed on the same host only"


class Checked(Protocol):
    """What says whether a folder is still this process's: a lock that it holds, or a claim on one."""

    def check(self) -> None:
        """To be called before something is written or removed.

        Raises:
          FolderLost: another process has taken it over, which only happens on a bucket.
        """


class Lock:
    """A folder held by this process until `release`, the end of the process or of this object.

    note: what a user should know of a lock that is weaker than it seems, or nothing.
    """

    def __init__(self, path: Path, handle: int, note: str = "") -> None:
        self.path, self.note = path, note
        self._handle: int | None = handle

    def check(self) -> None:
        """As `Checked.check`. Nobody else can have taken it: the system keeps it."""

    def release(self, path: Path | None = None) -> None:
        """Let the folder go and remove the lock's file.

        Args:
          path: where the file is now, if its folder was renamed.
        """
        if self._handle is None:
            return
        file = path or self.path
        with suppress(OSError):
            if _same_file(self._handle, file):
                file.unlink()  # before it is let go: nobody else can hold it yet
        os.close(self._handle)
        self._handle = None

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


Held = Lock | Lease


def acquire(folder: Path, *, out: str | os.PathLike[str] | None = None, name: str = LOCK) -> Held:
    """The folder, which exists, as this process's own.

    Args:
      out: what the user calls the folder.
      name: of the lock's file; hosts that share a folder without being connected have one each.

    Raises:
      InputError: another process holds it; says which.
    """
    path = folder / name
    if is_remote(path):
        return lease.acquire(path, _me(), _ended, lambda holder: _refused(out or folder, holder))
    while True:
        handle, note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), ""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise _refused(out or folder, _holder(path)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            note, holder = NOTE, _holder(path)
            if _alive(holder):
                os.close(handle)
                raise _refused(out or folder, holder) from None
        if _same_file(handle, path):  # else another process has removed it meanwhile
            break
        os.close(handle)
    text = json.dumps(_me() | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode()
    lock = Lock(path, handle, note)
    os.ftruncate(handle, 0)
    os.pwrite(handle, text, 0)
    return lock


@contextmanager
def held(folder: Path, *, out: str | os.PathLike[str] | None = None, name: str = LOCK) -> Iterator[Held]:
    """`acquire`, until the end of the block."""
    lock = acquire(folder, out=out, name=name)
    try:
        yield lock
    finally:
        lock.release()


def claim(folder: Path) -> Claim | None:
    """What other processes and hosts check that write in a held folder for its holder; None on a disk.

    Raises:
      FolderLost: nobody holds it.
    """
    return lease.claim(folder / LOCK) if is_remote(folder) else None


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder at this moment."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return _alive(_holder(folder / LOCK))
    finally:
        os.close(handle)
    return False


def sweep(folder: Path, mine: Callable[[str], bool] = lambda name: True) -> list[Path]:
    """Remove the temporary files and folders that killed processes left in a held folder; what was removed.

    Args:
      mine: which names are this host's to remove, where several write into the folder.
    """
    removed: list[Path] = []
    if is_remote(folder):  # an object is there whole or not at all
        return removed
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if TEMPORARY.fullmatch(name) and mine(name):
                path = Path(place, name)
                if name in folders and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                removed.append(path)
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]
    return removed


def is_trace(name: str) -> bool:
    """Whether a name is one that locks or killed processes leave, and nothing that a user would miss."""
    return name.startswith(LOCK) or TEMPORARY.fullmatch(name) is not None


def _me() -> dict[str, Any]:
    names = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    return names | {"machine": _machine()}


def _machine() -> str:
    """What tells this start of a machine, and a container on it, from others; empty if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _started(pid: int) -> str:
    """When a process of this host began, which tells it from a later one of the same number; empty if unknown."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _holder(path: Path) -> Holder:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes()[:1000])
        if isinstance(found, dict):
            return found
    return {}


def _runs(holder: Holder) -> bool:
    """Whether a process of this machine with the number and the start of a holder is there."""
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return holder.get("started") in ("", _started(pid))


def _alive(holder: Holder) -> bool:
    """Whether a holder is known to be a process of this machine that runs."""
    theirs, ours = holder.get("machine"), _machine()
    here = theirs == ours if theirs and ours else holder.get("host") == socket.gethostname()
    return here and _runs(holder)


def _ended(holder: Holder) -> bool:
    """Whether a holder is known to be a process of this machine that has ended.

    Host names do not tell: two containers may have the same, and one machine two.
    """
    here = bool(holder.get("machine")) and holder.get("machine") == _machine()
    return here and isinstance(holder.get("pid"), int) and not _runs(holder)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _refused(out: str | os.PathLike[str], holder: Holder) -> InputError:
    who = f" ({holder['pid']} on {holder.get('host')}, since {holder.get('since')})" if "pid" in holder else ""
    return InputError(
        f"is being written by another process{who}", file=out, field="--out",
        cure="Wait for it, or choose another folder",
    )  # fmt: skip
