"""A recipe carried out: folders in, a folder out, tensor by tensor, in memory for a few of the largest tensor.

An output file is there whole or not at all; a merge that was killed goes on at the first missing one. Numbers do not
depend on the order of tensors, on what was resumed or, but for the rounding of sums, on the devices (merge
specification, sections 1, 9, 10 and 12).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.files import read_json, write_json
from fusion_jax.merge.analysis import weighed
from fusion_jax.merge.config_files import write_config
from fusion_jax.merge.inputs import Prepared, prepare
from fusion_jax.merge.report import write_report
from fusion_jax.merge.tensors import Record, merged_tensors
from fusion_jax.merge.tokenizer_files import write_tokenizer
from fusion_jax.merge.vocabulary import Vocabulary
from fusion_jax.models.safetensors_io import PlannedTensor, Shard, plan_shards, read_header, write_index, write_shard
from fusion_jax.zoo import model_path

RECORDS, IDENTITY, PROVENANCE = "tensors.jsonl", "identity.json", "merge.json"
Progress = Callable[[int, int, str], None]


class MergeSummary(NamedTuple):
    """What a merge did: the output's folder, one record a tensor (what tensors.jsonl holds), the prepared recipe."""

    folder: Path
    records: list[Record]
    prepared: Prepared


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
      out: a folder that is not there yet. Until the end all lies in .NAME.unfinished beside it; after a kill the same
        call goes on there, and another recipe starts anew.
      mesh: every tensor is split over all of its devices.
      shard_bytes: of an output file: what a kill loses at most.
      locate: a model's name in the recipe -> its folder; zoo:NAME is known.
      progress: called with bytes of inputs used, bytes in all, the tensor's name.

    Raises:
      InputError: see `prepare`; a weight that is not finite; `out` exists; not enough room. Nothing is left behind.
    """
    prepared = source if isinstance(source, Prepared) else prepare(source, locate)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists already", file=out, field="--out", cure="Choose another folder")
    prepared = weighed(prepared)
    tensors = {t.name: t for t in prepared.plan.tensors}
    values: Iterator[np.ndarray]
    planned = (PlannedTensor(t.name, prepared.dtype(t), t.shape, lambda: next(values)) for t in tensors.values())
    shards = plan_shards(planned, shard_bytes=shard_bytes)
    with unfinished(out, _identity(prepared, shard_bytes)) as place:
        missing = [shard for shard in shards if not _whole(place / shard.file)]
        _check_room(place, missing)
        records = _kept(place / RECORDS, {t.name for s in shards if s not in missing for t in s.tensors})
        wanted = [tensors[t.name] for shard in missing for t in shard.tensors]
        values = _recorded(merged_tensors(prepared, wanted, mesh), records, place / RECORDS, prepared, progress)
        for shard in missing:
            write_shard(place, shard, sync=False)
        write_index(place, shards)
        write_config(prepared, place)
        folders = {model: one.folder for model, one in prepared.inputs.items()}
        write_tokenizer(prepared.recipe, folders, prepared.vocabulary or Vocabulary({}), place)
        write_json(place / PROVENANCE, _provenance(prepared, records))
        write_report(prepared, records, place)
    return MergeSummary(out, records, prepared)


def _recorded(
    merged: Iterable[tuple[Record, np.ndarray]], records: list[Record], log: Path, prepared: Prepared,
    progress: Progress,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The values; each record is kept before its value goes on."""
    sizes = {t.name: prepared.held(t) for t in prepared.plan.tensors}
    done, total = sum(sizes[r["name"]] for r in records), sum(sizes.values())
    with open(log, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(r) + "\n" for r in records)
        for record, value in merged:
            records.append(record)
            out.write(json.dumps(record) + "\n")
            out.flush()
            done += sizes[record["name"]]
            progress(done, total, record["name"])
            yield value


def _kept(log: Path, names: set[str]) -> list[Record]:
    """Records of tensors that are in finished files; a line that a kill cut short is of none."""
    found: list[Record] = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["name"] in names:
            found.append(record)
    return found


def _whole(file: Path) -> bool:
    """Whether an output file is there and as long as its header says: a loss of power may have cut it."""
    if not file.exists():
        return False
    try:
        read_header(file)
    except InputError:
        return False
    return True


def _identity(prepared: Prepared, shard_bytes: int) -> dict[str, Any]:
    """What an unfinished output belongs to: the recipe, the input files by size and time, the size of output files."""
    files = sorted({e.file for one in prepared.inputs.values() for e in one.entries.values()})
    stats = [(os.fspath(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    tensors = [(t.name, t.shape, sorted(t.parameters.items())) for t in prepared.plan.tensors]
    made_of = hashlib.sha256(repr((prepared.recipe, stats, tensors, shard_bytes)).encode()).hexdigest()
    return {"format": 1, "made_of": made_of}


@contextmanager
def unfinished(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes it at the end; it survives a kill, but no error.

    One that is there already goes on if it is of the same identity, else it is made anew.
    """
    place = out.with_name(f".{out.name}.unfinished")
    known = place / IDENTITY
    if not (known.exists() and read_json(known) == identity):
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    for torn in place.glob(".*.tmp"):
        torn.unlink()
    write_json(known, identity)
    try:
        yield place
        known.unlink()
        if out.exists():
            out.rmdir()
        os.replace(place, out)
    except Exception:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _check_room(place: Path, missing: Iterable[Shard]) -> None:
    needed, free = sum(t.nbytes for s in missing for t in s.tensors), shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free", file=place.parent, field="--out",
            cure="Choose another disk, or a smaller out_dtype",
        )  # fmt: skip


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
    return {"recipe": json.loads(json.dumps(asdict(prepared.recipe), default=str)), "inputs": inputs}
