"""--evaluate TASKS of the training pages: what is evaluated, where its numbers stand, and what is refused before a run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from experiments import dpo, fusellm, kca, mktod, reward_model, seft, sft, wrpo
from fusion_jax.errors import InputError
from fusion_jax.evals.harness.running import HarnessSettings
from fusion_jax.jsonl import read_jsonl
from fusion_jax.runs import evaluating
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evaluating import EvaluatedSettings, check_evaluation, evaluate_results
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.provenance import Ran
from fusion_jax.runs.seeds import add_results, over_seeds
from fusion_jax.settings import parse
from fusion_jax.store.run_folder import RunFolder


def told(value: float) -> dict[str, Any]:
    """What lm-eval tells of one task."""
    return {
        "results": {"t": {"alias": "t", "acc,none": value, "acc_stderr,none": 0.1}}, "n-shot": {"t": 2},
        "n-samples": {"t": {"effective": 25}}, "versions": {"t": 1.0},
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, tuple[str, ...], int]]:
    """Models, tasks and limits that were evaluated; a model is as good as its folder's name is long."""
    seen = []

    def evaluated(model, names, how):
        seen.append((model, names, how.limit))
        return told(len(model.rpartition("/")[2]) / 100)

    monkeypatch.setattr(evaluating, "evaluated", evaluated)
    return seen


def desk_of(run: RunFolder, results=("model",)) -> Desk:
    """A desk whose run has exported models and written its report."""
    desk = Desk(run, "T", Ran("", EvaluatedSettings(), {}))
    for name in results:
        run.made_once(name, lambda folder: folder.mkdir(parents=True), made_from=[])
        desk.results.append(name)
    run.file("report.md").write_text("# T\n\ntext\n")
    return desk


def test_report_and_results(tmp_path, asked):
    s = EvaluatedSettings(("t",), ("zoo:target",), HarnessSettings(limit=7))
    run = open_run(tmp_path / "run", {}, resume=False)
    run.file("results.json").write_text('{"SFT": {"loss": [0.5]}}')
    measures = evaluate_results(desk_of(run), s)
    assert measures == {"target, on tasks": {"t acc": 0.1}, "model/, on tasks": {"t acc": 0.05}}
    assert asked == [("zoo:target", ("t",), 7), (str(run.file("model")), ("t",), 7)]
    report = run.file("report.md").read_text()
    assert report.startswith("# T\n\ntext\n\n## Tasks of lm-eval") and "| model/ | t | acc | 0.0500 | ± 0.1960 |" in report
    assert read_jsonl(run.file("tasks.jsonl"))[0] == {
        "model": "target", "task": "t", "metric": "acc", "value": 0.1, "stderr": 0.1, "filter": "none", "shots": 2,
        "version": 1.0, "questions": 25,
    }  # fmt: skip
    add_results(run, measures)
    stored = json.loads(run.file("results.json").read_text())
    assert stored["SFT"] == {"loss": [0.5]} and stored["model/, on tasks"] == {"t acc": [0.05]}

    run.file("report.md").write_text("# again\n")
    assert evaluate_results(desk_of(run), s) == measures and len(asked) == 2
    assert run.file("report.md").read_text().count("Tasks of lm-eval") == 1


def test_every_result_and_nothing_without_the_option(tmp_path, asked):
    desk = desk_of(open_run(tmp_path / "run", {}, resume=False), ("targets/a", "merged/ties"))
    assert evaluate_results(desk, EvaluatedSettings()) == {} and not asked
    assert list(evaluate_results(desk, EvaluatedSettings(("t",)))) == ["targets/a/, on tasks", "merged/ties/, on tasks"]


def test_seeds_compare_models_on_tasks_with_each_other_alone(tmp_path):
    run = open_run(tmp_path / "run", {}, resume=False)

    def one(seed, folder):
        shift = 0.01 * (seed % 2)
        return {
            "A": {"accuracy": 0.4 + shift}, "B": {"accuracy": 0.6}, "target, on tasks": {"t acc": 0.2},
            "model/, on tasks": {"t acc": 0.3 + shift},
        }  # fmt: skip

    over_seeds(run, "T", None, 1, 3, one)
    report = run.file("report.md").read_text()
    assert "B has accuracy 0.6000" in report
    assert "| B - A |" in report and "| model/, on tasks - target, on tasks |" in report
    assert "tasks - B" not in report and "A - model/" not in report


def test_what_is_refused(monkeypatch):
    check_evaluation(EvaluatedSettings())

    def found_tasks(names, how, option):
        raise InputError("there is no task", field=option)

    monkeypatch.setattr(evaluating, "found_tasks", found_tasks)
    with pytest.raises(InputError, match="field 'evaluate'"):
        check_evaluation(EvaluatedSettings(("none",)))


@pytest.mark.parametrize("page", [dpo, fusellm, kca, seft, sft, wrpo], ids=lambda page: page.__name__)
def test_pages_that_train_language_models_take_it(page):
    s = parse(page.PRESETS, ["--evaluate", "arc_easy", "gsm8k", "--harness.num-fewshot", "5"])
    assert s.evaluate == ("arc_easy", "gsm8k") and s.harness.num_fewshot == 5


@pytest.mark.parametrize("page", [reward_model, mktod], ids=lambda page: page.__name__)
def test_pages_that_train_others_do_not(page):
    with pytest.raises((InputError, SystemExit)):
        parse(page.PRESETS, ["--evaluate", "arc_easy"])
