"""JSON lines: read with errors that name the line, written whole or not at all."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fusion_jax import arguments
from fusion_jax.files import regular_file, replacing
from fusion_jax.json_files import parse_json
from fusion_jax.paths import opened

Record = dict[str, Any]
_LINE = "Correct or remove the line; write one {...} a line"


class Records(list[Record]):
    """Records that know the line of the file that each stands on."""

    def __init__(self, records: Iterable[Record], numbers: Sequence[int]) -> None:
        super().__init__(records)
        self.numbers = numbers


def numbered(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
    """Records with what a user finds them by: the line of their file or, without one, their number from 1."""
    return zip(records.numbers, records) if isinstance(records, Records) else enumerate(arguments.records(records), 1)


def read_jsonl(path: str | os.PathLike[str]) -> Records:
    """Every record of a JSON-lines file, with its line; blank lines are passed over.

    Raises:
      InputError: no such file, not UTF-8, a line that is not one JSON object; names file and line.
    """
    records: list[Record] = []
    numbers: list[int] = []
    with opened(regular_file(path, cure="Give a .jsonl file")) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            records.append(parse_json(line, file=path, record=number, cure=_LINE, lone_surrogates=True))
            numbers.append(number)
    return Records(records, numbers)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record], *, sync: bool = True) -> None:
    """Write the records; the file appears only when all of them are on the disk. sync: see `files.replacing`."""
    arguments.records(records)
    with replacing(path, sync=sync) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for record in records:
            out.write(line_of(record))


def line_of(record: Record) -> str:
    """The line of a record."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def content_hash(records: Iterable[Record]) -> str:
    """sha256 of the records' content, the same in every process."""
    digest = hashlib.sha256()
    for record in arguments.records(records):
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
