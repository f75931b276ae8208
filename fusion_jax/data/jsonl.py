"""JSON lines: read with errors that name the line, written whole or not at all."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.files import replacing

Record = dict[str, Any]


class Records(list[Record]):
    """Records that know the line of the file that each stands on."""

    def __init__(self, records: Iterable[Record], numbers: Sequence[int]) -> None:
        super().__init__(records)
        self.numbers = numbers


def numbered(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
    """Records with what a user finds them by: the line of their file or, without one, their number from 1."""
    return zip(records.numbers, records) if isinstance(records, Records) else enumerate(records, 1)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Record:
    out: Record = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key '{key}' stands twice")
        out[key] = value
    return out


def read_jsonl(path: str | os.PathLike[str]) -> Records:
    """Every record of a JSON-lines file, with its line; blank lines are passed over.

    Raises:
      InputError: no such file, not UTF-8, a line that is not one JSON object; names file and line.
    """
    try:
        raw = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, cure="Check the path") from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", file=path, cure="Give a .jsonl file") from None
    records: list[Record] = []
    numbers: list[int] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
        except UnicodeDecodeError:
            raise InputError("is not UTF-8 text", file=path, record=number, cure="Save the file as UTF-8") from None
        except ValueError as error:
            raise InputError(
                f"is not valid JSON ({error})", file=path, record=number, cure="Correct or remove the line"
            ) from None
        if not isinstance(value, dict):
            raise InputError("is not a JSON object", file=path, record=number, cure="Write one {...} a line")
        records.append(value)
        numbers.append(number)
    return Records(records, numbers)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write the records; the file appears only when all of them are on the disk."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def content_hash(records: Iterable[Record]) -> str:
    """sha256 of the records' content, the same in every process."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
