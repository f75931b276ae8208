"""The log of a merge, tensors.jsonl: one record a tensor, written after the file that holds the tensor.

So a file of a killed merge is known to be finished where all of its records are in the log. On a bucket, where nothing
is appended to, the records of each file are an object in records/ until the log is written whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.files import replacing
from fusion_jax.json_files import parse_json
from fusion_jax.merge.executor.tensors import Record
from fusion_jax.models.safetensors_io import Shard, read_header
from fusion_jax.paths import files_below, is_remote, read_bytes, remove, write_text

RECORDS, APART = "tensors.jsonl", "records"


class Resumed(NamedTuple):
    """The files that are still to be made, and the records of the others by tensor."""

    missing: list[Shard]
    records: dict[str, Record]


def resume(folder: Path, shards: Sequence[Shard]) -> Resumed:
    """What is finished of a merge's files, each of which counts with all of its records; the log then holds these."""
    known = _read(folder)
    finished = [s for s in shards if all(name in known for name in merged_in(s)) and _whole(folder / s.file)]
    records = {name: known[name] for shard in finished for name in merged_in(shard)}
    write_records(folder, records.values())
    return Resumed([shard for shard in shards if shard not in finished], records)


def merged_in(shard: Shard) -> list[str]:
    """The tensors of a file that are merged, and so have records; the others are copied."""
    return [tensor.name for tensor in shard.tensors if not tensor.copied]


def append_records(folder: Path, shard: Shard, records: Mapping[str, Record]) -> None:
    """Add the records of a file, which is finished, to the log."""
    lines = "".join(_line(records[name]) for name in merged_in(shard))
    if is_remote(folder):
        write_text(folder / APART / f"{shard.file}.jsonl", lines)
        return
    with open(folder / RECORDS, "a", encoding="utf-8") as log:
        log.write(lines)


def write_records(folder: Path, records: Collection[Record]) -> None:
    """The whole log anew."""
    with replacing(folder / RECORDS, sync=False) as temporary, open(temporary, "w", encoding="utf-8") as log:
        log.writelines(map(_line, records))
    remove(folder / APART)


def _line(record: Record) -> str:
    """A record's line; the norm of a finite tensor may be beyond float32, and is then written as Infinity."""
    return json.dumps(record) + "\n"


def _read(folder: Path) -> Mapping[str, Record]:
    """The records of a log by tensor; a line that a kill cut short is none."""
    found: dict[str, Record] = {}
    logs = [log for log in (folder / RECORDS, *files_below(folder / APART)) if log.exists()]
    for log in logs:
        for line in read_bytes(log).splitlines():
            with suppress(InputError):
                record = parse_json(line, file=log)
                found[record["name"]] = record
    return found


def _whole(file: Path) -> bool:
    """Whether an output file is there and as long as its header says."""
    if not file.exists():
        return False
    try:
        read_header(file)
    except InputError:
        return False
    return True
