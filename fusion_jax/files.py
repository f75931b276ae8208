"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
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


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run.

    Raises:
      InputError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error})", file=path, cure="Restore the file or start a new run") from None
