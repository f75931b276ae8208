"""A SIGTERM, or a kill, at the moments around saving and evaluating costs nothing: what follows is bit for bit the run
that was left alone."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from fusion_jax.data.batches import Data, Example
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import HostSettings, connect
from fusion_jax.hosts.signals import PREEMPTED
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params
from fusion_jax.store import run_folder
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives, optimise
from fusion_jax.train.objective import Objective
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings

pytestmark = pytest.mark.usefixtures("quick_compiler")

SETTINGS = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-2), batch_size=2, micro_batches=1, log_every=1,
    eval_every=2, checkpoint_every=2, remat="none",
)  # fmt: skip
EXAMPLES = [Example(((1, 2 + i, 3 + i, 4 + 2 * i),), (1,), i) for i in range(10)]
LAST = 3  # of the steps from 0


def train(folder: Path, objective: Objective | None = None, settings: TrainSettings = SETTINGS) -> Any:
    """Four steps on one host, or the rest of them."""
    folder.mkdir(exist_ok=True)
    config = config_from_hf({
        "model_type": "llama", "vocab_size": 24, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": 16,
    })  # fmt: skip
    model = Model(config, init_params(config, jax.random.key(0)), None)
    run = RunFolder(folder, Console(quiet=True))
    return jax.device_get(
        optimise.optimise(
            model, Data(EXAMPLES[:8]), objective or objectives.sft(), settings, run, held=Data(EXAMPLES[8:])
        ).params
    )


def logged(folder: Path) -> list[tuple[int, bool]]:
    """Each line of metrics.jsonl: its step, and whether it is an evaluation."""
    return [(line["step"], "eval_loss" in line) for line in read_jsonl(folder / "metrics.jsonl")]


def saved(folder: Path) -> list[str]:
    return [path.name for path in (folder / "checkpoints").iterdir()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    params = train(folder)
    assert logged(folder) == [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]
    return folder, params


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """As a program has it that trains: SIGTERM ends it where no loop takes note of it."""
    before = signal.getsignal(signal.SIGTERM)
    connect(HostSettings())
    yield
    signal.signal(signal.SIGTERM, before)


def tell(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def when_logging(monkeypatch: pytest.MonkeyPatch, moment: tuple[int, bool], act: Callable[[], None]) -> None:
    """Act just before this line is logged."""

    def append(run: RunFolder, record: dict[str, Any]) -> None:
        if (record["step"], "eval_loss" in record) == moment:
            act()
        run_folder.append_metrics(run, record)

    monkeypatch.setattr(optimise, "append_metrics", append)


def goes_on(monkeypatch: pytest.MonkeyPatch, folder: Path, whole: tuple[Path, Any]) -> None:
    """Started again, the run ends as the whole one: metrics and weights."""
    monkeypatch.undo()
    params = train(folder)
    assert (folder / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (params, whole[1])), strict=True))


def test_sigterm_while_the_last_checkpoint_is_written(monkeypatch, tmp_path, whole):
    """Twice even; it ends the program when all is written."""
    manager, written = ocp.CheckpointManager, []
    wait = manager.wait_until_finished

    def waiting(self: Any) -> None:
        if self.latest_step() == LAST + 1:
            tell()
            tell()
        wait(self)
        written.append(saved(tmp_path))

    monkeypatch.setattr(manager, "wait_until_finished", waiting)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path)
    assert ended.value.code == PREEMPTED and written[-1] == [str(LAST + 1)]
    goes_on(monkeypatch, tmp_path, whole)


def test_sigterm_during_the_last_evaluation_is_not_forgotten(monkeypatch, tmp_path, whole):
    when_logging(monkeypatch, (LAST, True), tell)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path)
    assert ended.value.code == PREEMPTED
    assert saved(tmp_path) == [str(LAST + 1)] and logged(tmp_path) == logged(whole[0])
    goes_on(monkeypatch, tmp_path, whole)


@pytest.mark.parametrize("step", [1, LAST])
def test_sigterm_before_an_evaluation_saves_and_leaves_it_for_later(monkeypatch, tmp_path, whole, step):
    """It comes during the step, whose question has been asked."""
    when_logging(monkeypatch, (step, False), tell)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path)
    assert ended.value.code == PREEMPTED
    assert saved(tmp_path) == [str(step + 1)] and logged(tmp_path)[-1] == (step, False)
    goes_on(monkeypatch, tmp_path, whole)


@pytest.mark.parametrize("step", [1, LAST])
def test_a_kill_during_an_evaluation_costs_no_step(monkeypatch, tmp_path, whole, step):
    """Nothing of it was logged; it is made up for."""

    def kill() -> None:
        raise KeyboardInterrupt

    when_logging(monkeypatch, (step, True), kill)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert saved(tmp_path) == [str(step + 1)] and logged(tmp_path)[-1] == (step, False)
    goes_on(monkeypatch, tmp_path, whole)


def test_an_evaluation_that_is_there_is_not_made_again(monkeypatch, tmp_path, whole):
    """A kill in the step behind it."""

    def kill() -> None:
        raise KeyboardInterrupt

    when_logging(monkeypatch, (2, False), kill)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert logged(tmp_path)[-1] == (1, True)
    calls: list[tuple[int, bool]] = []
    monkeypatch.undo()
    when_logging(monkeypatch, (1, True), lambda: calls.append((1, True)))
    train(tmp_path)
    assert calls == [] and logged(tmp_path) == logged(whole[0])


def test_a_kernel_that_the_devices_lack_is_refused() -> None:
    with pytest.raises(InputError, match=r"attention.*devices here are cpu"):
        compute_for(TrainSettings(attention="splash"))


def test_runs_that_differ_in_steps_and_rates_share_their_programs(tmp_path):
    """A second run of twice as many steps at another rate traces nothing, and learns by its own schedule."""
    plain, traces = objectives.sft(), 0

    def loss(scores: Any, progress: Any) -> Any:
        nonlocal traces
        traces += 1
        return plain.loss(scores, progress)

    objective = dataclasses.replace(plain, loss=loss)
    train(tmp_path / "one", objective)
    assert traces
    traces = 0
    optimizer = OptimizerSettings(learning_rate=3e-3, schedule="linear", warmup_steps=2)
    train(tmp_path / "two", objective, dataclasses.replace(SETTINGS, optimizer=optimizer, epochs=2.0))
    assert not traces
    told = [line["lr"] for line in read_jsonl(tmp_path / "two/metrics.jsonl") if "lr" in line]
    assert told == pytest.approx([0, 1.5e-3, 3e-3, 2.5e-3, 2e-3, 1.5e-3, 1e-3, 5e-4], rel=1e-6)
    another = dataclasses.replace(SETTINGS, optimizer=dataclasses.replace(optimizer, beta1=0.5))
    train(tmp_path / "three", objective, another)
    assert traces
