"""The log of a merge, tensors.jsonl: one record a tensor, written after the file that holds the tensor.

So a file of a killed merge is known to be finished where all of its records are in the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.files import replacing
from fusion_jax.json_files import parse_json
from fusion_jax.merge.executor.tensors import Record
from fusion_jax.models.safetensors_io import Shard, read_header
from fusion_jax.paths import opened
from fusion_jax.store.appending import Appending

RECORDS = "tensors.jsonl"


class Resumed(NamedTuple):
    """The files that are still to be made, and the records of the others by tensor."""

    missing: list[Shard]
    records: dict[str, Record]


def resume(folder: Path, shards: Sequence[Shard]) -> Resumed:
    """What is finished of a merge's files, each of which counts with all of its records; the log then holds these."""
    known = _read(folder / RECORDS)
    finished = [s for s in shards if all(name in known for name in merged_in(s)) and _whole(folder / s.file)]
    records = {name: known[name] for shard in finished for name in merged_in(shard)}
    write_records(folder, records.values())
    return Resumed([shard for shard in shards if shard not in finished], records)


def merged_in(shard: Shard) -> list[str]:
    """The tensors of a file that are merged, and so have records; the others are copied."""
    return [tensor.name for tensor in shard.tensors if not tensor.copied]


def append_records(folder: Path, records: Iterable[Record]) -> None:
    """Add to the log."""
    appending = Appending()
    appending.add(folder / RECORDS, "".join(map(_line, records)))
    appending.flush()


def write_records(folder: Path, records: Iterable[Record]) -> None:
    """The whole log anew."""
    with replacing(folder / RECORDS, sync=False) as temporary, open(temporary, "w", encoding="utf-8") as log:
        log.writelines(map(_line, records))


def _line(record: Record) -> str:
    """A record's line; the norm of a finite tensor may be beyond float32, and is then written as Infinity."""
    return json.dumps(record) + "\n"


def _read(log: Path) -> Mapping[str, Record]:
    """The records of a log by tensor; a line that a kill cut short is none."""
    found: dict[str, Record] = {}
    if log.exists():
        with opened(log) as lines:
            for line in lines:
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
