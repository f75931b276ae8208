"""What a run shows in TensorBoard and Weights & Biases, and what it says of its wall time."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import dpo
from fusion_jax.errors import InputError
from fusion_jax.jsonl import read_jsonl
from fusion_jax.runs.opening import open_run
from fusion_jax.store.compiling import Meter
from fusion_jax.store.run_folder import METRICS, RunFolder, append_metrics, truncate_metrics
from fusion_jax.store.times import TIMES, Clock, times
from fusion_jax.store.trackers import tracking
from fusion_jax.train import optimise
from tests.small import attempt, even_pairs, fails, small_folder, write

pytestmark = pytest.mark.usefixtures("quick_compiler")

CHECKPOINTS, STEPS = 3, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small_folder(folder / "model")
    write(folder / "pairs.jsonl", even_pairs(36))
    return folder


def options(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "--model", str(data / "model"), "--data", str(data / "pairs.jsonl"), "--out", str(out), "--held-out", "0.1",
        "--train.checkpoint-every", str(CHECKPOINTS), "--train.batch-size", "4", "--train.eval-every", "4",
        "--train.epochs", "1", "--train.remat", "none", "--train.log-every", "1", *more,
    ]  # fmt: skip


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, args: list[str]) -> None:
    """A run that ends before it has logged a step."""

    def append(run: RunFolder, record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise KeyboardInterrupt
        append_metrics(run, record)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(optimise, "append_metrics", append)
        attempt(dpo, args)


def test_tensorboard_shows_each_step_once_after_a_kill(data, tmp_path, monkeypatch):
    """What TensorBoard's own reader finds is what metrics.jsonl holds, and the times of the same steps; what was logged
    behind the last checkpoint is gone. Another tracker is no other run."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    out = tmp_path / "run"
    args = options(data, out, "--track", "tensorboard")
    interrupted(monkeypatch, 5, args)
    assert [line["step"] for line in read_jsonl(out / METRICS)][-1] == 4
    interrupted(monkeypatch, 7, [*args, "--resume", "True"])
    attempt(dpo, [*args, "--resume", "True"])
    shown = reader.EventAccumulator(str(out / "tensorboard"), size_guidance={reader.SCALARS: 0})
    shown.Reload()
    wanted: dict[str, dict[int, float]] = {}
    for record in read_jsonl(out / METRICS):
        for name, value in record.items():
            if name != "step":
                wanted.setdefault(name, {})[record["step"]] = value
    found = {name: [(event.step, event.value) for event in shown.Scalars(name)] for name in shown.Tags()["scalars"]}
    assert wanted.keys() <= found.keys() and "eval_loss" in wanted
    for name, values in wanted.items():
        assert [step for step, _ in found[name]] == sorted(values), name
        np.testing.assert_allclose([value for _, value in found[name]], list(values.values()), rtol=1e-6, err_msg=name)
    assert [step for step, _ in found["seconds/step"]] == list(range(STEPS))
    assert "track" not in json.loads((out / "config.json").read_text())


