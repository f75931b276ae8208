"""A recipe carried out: folders in, a folder out, tensor by tensor, in memory for a few of the largest tensor.

The output is there whole or not at all; a merge that was killed goes on with the files that are missing. Numbers do not
depend on the order of tensors, on what was resumed or, but for the rounding of sums, on the devices (merge
specification, sections 1, 9, 10 and 12).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.files import replacing, write_json
from fusion_jax.merge.analysis import weighed
from fusion_jax.merge.config_files import write_config
from fusion_jax.merge.inputs import Prepared, prepare
from fusion_jax.merge.report import write_report
from fusion_jax.merge.tensors import Record, merged_tensors
from fusion_jax.merge.tokenizer_files import write_tokenizer
from fusion_jax.merge.unfinished import unfinished
from fusion_jax.merge.vocabulary import Vocabulary
from fusion_jax.models.safetensors_io import PlannedTensor, Shard, plan_shards, read_header, write_index, write_shard
from fusion_jax.zoo import model_path

RECORDS, PROVENANCE = "tensors.jsonl", "merge.json"
Progress = Callable[[int, int, str], None]


class MergeSummary(NamedTuple):
    """What a merge did: the output's folder, one record a tensor (what tensors.jsonl holds), the prepared recipe."""

    folder: Path
    records: list[Record]
    prepared: Prepared

    def __repr__(self) -> str:
        return brief(self)


def merge(
    source: str | os.PathLike[str] | Mapping[str, Any] | Prepared,
    out: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    shard_bytes: int = 2 * 10**9,
    locate: Callable[[str], Path] = model_path,
    progress: Progress = lambda done, total, name: None,
) -> MergeSummary:
    """Merge the models of a recipe into a Hugging Face folder, with report.md, tensors.jsonl and merge.json.

    Args:
      source: a YAML file in mergekit's form, an equal dict, or what `prepare` made of one.
      out: a folder that is not there yet. Until the end all lies in .NAME.unfinished beside it; after a kill or a fault
        of the disk the same call goes on there, and another recipe starts anew.
      mesh: every tensor is split over all of its devices.
      shard_bytes: of an output file: what a kill loses at most.
      locate: a model's name in the recipe -> its folder; zoo:NAME is known.
      progress: called with bytes of inputs used, bytes in all, the tensor's name.

    Raises:
      InputError: see `prepare` and `unfinished`; a weight that is not finite. Nothing is left behind but, after a fault
        of the disk, what can go on.
    """
    prepared = source if isinstance(source, Prepared) else prepare(source, locate)
    values: Iterator[np.ndarray]
    planned = [PlannedTensor(t.name, prepared.dtype(t), t.shape, lambda: next(values)) for t in prepared.plan.tensors]
    planned += [one.planned for one in prepared.copies]
    shards = plan_shards(planned, shard_bytes=shard_bytes)
    with unfinished(out, _identity(prepared, shard_bytes)) as place:
        write_config(prepared, place)
        folders = {model: one.folder for model, one in prepared.inputs.items()}
        write_tokenizer(prepared.recipe, folders, prepared.vocabulary or Vocabulary({}), place)
        missing, records = _resumed(place, shards)
        _check_room(place, missing)
        prepared = weighed(prepared)
        tensors = {t.name: t for t in prepared.plan.tensors}
        order = {name: i for i, name in enumerate(tensors)}
        wanted = [tensors[t.name] for shard in missing for t in shard.tensors if not t.copied]
        values = _recorded(merged_tensors(prepared, wanted, mesh), records, prepared, progress)
        _write_shards(place, missing, records)
        records.sort(key=lambda record: order[record["name"]])
        write_index(place, shards)
        _write_log(place, records)
        write_json(place / PROVENANCE, _provenance(prepared, records), sync=False)
        write_report(prepared, records, place)
    return MergeSummary(Path(out), records, prepared)


