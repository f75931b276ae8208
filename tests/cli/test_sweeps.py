"""Sweeps: the shipped files, what a run leaves, failing and going on, devices, and what is refused before the first run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import wrpo
from experiments.sweeps import run as sweeps
from experiments.sweeps.files import EXPERIMENTS, read_sweep
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl
from fusion_jax.runs import desk
from tests.small import ROOT, attempt, fails, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

SHIPPED = sorted((EXPERIMENTS / "sweeps/wrpo").glob("*.yaml"))
PREFERENCE = EXPERIMENTS / "sweeps/preference.yaml"
SWEPT = Path(__file__).with_name("swept.py")
EACH = "kind: [plain, squared]"


def sweep_file(folder: Path, text: str = "", name: str = "two.yaml") -> Path:
    """Two cells of the stand-in experiment, which looks for its orders beside the file."""
    text = text or "grid: {step.rate: [0.1, 0.2]}\nmodels: [Z]\npublished: {'rate=0.2': thrice}"
    path = folder / name
    path.write_text(f"about: What it asks.\nexperiment: {SWEPT}\n{text}\noptions: {{orders: '{folder}'}}\n")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_sweep_is_accepted_by_its_experiment(path):
    """Each cell's options change the settings of the experiment, and cells differ."""
    sweep = read_sweep(path)
    assert sweep.experiment == "wrpo" and sweep.about and len(sweep.cells) > 1
    assert len({sweep.settings(cell, 1) for cell in sweep.cells}) == len(sweep.cells)
    assert {sweep.settings(cell, 7).seed for cell in sweep.cells} == {7}
    prefix = {"" if cell.settings.sft_share == 0 else "SFT-" for cell in sweep.cells}
    assert {f"{p}WRPO" for p in prefix} <= set(sweep.models) or {f"{p}DPO" for p in prefix} <= set(sweep.models)


def test_the_shipped_sweeps_are_the_papers_ablations():
    found = {path.stem: {cell.name: cell.settings for cell in read_sweep(path).cells} for path in SHIPPED}
    assert set(found) == {
        "alpha", "arms", "beta", "objective", "number_of_sources", "which_sources", "components", "off_policy", "mixture", "reward", "split",
    }  # fmt: skip
    tiny = wrpo.PRESETS["tiny"]
    assert len(found["alpha"]) == 10 and found["components"]["WRPO"].wrpo == tiny.wrpo
    hybrid = found["components"]["without target response"].wrpo
    assert (hybrid.alpha, hybrid.dynamic) == (1, False)
    assert found["objective"]["SimPO"].wrpo.loss == "wrpo_simpo" and found["objective"]["DPO"] == dataclasses.replace(
        tiny, continued=False
    )
    assert [len(s.sources) for s in found["number_of_sources"].values()] == [1, 2, 3]
    assert found["off_policy"]["off-policy"].pairs == "sources"
    assert found["which_sources"]["second best"].source_rank == 2


def test_cells_of_several_experiments_have_the_same_data_and_budget():
    sweep = read_sweep(PREFERENCE)
    assert [cell.experiment.script.stem for cell in sweep.cells] == ["wrpo"] * 3 + ["infifpo", "fuserl", "fusechat3"]
    same = (
        "target", "sources", "problems", "prompts_per_skill", "sample", "sft_share", "sft", "preference", "verifier",
        "held_out",
    )  # fmt: skip
    assert len({tuple(getattr(cell.settings, name) for name in same) for cell in sweep.cells}) == 1
    assert {sweep.settings(cell, 7).seed for cell in sweep.cells} == {7}


def test_a_cell_names_an_experiment_and_options_that_there_are(tmp_path):
    cells = "cells: {a: {}, b: {experiment: nothing}}"
    with pytest.raises(InputError, match="no experiment is called 'nothing'"):
        read_sweep(sweep_file(tmp_path, cells))
    with pytest.raises(InputError, match=r"wrpo\.beta': is no setting of the experiment"):
        read_sweep(sweep_file(tmp_path, "cells: {a: {wrpo.beta: 1}}"))


