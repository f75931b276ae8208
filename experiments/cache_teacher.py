"""Run a teacher over texts once and keep the k most probable entries of every position (FuseLLM section 2.1, stage 2).

    python experiments/cache_teacher.py --model TEACHER --texts texts.jsonl --out runs/teacher
    python experiments/cache_teacher.py --texts texts.txt                       # zoo:gemma-source on a text file

Several hosts that see one folder (docs/stores.md): the same command on each.

    python experiments/cache_teacher.py ... --hosts.count 4 --hosts.index 0     # 1, 2, 3 on the others
    python experiments/cache_teacher.py ... --hosts.coordinator auto            # TPU slice, Slurm: the cluster knows

A teacher that vLLM reads on a GPU (docs/stores.md): the prompts first, then a store of the answers to them.

    python experiments/cache_teacher.py --model TEACHER --texts texts.jsonl --prompts prompts.jsonl
    python experiments/cache_teacher.py --model TEACHER --texts texts.jsonl --answers answers.jsonl --out runs/teacher

Data: texts, JSON lines with "text", or a .txt or .md file, one text a line; or chats (docs/data.md).

Hardware: all devices of every host; the default takes seconds on a CPU. Result: a store (store.json and array_record
parts) for the same model, tokenizer and texts only, which fusions of texts and chats take with --source-stores and
`fusion_jax.teachers.store.TeacherStore` reads. Killed, the same command goes on at the missing parts, also on another
number of hosts. At the end the first host scores a sample of the rows again and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
from rich.console import Console
from rich.progress import Progress

from fusion_jax.data.records import OnBad
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import HostSettings, join
from fusion_jax.jsonl import write_jsonl
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import load
from fusion_jax.models.int8 import Weights, dtype_of
from fusion_jax.options import File, Folder, ModelPath, Models
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Teaching
from fusion_jax.runs.corpora import Template
from fusion_jax.runs.teacher_texts import Asked, TeacherTexts, read_chats, read_texts, store_table
from fusion_jax.settings import bounded
from fusion_jax.teachers.blocks import LogProbs
from fusion_jax.teachers.given import Given, prompts_of
from fusion_jax.teachers.reading import store_identity, teacher_rows
from fusion_jax.teachers.store import RowsOf, StoreIdentity, TeacherStore, verified, write_store
from fusion_jax.train.settings import TrainSettings, compute_to_read
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class Settings:
    """A teacher, texts, and what is kept of its distributions."""

    basic: ClassVar = (
        "texts", "chats", "model", "out", "k", "log_probs", "max_length", "batch_size", "part_size", "windows_for",
        "verify", "prompts", "answers", "mesh", "hosts.coordinator", "hosts.count", "hosts.index",
    )  # fmt: skip

    texts: File = ""
    """JSON lines with "text", or a .txt or .md file with one text a line."""
    chats: File = ""
    """Conversations in the place of texts, which the teacher and --windows-for read whole."""
    template: Template = "own"
    """Chats are read through each model's own template, or all through that of the first of --windows-for (pivot)."""
    on_bad: OnBad = "error"
    """What a broken chat does: stop the program, or be left out and counted."""
    model: ModelPath = "zoo:gemma-source"
    """The teacher: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    out: Folder = "runs/teacher"
    """Folder of the store; the same command goes on at its missing parts."""
    k: int = 10
    """Entries that are kept of every position."""
    log_probs: LogProbs = "float16"
    """How log-probs are kept: to the bit (float16), or in 8 bits, at a mean KL divergence below 1e-4 (docs/stores.md).
    """
    max_length: int = 2048
    """Tokens of a window, EOS included, at most what the model reads; longer texts are split into windows."""
    windows_for: Models = ()
    """Models whose tokenizers shall not need more than max_length tokens for a window either. Where the teacher is
    among them, windows are those of a fusion of these models in this order."""
    batch_size: int = 8
    """Texts at once, on a host with mesh local, on all hosts with global; more where the devices need it."""
    part_size: int = StoreIdentity.part_size
    """Texts of a file, which a kill loses and hosts share out; a store keeps the size that it was begun with."""
    verify: int = 16
    """Rows that are scored again and compared at the end; 0: none."""
    prompts: File = ""
    """Write the prompts for vLLM into this file, JSON lines, and nothing else."""
    answers: File = ""
    """vLLM's answers to the prompts, from which the store is made in the place of the model's weights."""
    mesh: Literal["local", "global"] = "local"
    """Each host holds the whole teacher (local), or all hosts hold it together (global)."""
    weights: Weights = "stored"
    """How the layers' matrices are held: as in the files (stored), or rounded to int8, half the bytes of bfloat16."""
    hosts: HostSettings = HostSettings()

    def __post_init__(self) -> None:
        bounded(self, "k", "batch_size", "part_size", least=1)
        bounded(self, "max_length", least=2)
        bounded(self, "verify", least=0)
        if self.prompts and self.answers:
            cure = "Write the prompts first, and the store when they are answered"
            raise InputError("does not go with --answers", field="prompts", cure=cure)


def main(s: Settings) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if bool(s.texts) == bool(s.chats):
        problem = "is given beside --chats" if s.texts else "is missing"
        raise InputError(problem, field="--texts", cure="Give a file of texts, or one of chats with --chats")
    together = s.mesh == "global"
    host = join(s.hosts, connected=together)
    compute = compute_to_read(TrainSettings(), jax.devices() if together else jax.local_devices())
    asked = Asked(s.model, s.windows_for, s.k, s.max_length)
    read = read_chats(s.chats, asked, console, s.template, s.on_bad) if s.chats else read_texts(s.texts, asked, console)
    if s.prompts:
        if host.first:
            write_jsonl(s.prompts, prompts_of(read.texts, read.bos))
            console.print(f"{len(read.texts)} prompts: {s.prompts}")
        return
    identity, rows = teacher_of(s, read, compute)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("  scoring", total=len(read.documents))
        there = write_store(
            s.out, identity, rows, lambda done: progress.update(task, completed=done),
            host=host, settings=s.hosts, together=together,
        )  # fmt: skip
    if not host.first and not together:
        return
    store = TeacherStore(s.out, identity, read.texts)
    worst = verified(store, rows, s.verify)
    if not host.first:
        return
    if there:
        console.print(f"{there} of {identity.parts} parts were there")
    console.print(store_table(store, read, again=f"{worst:.1e}" if s.verify else "not checked"))


def teacher_of(s: Settings, read: TeacherTexts, compute: Compute) -> tuple[StoreIdentity, RowsOf]:
    """The store's identity and what makes its rows: the model or the answers of vLLM."""
    rows: RowsOf
    if s.answers:
        given = Given(s.answers, read.texts, read.entries, s.k, read.bos)
        identity, rows = given.identity(read.tokenizer, read.documents), given.rows
    else:
        model = load(model_path(s.model), dtype=dtype_of(s.weights), mesh=compute.mesh)
        identity = store_identity(model, read.documents, s.k)
        rows = teacher_rows(model, read.texts, s.k, compute, batch_size=s.batch_size, bos=read.bos)
    return replace(identity, part_size=s.part_size, log_probs=s.log_probs), rows


def parts(s: Settings) -> list[Part]:
    """What the program computes."""
    if s.prompts or s.answers:
        return []
    return [Teaching("teacher", s.model, None, s.batch_size, s.max_length, s.k, named="--model", weights=s.weights)]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, description=__doc__)
