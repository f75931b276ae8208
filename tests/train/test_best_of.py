"""Of the last states the one that held-out examples like best is the result, also of a run that is resumed at its end."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from fusion_jax.data.batches import Data, Example
from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives, optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings

pytestmark = pytest.mark.usefixtures("quick_compiler")

SETTINGS = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=1e-2), batch_size=2, micro_batches=1, log_every=1, eval_every=1,
    checkpoint_every=1, best_of=3,
)  # fmt: skip
EXAMPLES = [Example(((1, 2 + i, 3 + i, 4 + 2 * i),), (1,), i) for i in range(10)]


def train(folder: Path, settings: TrainSettings) -> Any:
    folder.mkdir(exist_ok=True)
    config = config_from_hf({
        "model_type": "llama", "vocab_size": 24, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": 16,
    })  # fmt: skip
    model, run = Model(config, init_params(config, jax.random.key(0)), None), RunFolder(folder, Console(quiet=True))
    held = Data(EXAMPLES[8:])
    return jax.device_get(
        optimise.optimise(model, Data(EXAMPLES[:8]), objectives.sft(), settings, run, held=held).params
    )


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.mark.parametrize(("losses", "count", "every", "best"), [
    ([1.0, 2.0, 4.0, 3.0], 3, 1, 2), ([1.0, 2.0, 4.0, 3.0], 4, 1, 1), ([4.0, 3.0, 2.0, 2.0], 2, 1, 4),
    ([1.0, 2.0, 5.0, 3.0], 2, 2, 2),
])  # fmt: skip
def test_the_lowest_held_out_loss_of_the_last_states(monkeypatch, tmp_path, losses, count, every, best):
    seen = {}

    def evaluation(*given: Any) -> Any:
        def evaluate(state: Any) -> dict[str, float]:
            seen[int(state.step)] = jax.device_get(state.params)
            return {"eval_loss": losses[int(state.step) - 1]}

        return evaluate

    monkeypatch.setattr(optimise, "_evaluation", evaluation)
    settings = dataclasses.replace(SETTINGS, best_of=count, checkpoint_every=every)
    found = train(tmp_path / "run", settings)
    assert sorted(seen) == [1, 2, 3, 4] and same(found, seen[best])
    assert not any(same(found, params) for step, params in seen.items() if step != best)
    assert f"the result is the state after step {best}" in (tmp_path / "run" / "log.txt").read_text()
    assert same(train(tmp_path / "run", settings), seen[best])


def test_states_without_a_held_out_loss_cannot_be_compared():
    with pytest.raises(InputError, match="'checkpoint_every': is not a multiple of eval_every"):
        TrainSettings(best_of=2, checkpoint_every=100, eval_every=500)


def test_what_a_preemption_left_displaces_no_state_that_is_compared(monkeypatch, tmp_path):
    """Told to stop after step 3, between the states of steps 2 and 4: both are compared all the same."""
    losses = {2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0}
    monkeypatch.setattr(
        optimise, "_evaluation", lambda *given: lambda state: {"eval_loss": losses.get(int(state.step), 9.0)}
    )
    settings = dataclasses.replace(SETTINGS, best_of=3, checkpoint_every=2, eval_every=2, epochs=2.0)
    whole = train(tmp_path / "whole", settings)
    told = iter([False, False, False, False, True])
    original = optimise.preemption

    @contextmanager
    def stopping():
        with original():
            yield lambda: next(told, False)

    monkeypatch.setattr(optimise, "preemption", stopping)
    with pytest.raises(SystemExit):
        train(tmp_path / "told", settings)
    monkeypatch.setattr(optimise, "preemption", original)
    assert same(train(tmp_path / "told", settings), whole)
    assert "the result is the state after step 4" in (tmp_path / "told" / "log.txt").read_text()


def test_nothing_to_choose_by_is_refused(tmp_path):
    model = None
    with pytest.raises(InputError, match="'best_of': needs held-out records"):
        optimise.optimise(model, Data(EXAMPLES), objectives.sft(), SETTINGS, RunFolder(tmp_path, Console(quiet=True)))
