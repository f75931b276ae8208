"""Evaluate a model on tasks of lm-eval, by their names or with data of your own.

    pip install -e '.[lm-eval]'
    python experiments/evaluate.py                                        # a miniature on the zoo's problems, a minute
    python experiments/evaluate.py --model FOLDER --tasks arc_easy hellaswag gsm8k --num-fewshot 5 --out results.json
    python experiments/evaluate.py --model FOLDER --tasks mine --include FOLDER-OF-YAML --chat True

Data: the tasks' own, which lm-eval fetches from the hub; the YAML tasks of --include can name local files; the zoo's
tasks (zoo_choices, zoo_answers, zoo_texts) are made here. docs/evaluate.md says how requests are computed.

Result: a table with 95 % intervals; with --out all that lm-eval tells, as JSON; with --samples each question, what was
asked and answered, as JSON lines. Hardware and time: all devices are used; the defaults take 22 s of CPU time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.errors import InputError
from fusion_jax.evals.harness.running import HarnessSettings, evaluated, results_of, rows_of, sample_records
from fusion_jax.files import write_json
from fusion_jax.hosts.agree import on_first
from fusion_jax.hosts.join import HostSettings, connect
from fusion_jax.jsonl import write_jsonl
from fusion_jax.markdown import markdown_table
from fusion_jax.options import File, ModelPath, Names
from fusion_jax.paths import as_path, check_bucket, is_remote
from fusion_jax.runs.checks import check_options, model_name
from fusion_jax.settings import run as run_experiment


@dataclass(frozen=True)
class Settings(HarnessSettings):
    """A model, tasks, and how they are asked."""

    basic: ClassVar = (
        "model", "tasks", "include", "num_fewshot", "limit", "chat", "batch_size", "out", "samples",
    )  # fmt: skip

    model: ModelPath = "zoo:target"
    """Model to evaluate: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    tasks: Names = ("zoo_choices", "zoo_answers", "zoo_texts")
    """Tasks, groups or tags of lm-eval, by name or pattern (mmlu_*)."""
    out: File = ""
    """JSON file for all that lm-eval tells of the results."""
    samples: File = ""
    """JSON lines for every question and its answer."""
    hosts: HostSettings = HostSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise InputError("there is none", field="tasks", cure="Name at least one task")


PRESETS = {"tiny": Settings(), "chat": Settings(tasks=("zoo_answers",), chat=True)}


def main(s: Settings) -> None:
    connect(s.hosts)
    check_options(s)
    for option, file in (("--out", s.out), ("--samples", s.samples)):
        check_free(option, file)
    found = evaluated(s.model, s.tasks, s)

    def tell() -> None:
        print(f"{model_name(s.model)}\n\n{markdown_table(rows_of(results_of(found)))}")
        if s.samples:
            write_jsonl(s.samples, list(sample_records(found)))
        if s.out:
            write_json(s.out, {name: value for name, value in found.items() if name != "samples"}, sort=False)

    on_first(tell)


def check_free(option: str, file: str) -> None:
    """Refuse a file that is there, or whose folder is not."""
    if not file:
        return
    check_bucket(file, option)
    path = as_path(file)
    if path.exists():
        raise InputError("exists already", file=file, field=option, cure="Choose another file")
    if not is_remote(path) and not path.parent.is_dir():
        raise InputError("its folder is not there", file=file, field=option, cure="Make the folder or choose another")


if __name__ == "__main__":
    run_experiment(Settings, main, presets=PRESETS, description=__doc__)
