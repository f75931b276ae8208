"""What a run trains, evaluated on tasks of lm-eval: --evaluate TASKS of the training pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.evals.harness.running import HarnessSettings, evaluated, found_tasks, results_of, rows_of
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.options import Models, Names
from fusion_jax.paths import write_text
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.seeds import ON_TASKS, Measures
from fusion_jax.store.run_folder import REPORT

FILE = "tasks.jsonl"


@dataclass(frozen=True)
class EvaluatedSettings:
    """Tasks on which what a run trains is evaluated."""

    always_basic: ClassVar = ("evaluate",)

    evaluate: Names = ()
    """Tasks of lm-eval for the run's results at the end (docs/evaluate.md)."""
    evaluate_beside: Models = ()
    """Models that are evaluated beside them, for instance the one that the training began with."""
    harness: HarnessSettings = HarnessSettings()


def check_evaluation(s: EvaluatedSettings) -> None:
    """Refuse tasks that are not known before anything is computed.

    Raises:
      InputError: names the option.
    """
    if s.evaluate:
        found_tasks(s.evaluate, s.harness, option="evaluate")


def evaluate_results(desk: Desk, s: EvaluatedSettings) -> Measures:
    """Evaluate the run's exported models and those beside them, once; tell of it in report.md, and return what was
    measured."""
    if not s.evaluate:
        return {}
    told = desk.run.stage(FILE, lambda: _evaluations(desk, s), made_from=desk.results, leaf=True)
    measures: Measures = {}
    for one in told:
        measures.setdefault(one["model"] + ON_TASKS, {})[f"{one['task']} {one['metric']}"] = one["value"]
    desk.run.on_first(lambda: _append(desk, told))
    return measures


def _evaluations(desk: Desk, s: EvaluatedSettings) -> list[Record]:
    """A record for every metric of every task and model, the run's results last."""
    models = {model_name(name): name for name in s.evaluate_beside}
    models |= {f"{name}/": str(desk.run.file(name)) for name in desk.results}
    out = []
    for who, model in models.items():
        desk.run.log(f"{who}: evaluating on {', '.join(s.evaluate)}")
        with desk.run.phase("evaluating"):
            found = evaluated(model, s.evaluate, s.harness)
        out += [{"model": who, **one} for one in results_of(found)]
    return out


def _append(desk: Desk, told: Sequence[Record]) -> None:
    file, title = desk.run.file(REPORT), "## Tasks of lm-eval, with 95 % intervals"
    table = markdown_table([{"model": one["model"], **row} for one, row in zip(told, rows_of(told), strict=True)])
    write_text(file, f"{file.read_text(encoding='utf-8').rstrip()}\n\n{title}\n\n{table}\n")
    desk.run.log(table)