def test_reading_a_sweep_leaves_the_devices_to_its_runs():
    """A TPU or a GPU that the reading process had taken would be missing to the runs."""
    code = (
        f"from pathlib import Path; from experiments.sweeps.files import read_sweep; read_sweep(Path({str(SHIPPED[0])!r}))\n"
        "from jax._src import xla_bridge; raise SystemExit(xla_bridge.backends_are_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_sweep_goes_on_past_failures_and_is_finished_by_the_same_command(tmp_path, capsys):
    """2 cells with 2 seeds, two at once: one fails, one is killed; then these two alone are run, and resumed."""
    args = [str(sweep_file(tmp_path)), "--out", str(tmp_path / "out"), "--seeds", "2", "--at-once", "2"]
    args += ["--devices-each", "2"]
    (tmp_path / "0.1-42").write_text("fail")
    (tmp_path / "0.2-43").write_text("die")
    with pytest.raises(SystemExit) as stopped:
        attempt(sweeps, args)
    told = capsys.readouterr().out
    assert stopped.value.code == 1 and "two: 4 runs, 0 of them finished" in told
    report = (tmp_path / "out/report.md").read_text()
    assert "| rate=0.1 | 42 | field '--orders': the well is \\| dry. Wait for rain. |" in report
    assert "| rate=0.2 | 43 | killed by SIGKILL |" in report
    assert "| rate=0.1 | Z | 4.3000 | 1 |  |\n| rate=0.2 | Z | 8.4000 | 1 | thrice |" in report
    runs = {(rate, seed): tmp_path / f"out/rate={rate}/seed-{seed}" for rate in (0.1, 0.2) for seed in (42, 43)}
    seen = {key: json.loads((path / "seen.json").read_text()) for key, path in runs.items()}
    assert {s["CUDA_VISIBLE_DEVICES"] for s in seen.values()} == {"0,1", "2,3"}
    assert all(s["TPU_VISIBLE_CHIPS"] == s["CUDA_VISIBLE_DEVICES"] for s in seen.values())
    assert all(s["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1" and not s["resume"] for s in seen.values())

    (tmp_path / "0.1-42").unlink()
    (tmp_path / "0.2-43").unlink()
    made = {key: (path / "seen.json").stat().st_mtime_ns for key, path in runs.items()}
    attempt(sweeps, args)
    again = {key for key, path in runs.items() if (path / "seen.json").stat().st_mtime_ns != made[key]}
    assert again == {(0.1, 42), (0.2, 43)}
    assert all(json.loads((runs[key] / "seen.json").read_text())["resume"] for key in again)
    report = (tmp_path / "out/report.md").read_text()
    half = 12.7062047 * 0.1 / 2  # Student's t with one degree of freedom; two values that are 0.1 apart
    assert (
        f"| rate=0.1 | Z | 4.2500 ± {half:.4f} | 2 |  |\n| rate=0.2 | Z | 8.5000 ± {2 * half:.4f} | 2 | thrice |"
        in report
    )
    assert "did not finish" not in report and "What it asks." in report and "![sweep](sweep.png)" in report
    lines = read_jsonl(tmp_path / "out/results.jsonl")
    assert len(lines) == 8 and lines[0] == {
        "cell": "rate=0.1", "options": {"orders": str(tmp_path), "step.rate": 0.1}, "seed": 42, "model": "Z",
        "measures": {"value": pytest.approx(4.2)},
    }  # fmt: skip
    capsys.readouterr()
    attempt(sweeps, args)
    assert "two: 4 runs, 4 of them finished" in capsys.readouterr().out


def test_cells_by_name_several_files_and_a_model_that_no_run_has(tmp_path, capsys):
    """Each file has a folder; without a numeric grid there is a figure as well."""
    first = sweep_file(tmp_path, "cells: {a/b: {kind: squared}, c: {parts: [x, y]}}\nmodels: [Z, Y]", "first.yaml")
    second = sweep_file(tmp_path, "grid: {kind: [plain]}", "second.yaml")
    attempt(sweeps, [str(first), str(second), "--out", str(tmp_path / "out"), "--seeds", "1", "--seed", "5"])
    report = (tmp_path / "out/first/report.md").read_text()
    assert "| a/b | Z | 0.0500 | 1 |  |\n| c | Z | 0.5000 | 1 |  |" in report
    assert "No run has a model called Y." in report and (tmp_path / "out/first/sweep.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out/first/c/seed-5/config.json").read_text())["parts"] == ["x", "y"]
    other = (tmp_path / "out/second/report.md").read_text()
    assert other.index("| kind=plain | Z |") < other.index("| kind=plain | A | -1.0000 |")

    args = ["--out", str(tmp_path / "out/first"), "--seeds", "1", "--seed", "5"]
    fails(sweeps, [str(second), *args], capsys, "holds the sweep 'first'", "Choose an empty or new folder")
    fails(sweeps, [str(second), "--out", str(tmp_path)], capsys, f"{tmp_path}", "holds files but no sweep")
    sweep_file(tmp_path, "cells: {a/b: {kind: squared, step.rate: 0.3}, c: {}}", "first.yaml")
    told = "field 'step.rate': the run was started with 0.1, now it is 0.3"
    fails(sweeps, [str(first), *args], capsys, "a_b/seed-5/config.json", told)


def wait_for(path: Path) -> str:
    last = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < last, f"{path} did not come"
        time.sleep(0.05)
    return path.read_text()


def test_runs_end_with_the_sweep_or_are_not_started_twice(tmp_path):
    """SIGTERM ends the runs too; a run that outlives a killed sweep is left alone, then found finished."""
    path = sweep_file(tmp_path, "grid: {step.rate: [0.1]}")
    command = [sys.executable, str(ROOT / "experiments/sweeps/run.py"), str(path), "--seeds", "1", "--out"]
    (tmp_path / "0.1-42").write_text("wait")
    for number, name in ((signal.SIGTERM, "ended"), (signal.SIGKILL, "killed")):
        sweep = subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.DEVNULL)
        folder = tmp_path / name / "rate=0.1/seed-42"
        child = int(wait_for(folder / "pid"))
        sweep.send_signal(number)
        assert sweep.wait(30) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
        if number == signal.SIGTERM:
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)
    second = subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, text=True, check=False)
    assert second.returncode == 1 and "| rate=0.1 | 42 | another process runs it |" in second.stdout
    (tmp_path / "0.1-42").unlink()
    wait_for(folder / "finished.json")
    third = subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, text=True, check=False)
    assert third.returncode == 0 and "1 runs, 1 of them finished" in third.stdout


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("grid: [", "line 5: is broken YAML"),
        ("grid: {kind: [plain]}\ngrid: {}", "the key 'grid' stands twice"),
        ("grids: {kind: [plain]}", "field 'grids': is not a known key. Write 'grid'"),
        ("about: 1", "the key 'about' stands twice"),
        ("models: [Z]", "field 'grid': is missing, as are cells"),
        (f"grid: {{{EACH}}}\ncells: {{a: {{}}}}", "field 'grid': stands beside cells"),
        ("grid: {kinds: [plain]}", "field 'grid.kinds': is no setting of the experiment. Write 'kind'"),
        ("cells: {a: {step.rates: 1}}", "field 'cells.a.step.rates': is no setting of the experiment. Write 'step.rate'"),
        ("cells: {a: {step: {rate: 1}}}", "field 'cells.a.step': is no setting of the experiment"),
        ("cells: {a: {kind: {}}}", "field 'cells.a.kind': must be a value or a list of values, not {}"),
        ("grid: {seed: [1, 2]}", "field 'grid.seed': is given by the sweep. Leave it out"),
        ("grid: {kind: plain}", "field 'grid.kind': must be a list"),
        ("grid: {kind: [plain, cubed]}", "field 'grid.kind=cubed: --kind': 'cubed' is not one of its choices. Did you mean 'squared'? Choose one of plain, squared."),
        ("cells: {a: {step.rate: -1}}", "field 'cells.a: --step.rate': -1.0 is out of range. Give 0 or more."),
        ("cells: {a: {preset: large}}", "field 'cells.a: --preset': no preset is called 'large'"),
        (f"grid: {{kind: [plain], step.rate: &r {list(range(40))}, orders: *r, parts: *r}}", "asks for 64000 cells, 1000 at most"),
        ("grid: {kind: [--out]}", "would be read as an option"),
        ("grid: {kind: [plain, plain]}", "field 'grid': kind=plain stands twice"),
        ("cells: {a/b: {}, a b: {}}", "field 'cells': 'a b' would have the folder of 'a/b'"),
        (f"grid: {{{EACH}}}\npublished: {{kind=plan: 1}}", "field 'published.kind=plan': is no cell. Write 'kind=plain'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_sweep_file(tmp_path, capsys, text, wanted):
    """Each is told with its file and place before anything runs."""
    path = sweep_file(tmp_path, text)
    fails(sweeps, [str(path), "--out", str(tmp_path / "out")], capsys, f"error: {path}", wanted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "named, wanted",
    [
        ("", "is missing. Name one"), ("wrop", "no experiment is called 'wrop'. Write 'wrpo'"), ("[wrpo]", "must be a name"),
        ("merge", "merge.py has no --out, --resume and --seed"), ("none.py", "none.py. Give the path of an experiment"),
    ],
)  # fmt: skip
def test_an_experiment_that_cannot_be_swept(tmp_path, named, wanted):
    (tmp_path / "s.yaml").write_text(f"experiment: {named}\ncells: {{a: {{}}}}")
    with pytest.raises(InputError, match=f"field 'experiment': .*{re.escape(wanted)}"):
        read_sweep(tmp_path / "s.yaml")


def test_devices_of_each_run():
    """Parts of what the process itself may see; a GPU that is shared is shared evenly."""
    four = sweeps.Settings(at_once=2, devices_each=2)
    slots = sweeps.device_slots(four, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    assert [(s["CUDA_VISIBLE_DEVICES"], s["TPU_VISIBLE_CHIPS"]) for s in slots] == [("4,5", "0,1"), ("6,7", "2,3")]
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES lists 3 devices for 4"):
        sweeps.device_slots(four, {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    share = {"XLA_CLIENT_MEM_FRACTION": "0.45"}
    assert sweeps.device_slots(sweeps.Settings(at_once=2), {}) == [share, share]
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):  # the user's own share stands
        assert sweeps.device_slots(sweeps.Settings(at_once=2), {name: "0.3"}) == [{}, {}]
    assert sweeps.device_slots(sweeps.Settings(), {}) == [{}]
    with pytest.raises(InputError, match=r"3 is out of range\. Give 0 or one of 1, 2, 4, 8"):
        sweeps.Settings(devices_each=3)


@pytest.mark.parametrize(
    "code, text, wanted",
    [
        (2, "warning: a\nerror: file: is bad. Cure.\nlate words", "file: is bad. Cure."),
        (1, "Traceback\n  File x\nValueError: no\n------\nFor simplicity, frames are hidden.", "ValueError: no"),
        (3, "last words\n\n", "last words"), (3, "", "exit code 3"), (-9, "words", "killed by SIGKILL"),
        (75, "saved", "was told to stop; the same command resumes it"), (0, "done", "wrote no results.json"),
    ],
)  # fmt: skip
def test_why_a_run_failed(code, text, wanted):
    assert sweeps.reason(code, text) == wanted


def test_wrpo_learns_the_next_best_source_response_from_pairs_of_the_sources(tmp_path, monkeypatch):
    """And what it measured is in results.json, of one seed as of several."""
    model = small_folder(tmp_path / "model")
    responses = [
        {"prompt": f"p{i}", "source_model": source, "response": text, "reward": reward, "answer": "best"}
        for i in range(8) for source, text, reward in (("a", "best", 1.0), ("b", "second", 0.5), ("b", "worst", 0.0))
    ]  # fmt: skip
    test = [{"prompt": "What is 1 + 1?", "answer": "2", "skill": "add"}]
    args = ["--target", str(model), "--responses", str(write(tmp_path / "r.jsonl", responses))]
    args += ["--test-prompts", str(write(tmp_path / "t.jsonl", test)), "--sft-share", "0", "--held-out", "0.2"]
    args += ["--preference.batch-size", "4", "--preference.epochs", "1", "--eval-new-tokens", "2"]
    args += ["--source-rank", "2", "--pairs", "sources"]
    monkeypatch.setattr(desk, "optimise", lambda model, *_, **how: model)
    for seeds in (1, 2):
        attempt(wrpo, [*args, "--out", str(tmp_path / f"run{seeds}"), "--seeds", str(seeds)])
        results = json.loads((tmp_path / f"run{seeds}/results.json").read_text())
        assert list(results) == ["Target", "SFT-continued", "DPO", "WRPO"]
        zeros = [0.0] * seeds
        assert all(found == {"accuracy": zeros, "mean reward": zeros} for found in results.values())
    for quad in read_jsonl(tmp_path / "run1/quadruples.jsonl"):
        said = [message["content"] for message in [*quad["chosen"], *quad["rejected"]]]
        assert said == ["second", "best", "worst"]
    assert not (tmp_path / "run1/target_responses.jsonl").exists()