def test_wandb_goes_on_with_the_run_that_the_folder_names(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    args = options(data, tmp_path / "run", "--track", "wandb")
    interrupted(monkeypatch, 5, args)
    attempt(dpo, [*args, "--resume", "True"])
    name = (tmp_path / "run/wandb/run_id.txt").read_text()
    kept = list((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(kept) == 2 and all(folder.name.endswith(name) for folder in kept)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A stand-in for the package, which keeps what it is told."""
    before = sys.modules.pop("wandb", None)
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("stand_in")))
    yield importlib.import_module("wandb")
    sys.modules.pop("wandb")
    if before is not None:
        sys.modules["wandb"] = before


def test_wandb_is_told_each_metric_by_the_step_of_its_stage(data, tmp_path, monkeypatch, wandb):
    """Two starts of a run are one run of Weights & Biases, which hears of every line of metrics.jsonl and of its
    time."""
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    out = tmp_path / "run"
    args = options(data, out, "--track", "wandb")
    interrupted(monkeypatch, 5, args)
    attempt(dpo, [*args, "--resume", "True"])
    begun = [given for name, given in wandb.CALLS if name == "init"]
    settings = json.loads((out / "config.json").read_text())
    for given in begun:
        assert (given["project"], given["name"], given["dir"], given["resume"]) == ("fusion_jax", "run", out, "allow")
        assert settings.items() <= given["config"].items()
    assert len(begun) == 2 and {given["id"] for given in begun} == {(out / "wandb/run_id.txt").read_text()}
    assert [given for name, given in wandb.CALLS if name == "define_metric"] == 2 * [
        {"name": "*", "step_metric": "step"}
    ]
    assert [given["exit_code"] for name, given in wandb.CALLS if name == "finish"] == [1, 0]
    logged = [given["data"] for name, given in wandb.CALLS if name == "log"]
    assert all(record in logged for record in read_jsonl(out / METRICS))
    assert {line["step"] for line in logged if "seconds/step" in line} == set(range(STEPS))
    assert [file.name for file in (out / "wandb").iterdir()] == ["run_id.txt"]


@pytest.mark.parametrize("function", ["define_metric", "log", "finish"])
def test_a_tracker_that_fails_ends_no_training(data, tmp_path, wandb, monkeypatch, function):
    """It is told once in the log and hears nothing more; the run comes to its end."""
    monkeypatch.setitem(wandb.FAULTS, function, wandb.CommError("the socket is closed"))
    out = tmp_path / "run"
    attempt(dpo, options(data, out, "--track", "wandb"))
    assert (out / "finished.json").exists() and len(read_jsonl(out / METRICS)) >= STEPS
    log = (out / "log.txt").read_text()
    assert log.count("the run goes on (CommError: the socket is closed)") == log.count("wandb failed") == 1
    assert wandb.CALLS[-1][0] == function and [name for name, _ in wandb.CALLS].count(function) == 1


@pytest.mark.parametrize(
    ("kind", "said", "cure"),
    [
        ("UsageError", "No API key configured. Use `wandb login` to log in.", "wandb login"),
        ("AuthenticationError", "the key is not known", "wandb login"),
        ("CommError", "Run initialization has timed out", "Check the network"),
        ("UsageError", "run id holds a slash", "leave --track out"),
    ],
)
def test_what_keeps_wandb_from_beginning_is_told_as_it_is(tmp_path, wandb, monkeypatch, kind, said, cure):
    monkeypatch.setitem(wandb.FAULTS, "init", getattr(wandb, kind)(said))
    with pytest.raises(InputError) as caught, tracking("wandb", tmp_path, {}, print):
        pass
    assert said.rstrip(".") in caught.value.problem and cure in (caught.value.cure or "")
    assert ("wandb login" in (caught.value.cure or "")) == (cure == "wandb login")


def test_the_id_of_a_run_is_written_whole_or_not_at_all(tmp_path, wandb, monkeypatch):
    def fail(self: Path, *args: Any, **given: Any) -> int:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(Path, "write_text", fail)
        with tracking("wandb", tmp_path, {}, print):
            pass
    assert not (tmp_path / "wandb/run_id.txt").exists() and not wandb.CALLS


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_told_with_its_command(data, tmp_path, monkeypatch, capsys, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(dpo, options(data, tmp_path / "run", "--track", name), capsys, "--track", f"pip install {package}")
    assert not (tmp_path / "run").exists()


class Seen:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, stage: str, step: int) -> None:
        self.told.append((stage, step))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.told.append((stage, step, dict(values)))

    def close(self, code: int) -> None:
        self.told.append((code,))


def test_a_tracker_knows_stages_by_their_folders(tmp_path):
    seen = Seen()
    run = RunFolder(tmp_path, Console(quiet=True), tracker=seen)
    for folder, loss in ((run, 2.0), (run.sub("seed-1").sub("sft"), 1.0)):
        truncate_metrics(folder, 7)
        append_metrics(folder, {"step": 7, "loss": loss})
    with run.sub("dpo").timed("training") as clock:
        clock.took("data")
        clock.lap(step=3)
    assert seen.told[:4] == [(".", 7), (".", 7, {"loss": 2.0}), ("seed-1/sft", 7), ("seed-1/sft", 7, {"loss": 1.0})]
    stage, step, values = seen.told[4]
    assert (stage, step, [*values]) == ("dpo", 3, ["seconds/data"]) and len(seen.told) == 5


def test_a_run_goes_on_with_another_tracker(tmp_path):
    with open_run(tmp_path / "run", {"a": 1, "track": "none"}, resume=False) as run:
        run.file("made.txt").write_text("")
    for track in ("wandb", "none"):
        with open_run(tmp_path / "run", {"a": 1, "track": track}, resume=True) as run:
            assert run.file("made.txt").exists()


def test_each_line_of_metrics_has_its_time_and_the_report_a_table(data, tmp_path):
    """Without the evaluations, which belong to the line behind them."""
    jax.clear_caches()
    out = tmp_path / "run"
    attempt(dpo, options(data, out))
    lines = read_jsonl(out / TIMES)
    steps = [line["step"] for line in lines if "step" in line]
    assert (
        steps == [line["step"] for line in read_jsonl(out / METRICS) if "eval_loss" not in line] == list(range(STEPS))
    )
    training = [line for line in lines if line["stage"] == "training"]
    for line in training:
        parts = [value for name, value in line.items() if name.startswith("seconds/")]
        assert 0 <= sum(parts) <= line["seconds"] + 0.001 * len(parts)
    assert (
        "seconds/compilation" in training[0] and "seconds/eval" in training[4] and "seconds/checkpoint" in training[3]
    )
    assert all({"seconds/data", "seconds/step"} <= line.keys() for line in training[:-1])
    assert list(times(out)) == ["reference", "reference, validation", "training", "between the stages"]
    report = (out / "report.md").read_text()
    what = report[report.index("## What was run") :].split("\n## ")[0]
    assert re.search(r"### Where the time went\n\n.*\n\n\| stage \| seconds \| of which \|", what)
    assert re.search(r"\| training \| \d+ \| [^|]*(step|compilation|checkpoint) \d+ s", what) and re.search(
        r"\| together \| \d+ \|", what
    )
    assert re.search(
        r"steps 1 to 8, last loss \d\.\d+, \d+ s \([^)]*(step|compilation|checkpoint) \d+ s",
        (out / "log.txt").read_text(),
    )


def test_compilation_is_a_phase_of_its_own(tmp_path, monkeypatch):
    """Of the phase in which it happened, once, however JAX's reports lie inside one another."""
    now, lines, meter = [0.0], list[dict[str, Any]](), Meter()
    monkeypatch.setattr("fusion_jax.store.times.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fusion_jax.store.compiling.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("fusion_jax.store.times.compiling", lambda: meter)

    def reported(event: str, seconds: float, *, passes: float) -> None:
        now[0] += passes
        meter.heard(event, seconds, fun_name="step")

    outer = Clock("all", lines.append)
    inner = Clock("training", lines.append, outer)
    reported("/jax/core/compile/jaxpr_trace_duration", 1.0, passes=2)
    reported("/jax/core/compile/jaxpr_trace_duration", 4.0, passes=3)
    reported("/jax/core/compile/backend_compile_duration", 8.0, passes=8)
    reported("/jax/compilation_cache/cache_retrieval_time_sec", 1.0, passes=0)
    now[0] += 16
    inner.took("step")
    inner.lap()
    now[0] += 32
    outer.lap()
    assert lines == [
        {"stage": "training", "seconds": 29.0, "seconds/compilation": 12.0, "seconds/step": 17.0},
        {"stage": "all", "seconds": 32.0},
    ]


def test_what_jax_compiles_is_heard():
    lines = list[dict[str, Any]]()
    clock = Clock("training", lines.append)
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7))).block_until_ready()
    clock.took("step")
    clock.lap()
    assert 0 < lines[0]["seconds/compilation"] <= lines[0]["seconds"]


def test_a_clock_counts_every_second_once(monkeypatch):
    now, lines = [0.0], list[dict[str, Any]]()
    monkeypatch.setattr("fusion_jax.store.times.time.monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    outer = Clock("all", lines.append)
    passes(1)
    with outer.during("sampling"):
        passes(2)
        with outer.during("loading"):
            passes(4)
        passes(8)
    inner = Clock("training", lines.append, outer)
    passes(16)
    inner.took("step")
    inner.lap(step=0)
    passes(32)
    assert inner.in_words() == "48 s (step 16 s)"
    inner.lap()
    passes(64)
    outer.lap()
    assert lines == [
        {"stage": "training", "step": 0, "seconds": 16.0, "seconds/step": 16.0},
        {"stage": "training", "seconds": 32.0},
        {"stage": "all", "seconds": 79.0, "seconds/sampling": 10.0, "seconds/loading": 4.0},
    ]
