"""A recipe carried out: folders in, a folder out, tensor by tensor, in memory for a few of the largest tensor.

The output is there whole or not at all; a merge that was killed goes on with the files that are missing. Numbers do not
depend on the order of tensors, on what was resumed or, but for the rounding of sums, on the devices (merge
specification, sections 1, 9, 10 and 12).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fusion_jax.copies import staged
from fusion_jax.display import brief
from fusion_jax.files import DiskError, write_json
from fusion_jax.merge.executor.config_files import merged_config, write_config
from fusion_jax.merge.executor.prepare import Prepared, prepare
from fusion_jax.merge.executor.records import append_records, merged_in, resume, write_records
from fusion_jax.merge.executor.report import write_report
from fusion_jax.merge.executor.shared_weights import weighed
from fusion_jax.merge.executor.tensors import Finished, Record, merged_tensors
from fusion_jax.merge.executor.unfinished import unfinished
from fusion_jax.merge.vocabulary.tokenizer_files import write_tokenizer
from fusion_jax.merge.vocabulary.tokens import Vocabulary
from fusion_jax.models.safetensors_io import PlannedTensor, Shard, plan_shards, write_index, write_shard
from fusion_jax.paths import as_path, is_remote, stamp
from fusion_jax.zoo import model_path

PROVENANCE = "merge.json"
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
      out: a folder that is not there yet. Until the end all lies in .NAME.unfinished beside it or, on a bucket, in it;
        after a kill or a fault of the disk the same call goes on there, and another recipe starts anew.
      mesh: every tensor is split over all of its devices.
      shard_bytes: of an output file: what a kill loses at most.
      locate: a model's name in the recipe -> its folder; zoo:NAME is known.
      progress: called with bytes of inputs used, bytes in all, the tensor's name.

    Raises:
      InputError: see `prepare` and `unfinished`; a weight that is not finite. Nothing is left behind but, after a fault
        of the disk, what can go on.
    """
    prepared = source if isinstance(source, Prepared) else prepare(source, locate)
    shards, configs = _planned_files(prepared, shard_bytes), merged_config(prepared)
    with unfinished(out, _identity(prepared, shard_bytes)) as (folder, lock):
        folders = {model: one.files for model, one in prepared.inputs.items()}
        with staged(folder) as here:
            write_tokenizer(prepared.recipe, folders, prepared.vocabulary or Vocabulary({}), here)
        missing, records = resume(folder, shards)
        _check_disk(folder, missing)
        prepared = weighed(prepared)
        by_name = {t.name: t for t in prepared.plan.tensors}
        wanted = [by_name[name] for shard in missing for name in merged_in(shard)]
        arrivals = _Arrivals(prepared, merged_tensors(prepared, wanted, mesh), records, progress)
        for shard in missing:
            # To wait for the disk would take as long again: the system writes it when it can.
            write_shard(folder, _filled(shard, arrivals.value), sync=False, before_end=lock.check)
            append_records(folder, shard, records)
        lock.check()
        write_index(folder, shards)
        ordered = [records[name] for name in by_name]
        write_records(folder, ordered)
        write_json(folder / PROVENANCE, _provenance(prepared, ordered), sync=False)
        write_report(prepared, ordered, folder)
        write_config(configs, folder)
    return MergeSummary(as_path(out), ordered, prepared)


class _Arrivals:
    """Merged tensors as they come, to be had by their names; the record of each is there before its value is.

    records: by tensor, of what is finished; grows.
    """

    def __init__(
        self, prepared: Prepared, merged: Iterator[Finished], records: dict[str, Record], progress: Progress
    ) -> None:
        self._merged, self._records, self._progress = merged, records, progress
        self._sizes = {t.name: prepared.held(t) for t in prepared.plan.tensors}
        self._done, self._total = sum(self._sizes[name] for name in records), sum(self._sizes.values())
        self._waiting: dict[str, np.ndarray] = {}

    def value(self, name: str) -> np.ndarray:
        """A tensor's value, once."""
        while name not in self._waiting:
            record, value = next(self._merged)
            self._waiting[record["name"]] = value
            self._records[record["name"]] = record
            self._done += self._sizes[record["name"]]
            self._progress(self._done, self._total, record["name"])
            del value
        return self._waiting.pop(name)


def _planned_files(prepared: Prepared, shard_bytes: int) -> list[Shard]:
    """The output's files; values of merged tensors are not there yet, see `_filled`."""

    def unmerged() -> np.ndarray:
        raise RuntimeError("a tensor is written before it is merged")

    planned = [PlannedTensor(t.name, prepared.dtype(t), t.shape, unmerged) for t in prepared.plan.tensors]
    return plan_shards([*planned, *(one.planned for one in prepared.copies)], shard_bytes=shard_bytes)


def _filled(shard: Shard, value: Callable[[str], np.ndarray]) -> Shard:
    """The file with merged tensors of these values."""
    tensors = (t if t.copied else replace(t, value=partial(value, t.name)) for t in shard.tensors)
    return replace(shard, tensors=tuple(tensors))


def _identity(prepared: Prepared, shard_bytes: int) -> dict[str, Any]:
    """What an unfinished output belongs to: the recipe, the input files by size and time, which rows tokens have in
    them, the size of output files."""
    files = sorted({file for one in prepared.inputs.values() for e in one.entries.values() for file in e.files})
    stats = [stamp(file) for file in files]
    tensors = [(t.name, t.shape, sorted(t.parameters.items())) for t in prepared.plan.tensors]
    made_of = hashlib.sha256(repr((prepared.recipe, stats, tensors, shard_bytes)).encode())
    for rows in (prepared.rows.own, prepared.rows.default, prepared.rows.filler) if prepared.rows else ():
        made_of.update(rows.tobytes())
    return {"format": 2, "made_of": made_of.hexdigest()}


def _check_disk(folder: Path, missing: Iterable[Shard]) -> None:
    if is_remote(folder):
        return
    needed, free = sum(t.nbytes for s in missing for t in s.tensors), shutil.disk_usage(folder).free
    if needed > free:
        problem = f"the disk is full: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise DiskError(problem, file=folder.parent, cure="Free space or choose another --out")


def _provenance(prepared: Prepared, records: Sequence[Record]) -> dict[str, Any]:
    """The recipe resolved, and a hash of all that was read of each model; each tensor's numbers are in its record.

    A folder does not tell its revision: one that the recipe asks for is told as what it is, a wish.
    """
    hashes: dict[str, list[str]] = {}
    for record in records:
        for place, content in record["xxh3_128"].items():
            model, _, tensor = place.rpartition("/")
            hashes.setdefault(model, []).append(f"/{tensor} {content}")
    inputs = {}
    for model, found in hashes.items():
        together = hashlib.sha256("\n".join(sorted(set(found))).encode()).hexdigest()
        inputs[model] = {"sha256 of tensor names and hashes": together}
        if model in prepared.recipe.revisions:
            inputs[model]["revision asked for, not checked"] = prepared.recipe.revisions[model]
    copied = {one.name: one.model for one in prepared.copies}
    recipe = json.loads(json.dumps(asdict(prepared.recipe), default=str))
    return {"recipe": recipe, "inputs": inputs} | ({"copied": copied} if copied else {})
