"""MK-TOD on 32 turns: the generator learns them by heart, and then tells the retriever what helps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from fusion_jax.data.batches import Data
from fusion_jax.dialogue.inputs import Inputs
from fusion_jax.dialogue.systems import System
from fusion_jax.dialogue.turns import turns_of
from fusion_jax.evals.dialogue.entities import entity_list
from fusion_jax.evals.dialogue.recall import recall_at
from fusion_jax.evals.dialogue.scoring import score
from fusion_jax.jsonl import read_jsonl
from fusion_jax.runs.answering import answering
from fusion_jax.runs.dialogue_data import miniature_system
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train.mktod import MktodSettings, mktod
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import bookings
from fusion_jax.zoo.places import entity_values
from tests.train.test_mktod import COMPUTE, arrays_of, inputs_of


def trained(
    settings: MktodSettings, system: System, inputs: Inputs, turns, path, epochs: float, rate: float
) -> tuple[System, list]:
    """A joint training on all turns at once, and what it logged."""
    optimizer = OptimizerSettings(rate, "cosine", warmup_ratio=0.05, beta2=0.98)
    how = TrainSettings(
        optimizer, epochs=epochs, batch_size=len(turns), micro_batches=1, log_every=1, eval_every=10**6,
        checkpoint_every=10**6, remat="none",
    )  # fmt: skip
    path.mkdir()
    run = RunFolder(path, Console(quiet=True))
    joined, arrays = system.joined, arrays_of(inputs, settings)
    model = optimise(joined, Data(inputs.examples(turns)), mktod(settings, optimizer), how, run, arrays=arrays)
    return system.parted(model.params), read_jsonl(run.file("metrics.jsonl"))


@pytest.mark.slow
def test_32_turns_are_learnt_by_heart(tmp_path):
    town, system = bookings.bookings(0, (14, 1, 1), count=12), miniature_system(0, 32, 1, 8)
    inputs, settings = inputs_of(town, system, "large"), MktodSettings(top_k=3, refresh=1)
    turns = turns_of(town.train[:32], inputs.knowledge, scale="large").turns
    learnt, logged = trained(settings, system, inputs, turns, tmp_path / "run", 120, 5e-3)
    assert logged[-1]["loss/nll"] < 0.05
    joined = learnt.joined
    answers = answering(inputs, settings, joined.config, COMPUTE, 32).answers(joined.params, turns)
    entities = entity_list(entity_values(town.town.places), "camrest")
    assert score([one.text for one in answers], turns, entities, "camrest").f1.f1 == 100
    # The marginal likelihood alone, the generator stopped: what helps this generator comes to rank 1.
    fresh = System(learnt.generator, system.retriever)
    alone = replace(settings, alpha=0.0, stop_grad_theta=True, tau=0.2, top_k=6, negative=False)
    aligned, _ = trained(alone, fresh, inputs, turns, tmp_path / "alone", 40, 5e-3)
    shares = []
    for one in (fresh, aligned):
        reader = answering(inputs, alone, one.joined.config, COMPUTE, 32)
        found = reader.retrieved(one.joined.params, turns)
        shares.append(recall_at(turns, [row.entities for row in found], inputs.knowledge, 1).share)
    assert shares[1] > shares[0]
