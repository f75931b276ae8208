"""The merge sweep on a FuseChat run of small models: what it merges, reports, resumes and refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from experiments.sweeps import merge as sweep
from fusion_jax.models.folder import save
from tests.small import attempt, fails, pairs, small_model, write

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of one seed: two targets beside a pivot, all random."""
    model, folder = small_model(), tmp_path / "run"
    for i, name in enumerate(("pivot", "targets/with-a", "targets/with-b")):
        params = jax.tree.map(lambda x, i=i: x * (1 + 0.05 * i), model.params)
        save(dataclasses.replace(model, params=params), folder / name)
    (folder / "config.json").write_text(json.dumps({"pivot": str(folder / "pivot"), "seed": 5}))
    (folder / "finished.json").write_text("{}")
    return folder


def test_every_value_is_merged_measured_and_reported(run, tmp_path):
    prompts = write(tmp_path / "test.jsonl", [{"prompt": p["prompt"], "answer": p["chosen"]} for p in pairs(4)])
    args = [
        "--runs", str(run), "--out", str(tmp_path / "out"), "--methods", "karcher", "task_arithmetic", "--eval-new-tokens", "2",
        "--test-prompts", str(prompts),
    ]  # fmt: skip
    attempt(sweep, args)
    place = tmp_path / "out/run-0"
    labels = ["karcher-of-2", *(f"task_arithmetic-of-2-weight={w}" for w in ("0.1", "0.3", "0.5", "1"))]
    assert {p.name for p in (place / "merged").iterdir()} == set(labels)
    recipe = json.loads((place / f"merged/{labels[-1]}/merge.json").read_text())["recipe"]
    assert (recipe["seed"], recipe["base"]) == (5, str(run / "pivot"))
    assert json.loads((place / "merged/karcher-of-2/merge.json").read_text())["recipe"]["base"] is None
    report = (tmp_path / "out/report.md").read_text()
    assert all(f"| {label.replace('-', ' ')} |" in report for label in labels) and "| with-a |" in report
    (tmp_path / "out/finished.json").unlink()
    made = (place / "merged/karcher-of-2/merge.json").stat().st_mtime_ns
    attempt(sweep, [*args, "--resume", "True"])
    assert (place / "merged/karcher-of-2/merge.json").stat().st_mtime_ns == made
    assert untimed((tmp_path / "out/report.md").read_text()) == untimed(report)


def untimed(report: str) -> list[str]:
    """Without the two lines of time that grow with every start, and do where nothing is made."""
    return [line for line in report.splitlines() if not line.startswith(("| between the stages |", "| together |"))]


@pytest.mark.parametrize("gone", ["targets", "finished.json"])
def test_a_run_without_targets_or_end_is_refused_first(run, tmp_path, capsys, gone):
    (run / gone).rename(tmp_path / "gone")
    args = ["--runs", str(run), "--out", str(tmp_path / "out")]
    fails(sweep, args, capsys, f"{run}, field '--runs': is no finished FuseChat run", "experiments/fusechat.py")
    assert not (tmp_path / "out").exists()
