"""Merge models of one architecture by a recipe in mergekit's YAML: every method of its, streamed, resumable, reported.

    python experiments/merge.py recipe.yml --out merged
    python experiments/merge.py recipe.yml --dry-run True       # each tensor's rule, memory and time; writes nothing

A recipe names the method, the models (Hugging Face folders, or zoo:NAME) and its parameters:

    merge_method: sce
    base_model: zoo:target
    models: [{model: runs/fusechat/targets/with-llama-source}, {model: runs/fusechat/targets/with-qwen-source}]
    parameters: {select_topk: 0.1}
    dtype: bfloat16          # of the output; math_dtype: bfloat16 computes in it, too, as published checkpoints were

Two defaults differ from mergekit's: arithmetic is in float32, and `sce` is FuseChat's own (all positions move, the
selection decides the coefficients; `sce_variant: mergekit` moves the selected ones alone).

Hardware: the memory of a few copies of the largest tensor of all models; with several devices each tensor is split over
them. Time: what reading and writing take, and for methods that select (ties, sce, della, breadcrumbs) some 0.1 to 0.5 s
a model and 16 million numbers on 2 CPU cores. Killed, the same command goes on in .NAME.unfinished beside --out or, on
a bucket, in --out itself, which is no model until its config.json is there.
Result: a Hugging Face folder with report.md, tensors.jsonl (every number of the report, resolved parameters, hashes of
what was read) and merge.json. All of it is written before it gets its name, but nothing waits for the disk: after a
loss of power, merge anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.merge.executor.estimate import estimate, rules
from fusion_jax.merge.executor.merging import merge
from fusion_jax.merge.executor.prepare import Prepared, prepare
from fusion_jax.merge.executor.report import REPORT
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.merge.recipes.resolve import idle_filters
from fusion_jax.options import File, Folder, Positional
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Merging, Part
from fusion_jax.settings import bounded
from fusion_jax.sharding import make_mesh


@dataclass(frozen=True)
class Settings:
    """A recipe and where its result goes."""

    recipe: Positional[File] = ""
    """A recipe in mergekit's YAML."""
    out: Folder = "runs/merged"
    """Folder of the merged model, which is made whole or not at all."""
    dry_run: bool = False
    """Print what would be done, its memory and its time; write nothing."""
    shard_gb: float = 2.0
    """Size of an output file: what a kill loses at most."""
    devices: int = -1
    """Devices over which every tensor is split; -1: all that there are."""

    def __post_init__(self) -> None:
        bounded(self, "shard_gb", above=0.0)
        bounded(self, "devices", least=-1)
        if self.devices == 0:
            raise InputError("are none", field="devices", cure="Give 1 or more, or -1 for all")


def main(s: Settings) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not s.recipe:
        raise InputError("is missing", field="recipe", cure="Give a YAML file: merge.py recipe.yml --out merged")
    prepared = prepare(s.recipe)
    for pattern in idle_filters(prepared.recipe, [t.name for t in prepared.plan.tensors]):
        console.print(f"note: the filter '{pattern}' takes no tensor")
    if s.dry_run:
        show_plan(prepared, console)
        return
    devices = jax.devices()
    if s.devices > len(devices):
        cure = f"Give {len(devices)} or less, or -1 for all"
        raise InputError(f"there are {len(devices)}, not {s.devices}", field="devices", cure=cure)
    devices = devices if s.devices == -1 else devices[: s.devices]
    mesh = make_mesh(fsdp=len(devices), devices=devices) if len(devices) > 1 else None
    started = time.monotonic()
    columns = (
        TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("merging", total=None)
        summary = merge(
            prepared, s.out, mesh=mesh, shard_bytes=int(s.shard_gb * 1e9),
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )  # fmt: skip
    console.print(
        f"{s.out}: {len(summary.records)} tensors by {summary.prepared.recipe.method}, "
        f"{time.monotonic() - started:.1f} s; {summary.folder / REPORT}"
    )


def show_plan(prepared: Prepared, console: Console) -> None:
    """Each tensor's rule; the bytes, memory and time that the merge would take."""
    for table in (rules(prepared), [estimate(prepared)]):
        console.print(markdown_table(table))


def parts(s: Settings) -> list[Part]:
    """What the program computes."""
    if not s.recipe:
        raise InputError("is missing", field="recipe", cure="Give a YAML file")
    recipe = read_recipe(s.recipe, METHODS)
    sources = recipe.slices[0].sources
    return [Merging(recipe.method, len(sources), recipe.base or sources[0].model)]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, description=__doc__)
