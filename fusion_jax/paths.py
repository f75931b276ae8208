"""Paths on this machine and on Google Cloud Storage (`gs://BUCKET/...`), used in the same way.

`as_path` gives a `pathlib.Path` for the one and an `epath.Path` for the other. What both offer under the same name
(`/`, `name`, `exists`, `is_dir`, `iterdir`, `unlink`, `read_bytes`) is called on the path; what they do not is here.

A bucket has objects and no folders: a folder is what names have in common, nothing is renamed or appended to, and an
object is there whole or not at all. Listings are not cached, so that a host sees what the others have written.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from fusion_jax.errors import DiskError, InputError, causes, first_line

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
    for name in ("gcsfs", "fsspec.prefetcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is raised, too
    for name in ("gcs", "gs"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)


def _split(path: Location) -> tuple[str, str]:
    """Bucket and name of an object."""
    bucket, _, key = os.fspath(path).removeprefix(REMOTE).rstrip("/").partition("/")
    return bucket, key


class BucketFault(NamedTuple):
    """Why a bucket did not do what it was asked for, and what would help."""

    problem: str
    cure: str


def bucket_fault(error: BaseException) -> BucketFault | None:
    """The fault of a bucket that an error, or one that led to it, tells of; None: it is another."""
    return next(filter(None, map(_fault_of_one, causes(error))), None)


_REFUSED = re.compile(r"http_response_code='(?!404|410)(\d+)'|^(UNAVAILABLE|DEADLINE_EXCEEDED)")  # by TensorStore


def _fault_of_one(error: BaseException) -> BucketFault | None:
    text = str(error)
    kind = type(error).__name__
    refused = "PERMISSION_DENIED" in text and "os_error_code" not in text and "/dev/" not in text
    if text.startswith("Forbidden") or refused or "HTTP response code: 403" in text:
        return BucketFault("no permission", "Give this machine's account rights on the bucket (Storage Object User)")
    if kind in ("GoogleAuthError", "DefaultCredentialsError", "RefreshError") or (
        kind == "HttpError" and getattr(error, "code", None) == 401
    ):
        return BucketFault("not signed in to Google Cloud", "Run: gcloud auth application-default login")
    if kind == "HttpError":
        return BucketFault(f"the bucket's server refused ({first_line(error)})", "Run the same command again")
    if kind.startswith("Client") and "aiohttp" in (type(error).__module__ or ""):
        problem = f"the bucket's server cannot be reached ({first_line(error)})"
        return BucketFault(problem, "Check the network, then run it again")
    if REMOTE in text and (found := _REFUSED.search(text)):
        return BucketFault(f"the bucket's server refused ({found[1] or found[2]})", "Run the same command again")
    return None


@contextmanager
def bucket_faults(path: Location, *, doing: str = "", field: str | None = None) -> Iterator[None]:
    """Around requests: a fault of the bucket becomes a `DiskError`, one line that names the path.

    Args:
      doing: begins the line, for instance "a checkpoint cannot be written". field: the option of the path.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        fault = bucket_fault(error)
        if fault is None:
            raise
        problem = f"{doing}: {fault.problem}" if doing else fault.problem
        raise DiskError(problem, file=path, field=field, cure=fault.cure) from error


def check_bucket(path: Location, field: str | None = None) -> None:
    """Raises InputError where the bucket of a path does not exist or cannot be listed. A local path is not looked at.

    Args:
      field: the option that the path was given for.
    """
    if not is_remote(path):
        return
    bucket, key = _split(path)
    try:
        with bucket_faults(path, field=field):
            _files().call("GET", "b/{}/o", bucket, prefix=key or None, maxResults=1)
    except FileNotFoundError:
        cure = f"Check the name, or make it: gcloud storage buckets create {REMOTE}{bucket}"
        raise InputError(f"there is no bucket '{bucket}'", file=path, field=field, cure=cure) from None


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
    with bucket_faults(folder):
        entries = _files().ls(os.fspath(folder), detail=True)
    own = os.fspath(folder).removeprefix(REMOTE)
    if [entry["name"] for entry in entries] == [own] and entries[0]["type"] == "file":
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder))
    return sorted(name.rpartition("/")[2] for entry in entries if (name := entry["name"].rstrip("/")) != own)


