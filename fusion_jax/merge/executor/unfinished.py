"""The folder that a merge writes into until it is whole: hidden, of one process at a time, there to go on in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.files import FAULTS, DiskError, fault, reason, write_json, writing
from fusion_jax.json_files import read_json
from fusion_jax.paths import as_path, check_bucket, is_remote, listed, remove
from fusion_jax.store.lease import FolderLost
from fusion_jax.store.lock import LOCK, Held, acquire, is_trace, sweep

IDENTITY = "identity.json"


class Unfinished(NamedTuple):
    """The folder of an unfinished merge, held by this process; `lock.check()` goes before each writing in it."""

    folder: Path
    lock: Held


@contextmanager
def unfinished(out: str | os.PathLike[str], identity: dict[str, Any]) -> Iterator[Unfinished]:
    """A folder beside `out` that takes its name at the end.

    One that is there already goes on if it is of the same identity, else it is made anew. It survives a kill and, where
    a weight file in it is finished, a fault of the disk; another `InputError` removes it. On a bucket, where nothing is
    renamed, it is `out` itself, which is unfinished as long as it holds identity.json, and is a model only at the end.

    Raises:
      InputError: `out` exists, cannot be replaced, or another process writes it.
      DiskError: a fault of the disk; says what would mend it, and what is kept.
      FolderLost: another process has taken it over, and it is left as it is.
    """
    remote = is_remote(out)
    target = as_path(out) if remote else Path(os.path.realpath(out))
    check_bucket(target, "--out")
    _check_free(target, out)
    place = target if remote else target.with_name(f".{target.name}.unfinished")
    with writing("the merged model", out):
        place.mkdir(parents=True, exist_ok=True)
        lock = acquire(place, out=out)
    try:
        known = place / IDENTITY
        same = known.exists() and read_json(known, cure=f"Delete {place} and merge anew") == identity
        with _cleaned(place, lock):
            _check_free(target, out)  # another process may have finished it by now
            if not same:
                _empty(place)
            sweep(place)
            write_json(known, identity)
            yield Unfinished(place, lock)
            lock.check()
            if not remote:
                os.replace(place, target)
            (target / IDENTITY).unlink()  # a kill before this leaves a whole merge
            lock.release(target / LOCK)
    finally:
        lock.release()


@contextmanager
def _cleaned(place: Path, lock: Held) -> Iterator[None]:
    """Bad input leaves nothing of the folder behind; of a fault of the disk, told in one line, what can go on stays."""
    try:
        yield
    except FolderLost:
        raise
    except DiskError as error:
        raise _to_go_on(place, lock, error.problem, error.cure or "", error.file or place) from error
    except InputError:
        _remove(place, lock)
        raise
    except OSError as error:
        number = fault(error)
        problem, cure = (reason(error), "Mend the disk or choose another --out") if number is None else FAULTS[number]
        raise _to_go_on(place, lock, problem, cure, error.filename or place) from error


def _check_free(target: Path, out: str | os.PathLike[str]) -> None:
    if target.exists() and (not target.is_dir() or not _is_free(target)):
        raise InputError("exists already", file=out, field="--out", cure="Choose another folder")
    if is_remote(target):
        return
    if os.path.ismount(target) or target == Path.cwd():
        problem = "is a mounted folder or the current one, which a finished merge cannot replace"
        raise InputError(problem, file=out, field="--out", cure=f"Give a new folder in it, as {Path(out) / 'merged'}")


def _is_free(target: Path) -> bool:
    """Whether a folder is empty or, on a bucket, that of an unfinished merge."""
    names = listed(target)
    return not names or (is_remote(target) and (IDENTITY in names or all(map(is_trace, names))))


def _empty(place: Path) -> None:
    """Remove all but the lock, which others may try meanwhile."""
    for file in place.iterdir():
        if file.name != LOCK:
            remove(file)


def _remove(place: Path, lock: Held) -> None:
    with suppress(Exception):  # the error that came first is the one that is raised
        lock.check()
        _empty(place)
        (place / LOCK).unlink()  # while it is held
        place.rmdir()


def _to_go_on(place: Path, lock: Held, problem: str, cure: str, file: str | os.PathLike[str]) -> DiskError:
    """A fault of the disk, with what to do and what is kept; nothing is where no file is finished."""
    cure += ", and run the same again"
    with suppress(Exception):  # a bucket that does not answer keeps what there is
        finished = len(list(place.glob("*.safetensors")))
        if finished:
            cure += f"; it goes on behind the {finished} finished files in {place}"
        else:
            _remove(place, lock)
    return DiskError(problem, file=file, field="--out", cure=cure)
