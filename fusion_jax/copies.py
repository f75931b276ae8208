"""Copies of a bucket's files on the local disk, and local folders whose files are put on a bucket.

They lie in folders of their own in TMPDIR, which are removed with them; those of processes that were killed are removed
by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from fusion_jax.errors import InputError
from fusion_jax.paths import download, files_below, is_remote, sizes_below, upload

TEMPORARY = "fusion_jax-copy-"  # begins their names, in TMPDIR
HELD = ".held"  # a file in each, which its process has locked


def _new_folder() -> tuple[Path, Callable[[], None]]:
    """A new local folder, and what removes it. Those of processes that were killed are removed before."""
    for other in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        _remove_unheld(other)
    place = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    handle = os.open(place / HELD, os.O_RDWR | os.O_CREAT)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def end() -> None:
        shutil.rmtree(place, ignore_errors=True)
        os.close(handle)

    return place, end


def _remove_unheld(place: Path) -> None:
    with suppress(OSError):  # of another user, gone meanwhile, held, or without a lock, as a new one is for a moment
        handle = os.open(place / HELD, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(handle).st_mtime > 60:
                shutil.rmtree(place, ignore_errors=True)
        finally:
            os.close(handle)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A local folder, removed at the end of the block."""
    place, end = _new_folder()
    try:
        (place / "files").mkdir()
        yield place / "files"
    finally:
        end()


class Fetched:
    """A file or folder on this machine: a local one as it is; one of a bucket as a copy, which is removed with this
    object or at the end of a `with` statement. An `InputError` in that statement names the original.

    Args:
      names: of a folder, which files of it are copied; None: all.

    Raises:
      InputError: the local disk has no room for the copy.
    """

    def __init__(self, path: Path, names: Iterable[str] | None = None) -> None:
        self.original = self.path = path
        self._end: weakref.finalize[..., Fetched] | None = None
        if is_remote(path):
            place, end = _new_folder()
            self._end = weakref.finalize(self, end)
            self.path = place / path.name
            wanted = None if names is None else set(names)
            every = sizes_below(path)
            self._copy({name: size for name, size in every.items() if not name or wanted is None or name in wanted})

    def _copy(self, sizes: Mapping[str, int]) -> None:
        needed, free = sum(sizes.values()), shutil.disk_usage(self.path.parent).free
        if needed > free:
            problem = f"a local copy needs {needed / 1e9:.2f} GB, {self.path.parent} has {free / 1e9:.2f} GB free"
            raise InputError(problem, file=self.original, cure="Free space, or set TMPDIR to a disk with room")
        if "" not in sizes:
            self.path.mkdir()
        here = {name: self.path / name if name else self.path for name in sizes}
        for folder in {file.parent for file in here.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        download(self.original, here)
        for name, size in sizes.items():
            if here[name].stat().st_size != size:
                raise InputError("was changed while it was read", file=self.original / name, cure="Run it again")

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end is None:
            return
        self._end()
        own, file = os.fspath(self.path), getattr(error, "file", None)
        if isinstance(error, InputError) and file is not None and file.startswith(own):
            named = os.fspath(self.original) + file.removeprefix(own)
            record, field, cure = error.record, error.field, error.cure
            raise type(error)(error.problem, file=named, record=record, field=field, cure=cure) from None


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A local folder to write files into: the folder itself or, for one of a bucket, a temporary one whose files are
    put there at the end, if nothing failed."""
    if not is_remote(folder):
        yield folder
        return
    with temporary_folder() as place:
        yield place
        for file in sorted(files_below(place)):
            upload(file, folder / file.relative_to(place).as_posix())