def names_below(path: Path) -> list[str]:
    """The path of every file below a folder, from there, in some order; of a file, the name "".

    Raises:
      FileNotFoundError: there is neither.
    """
    if is_remote(path):
        return list(sizes_below(path))
    if not path.is_dir():
        path.stat()
        return [""]
    return [Path(place, name).relative_to(path).as_posix() for place, _, names in os.walk(path) for name in names]


def sizes_below(path: Path) -> dict[str, int]:
    """Bytes of each of `names_below`; 0 of a link that leads nowhere. On a bucket the listing holds them."""
    if not is_remote(path):
        files = {name: path / name for name in names_below(path)}
        return {name: file.stat().st_size if file.exists() else 0 for name, file in files.items()}
    with bucket_faults(path):
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
        yield from (folder / name for name in names_below(folder) if name)


def size_of(file: Path) -> int:
    """Bytes of a file."""
    if not is_remote(file):
        return file.stat().st_size
    with bucket_faults(file):
        return int(_files().info(os.fspath(file))["size"])


def stamp(file: Path) -> tuple[str, int, int]:
    """What tells a file from another of the same content: its full path, its size and when it was written, in ns."""
    if not is_remote(file):
        found = file.stat()
        return os.fspath(file.resolve()), found.st_size, found.st_mtime_ns
    with bucket_faults(file):
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
    with bucket_faults(file):
        return bytes(_files().cat_file(os.fspath(file), start=start, end=end))


def read_bytes(file: Path) -> bytes:
    """All of a file."""
    if not is_remote(file):
        return file.read_bytes()
    with bucket_faults(file):
        return bytes(_files().cat_file(os.fspath(file)))


def opened(file: Path) -> IO[bytes]:
    """A file to be read from its beginning; an object of a bucket is read whole into memory."""
    return io.BytesIO(read_bytes(file)) if is_remote(file) else open(file, "rb")


def download(path: Path, targets: Mapping[str, Path]) -> None:
    """Copy files of a bucket to the local disk, several at a time.

    Args:
      targets: a file's path from `path` ("" is `path` itself) -> where it goes.
    """
    sources = [os.fspath(path / name if name else path) for name in targets]
    with bucket_faults(path):
        _files().get(sources, [os.fspath(file) for file in targets.values()])


# Writing


def upload(file: Path, target: Path) -> None:
    """Put a local file on a bucket, whole or not at all, in place of what is there."""
    with bucket_faults(target):
        _files().put_file(os.fspath(file), os.fspath(target))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one piece: on a bucket it is there whole or not at all. `files.replacing` is that on a disk."""
    if not is_remote(path):
        path.write_bytes(content)
        return
    with bucket_faults(path):
        _files().pipe_file(os.fspath(path), content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if is_remote(path):
        with bucket_faults(path), suppress(FileNotFoundError), ThreadPoolExecutor(8) as pool:
            names = [os.fspath(path / name if name else path) for name in names_below(path)]
            list(pool.map(_files().rm_file, names))  # its `rm` takes brackets in a name for a pattern
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def generation_of(path: Path) -> int | None:
    """A number that changes with every writing of an object; None where there is no object."""
    bucket, key = _split(path)
    try:
        with bucket_faults(path):
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
        with bucket_faults(path):
            header = {"Content-Type": "application/json"}
            return int(files.call("POST", url, headers=header, data=content, json_out=True, **how)["generation"])
    except (FileExistsError, FileNotFoundError):
        return None


def remove_if(path: Path, generation: int) -> None:
    """Remove an object if its generation is this one."""
    bucket, key = _split(path)
    with bucket_faults(path), suppress(FileExistsError, FileNotFoundError):
        _files().call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=str(generation))