def _recorded(
    merged: Iterable[tuple[Record, np.ndarray]], records: list[Record], prepared: Prepared, progress: Progress
) -> Iterator[np.ndarray]:
    """The values; the record of each is there before its value goes on."""
    sizes = {t.name: prepared.held(t) for t in prepared.plan.tensors}
    done, total = sum(sizes[r["name"]] for r in records), sum(sizes.values())
    for record, value in merged:
        records.append(record)
        done += sizes[record["name"]]
        progress(done, total, record["name"])
        yield value


def _write_shards(place: Path, shards: Iterable[Shard], records: Sequence[Record]) -> None:
    """Each file, then its records. To wait for the disk would take as long again: the system writes it when it can."""
    for shard in shards:
        write_shard(place, shard, sync=False)
        with open(place / RECORDS, "a", encoding="utf-8") as log:
            merged = sum(not t.copied for t in shard.tensors)
            log.writelines(json.dumps(r) + "\n" for r in records[len(records) - merged :])


def _write_log(place: Path, records: Iterable[Record]) -> None:
    with replacing(place / RECORDS, sync=False) as temporary:
        temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def _resumed(place: Path, shards: Sequence[Shard]) -> tuple[list[Shard], list[Record]]:
    """The files that are still to be made, and the records of the others; the log then holds these alone.

    A file counts with all of its records only, which are written after it.
    """
    known = {record["name"]: record for record in _logged(place / RECORDS)}
    finished = [s for s in shards if all(t.copied or t.name in known for t in s.tensors) and _whole(place / s.file)]
    records = [known[t.name] for shard in finished for t in shard.tensors if not t.copied]
    _write_log(place, records)
    return [shard for shard in shards if shard not in finished], records


def _logged(log: Path) -> Iterator[Record]:
    """The records of a log; a line that a kill cut short is none."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _whole(file: Path) -> bool:
    """Whether an output file is there and as long as its header says."""
    if not file.exists():
        return False
    try:
        read_header(file)
    except InputError:
        return False
    return True


def _identity(prepared: Prepared, shard_bytes: int) -> dict[str, Any]:
    """What an unfinished output belongs to: the recipe, the input files by size and time, which rows tokens have in
    them, the size of output files."""
    files = sorted({e.file for one in prepared.inputs.values() for e in one.entries.values()})
    stats = [(os.fspath(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    tensors = [(t.name, t.shape, sorted(t.parameters.items())) for t in prepared.plan.tensors]
    made_of = hashlib.sha256(repr((prepared.recipe, stats, tensors, shard_bytes)).encode())
    for rows in (prepared.rows.own, prepared.rows.default, prepared.rows.filler) if prepared.rows else ():
        made_of.update(rows.tobytes())
    return {"format": 2, "made_of": made_of.hexdigest()}


def _check_room(place: Path, missing: Iterable[Shard]) -> None:
    needed, free = sum(t.nbytes for s in missing for t in s.tensors), shutil.disk_usage(place).free
    if needed > free:
        told = f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise OSError(errno.ENOSPC, told, os.fspath(place.parent))


def _provenance(prepared: Prepared, records: Iterable[Record]) -> dict[str, Any]:
    """The recipe resolved, and a hash of all that was read of each model; each tensor's numbers are in its record.

    A folder does not tell its revision: one that the recipe asks for is told as what it is, a wish.
    """
    hashes: dict[str, list[str]] = {}
    revisions = prepared.recipe.revisions
    for record in records:
        for place, content in record["xxh3_128"].items():
            model, _, tensor = place.rpartition("/")
            hashes.setdefault(model, []).append(f"/{tensor} {content}")
    inputs = {
        model: {
            "sha256 of tensor names and hashes": hashlib.sha256("\n".join(sorted(set(found))).encode()).hexdigest(),
        }
        | ({"revision asked for, not checked": revisions[model]} if model in revisions else {})
        for model, found in hashes.items()
    }  # fmt: skip
    copied = {one.name: one.model for one in prepared.copies}
    recipe = json.loads(json.dumps(asdict(prepared.recipe), default=str))
    return {"recipe": recipe, "inputs": inputs} | ({"copied": copied} if copied else {})
