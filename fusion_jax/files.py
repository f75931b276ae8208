"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`: what was written there is put in its place at the end, or removed on an error.

    sync: wait until the disk has it, so that a loss of power leaves it whole or not there, too.
    """
    target = Path(path)
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
    file = Path(path)
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


def reason(error: OSError) -> str:
    """What the system says of an error, in lower case and without its number: "file name too long"."""
    text = error.strerror or type(error).__name__
    return text[:1].lower() + text[1:]
