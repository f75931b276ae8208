"""Paths on this machine and on Google Cloud Storage (`gs://BUCKET/...`), used in the same way.

`as_path` gives a `pathlib.Path` for the one and an `epath.Path` for the other. What both offer under the same name
(`/`, `name`, `exists`, `is_dir`, `iterdir`, `unlink`, `read_bytes`) is called on the path; what they do not is here.

A bucket has objects and no folders: a folder is what names have in common, nothing is renamed or appended to, and an
object is there whole or not at all. Listings are not cached, so that a host sees what the others have written.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fusion_jax.errors import DiskError, InputError, first_line

REMOTE = "gs://"
Location = str | os.PathLike[str]


def is_remote(path: Location) -> bool:
    """Whether a path is one of a bucket."""
    return os.fspath(path).startswith(REMOTE)


def as_path(path: Location) -> Path:
    """The path as an object. On a bucket it is an `epath.Path`, which has the methods that the module's text names.

    Raises:
      InputError: it is one of a bucket and names none, or the package for buckets is not installed.
    """
    if not is_remote(path):
        return Path(path)
    if not _split(path)[0]:
        raise InputError("names no bucket", file=path, cure="Give gs://BUCKET/FOLDER")
    os.environ.setdefault("EPATH_USE_TF", "false")  # else it imports TensorFlow where that is installed
    _files()  # before `epath` makes the same client with other settings
    from etils import epath

    found: Path = epath.Path(os.fspath(path).rstrip("/"))
    return found


def refuse_remote(path: Location, field: str) -> None:
    """Raises InputError where a path that has to be on this machine is not; names the option."""
    if "://" in os.fspath(path):
        raise InputError("is no folder of this machine", file=path, field=field, cure="Give a local folder")


@cache
def _files() -> Any:
    """The client of Cloud Storage, the one that `epath` and Orbax use, too; its listings are not cached.

    Raises:
      InputError: its package is not installed.
    """
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError:
        cure = "Install it with: pip install gcsfs"
        raise InputError("a gs:// path needs the package gcsfs, which is not installed", cure=cure) from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what fails is raised, too
    for name in ("gcs", "gs"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)


def _split(path: Location) -> tuple[str, str]:
    """Bucket and name of an object."""
    bucket, _, key = os.fspath(path).removeprefix(REMOTE).rstrip("/").partition("/")
    return bucket, key


def fault_of(error: BaseException) -> tuple[str, str] | None:
    """Why a bucket did not do what it was asked for, and what would help; None for an error of another kind."""
    text = str(error)
    kind = type(error).__name__
    refused = "PERMISSION_DENIED" in text and "os_error_code" not in text and "/dev/" not in text
    if text.startswith("Forbidden") or refused or "HTTP response code: 403" in text:
        return "no permission", "Give this machine's account rights on the bucket (Storage Object User)"
    if kind in ("GoogleAuthError", "DefaultCredentialsError", "RefreshError") or (
        kind == "HttpError" and getattr(error, "code", None) == 401
    ):
        return "not signed in to Google Cloud", "Run: gcloud auth application-default login"
    if kind == "HttpError":
        return f"the bucket's server refused ({first_line(error)})", "Run the same command again"
    if kind.startswith("Client") and "aiohttp" in (type(error).__module__ or ""):
        return f"the bucket's server cannot be reached ({first_line(error)})", "Check the network, then run it again"
    return None


@contextmanager
def told(path: Location) -> Iterator[None]:
    """Around a request: a fault of the bucket becomes a `DiskError`, one line that names the path."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = fault_of(error)
        if found is None:
            raise
        raise DiskError(found[0], file=path, cure=found[1]) from None


def check_bucket(path: Location, field: str | None = None) -> None:
    """Raises InputError where the bucket of a path does not exist or cannot be listed. A local path is not looked at.

    Args:
      field: the option that the path was given for.
    """
    if not is_remote(path):
        return
    bucket, key = _split(path)
    try:
        with told(path):
            _files().call("GET", "b/{}/o", bucket, prefix=key or None, maxResults=1)
    except FileNotFoundError:
        cure = f"Check the name, or make it: gcloud storage buckets create {REMOTE}{bucket}"
        raise InputError(f"there is no bucket '{bucket}'", file=path, field=field, cure=cure) from None
    except InputError as error:
        raise type(error)(error.problem, file=path, field=field, cure=error.cure) from None


# Folders for copies on the local disk

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


# Reading


def exists(path: Path) -> bool:
    """Whether there is something, also a link that leads nowhere."""
    return path.exists() if is_remote(path) else os.path.lexists(path)


