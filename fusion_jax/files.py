"""Files that are there whole or not at all, and faults of the disk told in one line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusion_jax import paths
from fusion_jax.copies import temporary_folder
from fusion_jax.errors import DiskError, InputError
from fusion_jax.paths import as_path


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`: what was written there is put in its place at the end, or removed on an error.

    For one of a bucket the temporary file is on the local disk.

    sync: wait until the disk has it, so that a loss of power leaves it whole or not there, too.
    """
    target = as_path(path)
    if paths.is_remote(target):
        with temporary_folder() as place:
            yield place / target.name
            paths.upload(place / target.name, target)
        return
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")  # several hosts may share the folder
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.filename == os.fspath(temporary):
            error.filename = os.fspath(target)  # the name that a user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new temporary folder beside `path`, which is put in its place at the end, or removed on an error. What is at
    `path` is replaced.

    On a bucket, where nothing is renamed, it is `path` itself, emptied: whoever writes there begins with what does not
    count alone, and ends with the file by which a reader knows the folder.
    """
    target = as_path(path)
    if paths.is_remote(target):
        paths.remove(target)
        try:
            yield target
        except BaseException:
            with suppress(Exception):  # what stopped the writing may stop this, too
                paths.remove(target)
            raise
        return
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error.filename, str) and error.filename.startswith(os.fspath(temporary)):
            error.filename = error.filename.replace(os.fspath(temporary), os.fspath(target), 1)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


FAULTS = {  # errno -> what is wrong, what would mend it
    errno.ENOSPC: ("the disk is full", "Free space or choose another --out"),
    errno.EDQUOT: ("the disk quota is used up", "Free space or choose another --out"),
    errno.EFBIG: ("the file would be larger than is allowed", "Raise the limit (ulimit -f) or choose another --out"),
    errno.EROFS: ("the file system is read-only", "Choose another --out"),
    errno.EACCES: ("no permission", "Choose another --out or change the folder's rights"),
    errno.EPERM: ("the system does not allow it", "Choose another --out or change the folder's rights"),
    errno.EIO: ("the disk does not answer as it should (input/output error)", "Check the disk"),
    errno.ENOENT: ("there is no such place", "Check the path, or choose another --out"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another --out"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter --out"),
    errno.ELOOP: ("the path is a loop of links", "Choose another --out"),
    errno.EMFILE: ("there are too many open files", "Raise the limit (ulimit -n)"),
    errno.ESTALE: ("the network disk has lost the file", "Run the same command again"),
    errno.ENFILE: ("the system has too many open files", "Close other programs or raise the limit"),
    errno.ETXTBSY: ("another program uses the file", "End that program"),
    errno.EBUSY: ("another program uses it", "End that program"),
}
# Orbax, TensorStore and array_record tell what the system said in errors of their own types.
_TEXTS = re.compile("|".join(re.escape(os.strerror(number)) for number in FAULTS if number != errno.ENOENT), re.I)
_NUMBERS = {os.strerror(number).lower(): number for number in FAULTS}


def fault(error: BaseException) -> int | None:
    """The system's number of the disk fault that an error, or one that led to it, tells of; None: it is another."""
    waiting, met = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in met:
            continue
        met.add(id(one))
        if isinstance(one, OSError) and one.errno in FAULTS:
            return one.errno
        found = None if isinstance(one, InputError) else _TEXTS.search(str(one))
        if found:
            return _NUMBERS[found[0].lower()]
        waiting += [e for e in (one.__cause__, one.__context__) if e is not None]
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return None


@contextmanager
def writing(what: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Around the writing of something: a fault of the disk, in whichever library, becomes one line.

    Args:
      what: is written, for instance "a checkpoint".
      path: the file or folder that a user knows it by.

    Raises:
      DiskError: the disk is full, read-only, not ours, or broken.
    """
    try:
        with paths.bucket_faults(path, doing=f"{what} cannot be written"):
            yield
    except InputError:
        raise
    except Exception as error:
        number = fault(error)
        if number is None:
            raise
        problem, cure = FAULTS[number]
        raise DiskError(f"{what} cannot be written: {problem}", file=path, cure=cure) from error


def write_json(path: str | os.PathLike[str], value: Any, *, sync: bool = True, sort: bool = True) -> None:
    """A JSON file; sync: see `replacing`; sort: keys in alphabetical order, else in their own."""
    with replacing(path, sync=sync) as temporary:
        text = json.dumps(value, indent=2, sort_keys=sort, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def regular_file(path: str | os.PathLike[str], *, cure: str = "Give a file", missing: str = "Check the path") -> Path:
    """The path of a file that can be read to its end: no folder, no pipe, no device, which may never end.

    Args:
      cure, missing: what would fix a path of something else, and of nothing.

    Raises:
      InputError: there is no such file, it is something else, or the path cannot be one.
    """
    file = as_path(path)
    if paths.is_remote(file):
        _check_object(file, cure, missing)
        return file
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, cure=missing) from None
    except ValueError:
        raise InputError("is no path (it holds a NUL character)", file=path, cure="Check the path") from None
    except OSError as error:
        raise InputError(f"cannot be opened ({reason(error)})", file=path, cure="Check the path") from None
    if stat.S_ISDIR(mode):
        raise InputError("is a folder, not a file", file=path, cure=cure)
    if not stat.S_ISREG(mode):
        raise InputError("is no regular file (a pipe, socket or device)", file=path, cure="Give a regular file")
    if not os.access(file, os.R_OK):
        raise InputError("cannot be read (no permission)", file=path, cure="Change the file's rights")
    return file


def _check_object(file: Path, cure: str, missing: str) -> None:
    """`regular_file` of an object of a bucket."""
    with paths.bucket_faults(file):
        there, folder = file.exists(), file.is_dir()
    if not there:
        paths.check_bucket(file)
        raise InputError("there is no such file", file=file, cure=missing)
    if folder:
        raise InputError("is a folder, not a file", file=file, cure=cure)


def reason(error: OSError) -> str:
    """What the system says of an error, in lower case and without its number: "file name too long"."""
    text = error.strerror or type(error).__name__
    return text[:1].lower() + text[1:]
