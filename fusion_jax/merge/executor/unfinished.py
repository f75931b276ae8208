"""The folder that a merge writes into until it is whole: hidden, of one process at a time, there to go on in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.files import FAULTS, DiskError, fault, reason, write_json, writing
from fusion_jax.json_files import read_json
from fusion_jax.store.lock import LOCK, acquire, sweep

IDENTITY = "identity.json"


@contextmanager
def unfinished(out: str | os.PathLike[str], identity: dict[str, Any]) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end.

    One that is there already goes on if it is of the same identity, else it is made anew. It survives a kill and, where
    a weight file in it is finished, a fault of the disk; another `InputError` removes it.

    Raises:
      InputError: `out` exists, cannot be replaced, or another process writes it.
      DiskError: a fault of the disk; says what would mend it, and what is kept.
    """
    target = Path(os.path.realpath(out))
    _check_free(target, out)
    place = target.with_name(f".{target.name}.unfinished")
    with writing("the merged model", out):
        place.mkdir(parents=True, exist_ok=True)
        lock = acquire(place, out=out)
    try:
        known = place / IDENTITY
        same = known.exists() and read_json(known, cure=f"Delete {place} and merge anew") == identity
        with _cleaned(place):
            _check_free(target, out)  # another process may have finished it by now
            if not same:
                _empty(place)
            sweep(place)
            write_json(known, identity)
            yield place
            os.replace(place, target)
            (target / IDENTITY).unlink()  # a kill before this leaves a whole merge
            lock.release(target / LOCK)
    finally:
        lock.release()


@contextmanager
def _cleaned(place: Path) -> Iterator[None]:
    """Bad input leaves nothing of the folder behind; of a fault of the disk, told in one line, what can go on stays."""
    try:
        yield
    except DiskError as error:
        raise _to_go_on(place, error.problem, error.cure or "", error.file or place) from error
    except InputError:
        _remove(place)
        raise
    except OSError as error:
        number = fault(error)
        problem, cure = (reason(error), "Mend the disk or choose another --out") if number is None else FAULTS[number]
        raise _to_go_on(place, problem, cure, error.filename or place) from error


def _check_free(target: Path, out: str | os.PathLike[str]) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError("exists already", file=out, field="--out", cure="Choose another folder")
    if os.path.ismount(target) or target == Path.cwd():
        problem = "is a mounted folder or the current one, which a finished merge cannot replace"
        raise InputError(problem, file=out, field="--out", cure=f"Give a new folder in it, as {Path(out) / 'merged'}")


def _empty(place: Path) -> None:
    """Remove all but the lock, which others may try meanwhile."""
    for file in place.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name != LOCK:
            file.unlink()


def _remove(place: Path) -> None:
    with suppress(OSError):
        _empty(place)
        (place / LOCK).unlink()  # while it is held
        place.rmdir()


def _to_go_on(place: Path, problem: str, cure: str, file: str | os.PathLike[str]) -> DiskError:
    """A fault of the disk, with what to do and what is kept; nothing is where no file is finished."""
    finished = len(list(place.glob("*.safetensors")))
    cure += ", and run the same again"
    if finished:
        cure += f"; it goes on behind the {finished} finished files in {place}"
    else:
        _remove(place)
    return DiskError(problem, file=file, field="--out", cure=cure)