def listed(folder: Path) -> list[str]:
    """The names in a folder, sorted.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such folder. On a bucket an empty folder is none.
    """
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with told(folder):
        entries = _files().ls(os.fspath(folder), detail=True)
    own = os.fspath(folder).removeprefix(REMOTE)
    if [entry["name"] for entry in entries] == [own] and entries[0]["type"] == "file":
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder))
    return sorted(name.rpartition("/")[2] for entry in entries if (name := entry["name"].rstrip("/")) != own)


def sizes_below(path: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path from there; of a file, under the name "".

    Raises:
      FileNotFoundError: there is neither.
    """
    if not is_remote(path):
        if not path.is_dir():
            return {"": path.stat().st_size}
        every = [Path(place, name) for place, _, names in os.walk(path) for name in names]
        return {f.relative_to(path).as_posix(): f.stat().st_size if f.exists() else 0 for f in every}
    with told(path):
        found = _files().find(os.fspath(path), detail=True)
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    own = os.fspath(path).removeprefix(REMOTE)
    return {n[len(own) + 1 :]: int(one["size"]) for n, one in found.items() if one["type"] == "file"}


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in some order, links to folders among them; none where there is no such folder."""
    if not is_remote(folder):
        yield from (file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir())
    elif folder.is_dir():
        yield from (folder / name for name in sizes_below(folder) if name)


def size_of(file: Path) -> int:
    """Bytes of a file."""
    if not is_remote(file):
        return file.stat().st_size
    with told(file):
        return int(_files().info(os.fspath(file))["size"])


def stamp(file: Path) -> tuple[str, int, int]:
    """What tells a file from another of the same content: its full path, its size and when it was written, in ns."""
    if not is_remote(file):
        found = file.stat()
        return os.fspath(file.resolve()), found.st_size, found.st_mtime_ns
    with told(file):
        info = _files().info(os.fspath(file))
    return os.fspath(file), int(info["size"]), int(info["mtime"].timestamp() * 1e9)


def read_range(file: Path, start: int, end: int) -> bytes:
    """The bytes of a file from `start` up to `end`; fewer where it ends before."""
    if not is_remote(file):
        with open(file, "rb") as source:
            source.seek(start)
            return source.read(end - start)
    if end <= start:
        return b""
    with told(file):
        return bytes(_files().cat_file(os.fspath(file), start=start, end=end))


def opened(file: Path) -> IO[bytes]:
    """A file to be read from its beginning; an object of a bucket is read whole into memory."""
    if not is_remote(file):
        return open(file, "rb")
    with told(file):
        return io.BytesIO(_files().cat_file(os.fspath(file)))


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
        self._end: Any = None
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
        there = [os.fspath(self.original / name if name else self.original) for name in sizes]
        with told(self.original):
            _files().get(there, [os.fspath(file) for file in here.values()])
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


# Writing


def upload(file: Path, target: Path) -> None:
    """Put a local file on a bucket, whole or not at all, in place of what is there."""
    with told(target):
        _files().put_file(os.fspath(file), os.fspath(target))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one piece: on a bucket it is there whole or not at all. `files.replacing` is that on a disk."""
    if not is_remote(path):
        path.write_bytes(content)
        return
    with told(path):
        _files().pipe_file(os.fspath(path), content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if is_remote(path):
        with told(path), suppress(FileNotFoundError), ThreadPoolExecutor(8) as pool:
            names = [os.fspath(path / name if name else path) for name in sizes_below(path)]
            list(pool.map(_files().rm_file, names))  # its `rm` takes brackets in a name for a pattern
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def generation_of(path: Path) -> int | None:
    """A number that changes with every writing of an object; None where there is no object."""
    bucket, key = _split(path)
    try:
        with told(path):
            return int(_files().call("GET", "b/{}/o/{}", bucket, key, json_out=True)["generation"])
    except FileNotFoundError:
        return None


def write_if(path: Path, content: bytes, generation: int) -> int | None:
    """Write an object if its generation is this one (0: if there is none); its new generation, or None."""
    bucket, key = _split(path)
    files = _files()
    url = f"{files.base.replace('/storage/v1/', '/upload/storage/v1/')}b/{bucket}/o"
    how = {"uploadType": "media", "name": key, "ifGenerationMatch": str(generation)}
    try:
        with told(path):
            header = {"Content-Type": "application/json"}
            return int(files.call("POST", url, headers=header, data=content, json_out=True, **how)["generation"])
    except (FileExistsError, FileNotFoundError):
        return None


def remove_if(path: Path, generation: int) -> None:
    """Remove an object if its generation is this one."""
    bucket, key = _split(path)
    with told(path), suppress(FileExistsError, FileNotFoundError):
        _files().call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=str(generation))
