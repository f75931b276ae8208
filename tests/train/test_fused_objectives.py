"""Objectives over several sources: the golden numbers through `Scores`, trl's ORPO, and means that no split changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax import losses
from fusion_jax.data.batches import Data, Example, buckets_of, collate
from fusion_jax.losses import Pair, divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import init_params
from fusion_jax.rewards.weights import advantages, source_weights
from fusion_jax.train import fused_objectives, objectives
from fusion_jax.train.batching import step_batch
from fusion_jax.train.fused_objectives import FuseRLSettings, InfifpoSettings
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.scores import Scores, score
from fusion_jax.train.state import Pace, init_state
from fusion_jax.train.step import make_train_step
from tests.conftest import golden_cases
from tests.small import changed
from tests.train.test_shared_prompt import PLAIN

CONFIG = changed(PLAIN, stack={"layers": 1})
GOLDEN = {case["name"]: case for kind in ("infifpo_logps", "fuserl") for case in golden_cases("infifpo", kind)}
CLOSE = {"rtol": 1e-9, "atol": 1e-10}  # as the golden file states for float64


def scores(sequence: Any, lengths: Any, reference: Any, values: Any) -> Scores:
    sums, counts, frozen, brought = (jnp.asarray(x, float) for x in (sequence, lengths, reference, values))
    nothing = jnp.zeros((*sums.shape, 1))
    return Scores(nothing, nothing, sums, counts, frozen, jnp.ones(len(sums)), values=brought)


@pytest.mark.parametrize(("name", "changes"), [
    ("default", {}), ("distance_to_current", {"distance_to": "current"}), ("average", {"fusion": "average"}),
    ("confidence", {"fusion": "confidence"}), ("no_clip_logp_distance", {"clip": False, "distance": "logp"}),
    ("ipo", {"loss": "ipo"}), ("wrpo_slots", {"loss": "wrpo", "dynamic": False}),
    ("sum_form", {"length_norm": False, "distance": "logp"}), ("label_smoothing", {}),
])  # fmt: skip
def test_infifpo_of_scores(name, changes):
    case = GOLDEN[name]
    given, outputs, setting = case["inputs"], case["outputs"], case["setting"]
    settings = InfifpoSettings(
        beta=setting["beta"], alpha=setting.get("alpha", 0.1), label_smoothing=setting["label_smoothing"], **changes
    )
    with jax.enable_x64(True):
        sources = jnp.asarray(given["source_sum_logps"], "float64")
        values = sources / jnp.asarray(given["source_counts"]) if setting["length_norm"] else sources
        row = scores(given["policy_sum_logps"], given["policy_counts"], given["initial_sum_logps"], values)
        mean, metrics = fused_objectives.infifpo(settings).loss(row, Progress(jnp.asarray(0), 1))
        np.testing.assert_allclose(divide(mean), outputs["loss"], **CLOSE)
        np.testing.assert_allclose(divide(metrics["rewards/accuracies"]), outputs["metrics"]["accuracy"], **CLOSE)
        shares = [
            [float(divide(metrics[f"selected_source/{i}/{side}"])) for i in range(sources.shape[-1])]
            for side in ("chosen", "rejected")
        ]
    if "selected_source" in outputs:
        chosen = np.asarray(outputs["selected_source"])
        by_hand = [[(chosen[:, at] == i).mean() for i in range(len(shares[0]))] for at in (-2, -1)]
        np.testing.assert_allclose(shares, by_hand, **CLOSE)


@pytest.mark.parametrize("name", ["fuse_po_dpo", "fuse_po_simpo", "fuse_po_rloo", "fuse_sft_top4"])
def test_fuserl_of_scores(name):
    case = GOLDEN[name]
    setting, given, outputs = case["setting"], case["inputs"], case["outputs"]
    rewards = np.asarray(given["rewards"])
    sums, frozen, counts = (np.asarray(given[n], float) for n in ("policy_sum_logps", "reference_sum_logps", "counts"))
    if setting["stage"] == "sft":
        at = np.asarray(outputs["selected_flat_index"])
        sums, frozen, counts = (np.take_along_axis(x.reshape(len(x), -1), at, 1) for x in (sums, frozen, counts))
        values, objective = np.asarray(outputs["weights"])[..., None], fused_objectives.fuse_sft(at.shape[1])
    else:
        shares = np.stack([source_weights(r, setting["temperature"]) for r in rewards])
        settings = FuseRLSettings(setting["objective"], beta=setting["beta"] or 1.0, gamma=setting["gamma"])
        objective = fused_objectives.fuse_po(settings, sums.shape[1], sums.shape[2])
        if setting["objective"] == "rloo":
            weights = np.broadcast_to(shares[..., None], sums.shape)
            values = np.stack([weights, advantages(rewards)], -1)
        else:
            at = np.stack([rewards.argmax(-1), rewards.argmin(-1)], -1)
            sums, frozen, counts = (np.take_along_axis(x, at, 2) for x in (sums, frozen, counts))
            values = np.broadcast_to(shares[..., None], at.shape)[..., None]
        sums, frozen, counts = (x.reshape(len(x), -1) for x in (sums, frozen, counts))
        values = values.reshape(*sums.shape, -1)
    assert len(objective.slots) == sums.shape[1]
    with jax.enable_x64(True):
        mean, _ = objective.loss(scores(sums, counts, frozen, values), Progress(jnp.asarray(0), 1))
        np.testing.assert_allclose(divide(mean), outputs["loss"], **CLOSE)


def test_a_prompt_without_any_source_left_counts_nothing():
    row = scores([[-1.0, -2.0, -3.0, -4.0]], np.ones((1, 4)), np.zeros((1, 4)), np.zeros((1, 4, 1)))
    mean, metrics = fused_objectives.fuse_po(FuseRLSettings(), 2).loss(row, Progress(jnp.asarray(0), 1))
    assert float(mean.total) == 0 and float(divide(metrics["effective_sources"])) == 0


def test_orpo_is_that_of_trl():
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    rng = np.random.default_rng(0)
    chosen, rejected = (-rng.exponential(1.5, 64).astype(np.float32) - 1e-3 for _ in range(2))
    stand_in = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    theirs, *rewards, _, _ = trainer.odds_ratio_loss(stand_in, torch.tensor(chosen), torch.tensor(rejected))
    lengths = Pair(*(jnp.asarray(rng.integers(1, 9, 64), jnp.float32) for _ in range(2)))
    policy = Pair(jnp.asarray(chosen) * lengths.chosen, jnp.asarray(rejected) * lengths.rejected)
    ours, metrics = losses.orpo(policy, lengths=lengths, beta=0.3)
    np.testing.assert_allclose(ours, -theirs.numpy(), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(metrics["rewards/chosen"], rewards[0].numpy(), rtol=2e-5, atol=2e-5)


def test_orpo_adds_the_cross_entropy_of_the_chosen_response():
    logprobs = jnp.asarray([[[-1.0, -2.0], [-3.0, -1.0]]])
    row = Scores(logprobs, jnp.ones((1, 2, 2)), logprobs.sum(-1), jnp.full((1, 2), 2.0), jnp.zeros((1, 2)), jnp.ones(1))
    mean, metrics = objectives.pair(PairSettings("orpo", beta=0.1)).loss(row, Progress(jnp.asarray(0), 1))
    odds, _ = losses.orpo(Pair(*row.sequence.T), lengths=Pair(*row.lengths.T), beta=0.1)
    np.testing.assert_allclose(divide(mean), 1.5 + odds[0], rtol=1e-6)
    assert not objectives.pair(PairSettings("orpo")).reference and float(divide(metrics["nll"])) == 1.5


def drafts() -> list[Example]:
    """Eight answers of a reviser: a label of two tokens and, in most, a revision of another length."""
    rng = np.random.default_rng(1)
    out = []
    for index, size in enumerate((0, 3, 12, 1, 0, 7, 2, 20)):
        row = tuple(rng.integers(1, 256, 5 + 2 + size).tolist())
        groups = np.asarray([0] * 5 + [fused_objectives.LABEL] * 2 + [fused_objectives.REVISION] * size, np.uint8)
        out.append(Example((row,), (5,), index, groups=groups))
    return out


@pytest.mark.usefixtures("quick_compiler")
def test_the_revisers_two_means_depend_on_no_split():
    """The loss and the weights after a step, for 1, 2 and 4 micro-batches, beside the two means computed by hand."""
    examples, objective = drafts(), fused_objectives.reviser(label_weight=0.5)
    optimizer = optax.sgd(1.0)  # whose step is the gradient
    step = make_train_step(CONFIG, objective, optimizer, Compute())
    params = init_params(CONFIG, jax.random.key(0))
    batch = collate(examples, buckets_of(examples))
    seen = jax.jit(lambda params: score(params, CONFIG, batch, Compute()))(params)
    means = [-float(seen.logprobs[seen.groups == g].mean()) for g in (1, 2)]
    found = []
    for micro in (1, 2, 4):
        state = init_state(init_params(CONFIG, jax.random.key(0)), optimizer, None)
        batch = step_batch(Data(examples), np.arange(8).reshape(micro, -1), buckets_of(examples), None)
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch), Pace(4, 1.0))
        np.testing.assert_allclose(metrics["loss"], 0.5 * means[0] + means[1], rtol=1e-5)
        np.testing.assert_allclose([metrics["nll/label"], metrics["nll/revision"]], means, rtol=1e-5)
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)


def test_rows_bring_their_values_to_the_loss():
    examples = [
        Example(((1, 2, 3), (1, 2, 4, 5)), (2, 2), i, values=((0.5 + i, 1.0), (0.25, float(i)))) for i in range(3)
    ]
    batch = collate(examples, buckets_of(examples))
    np.testing.assert_array_equal(batch.values, np.asarray([e.values for e in examples], np.float32))
    again = Data(examples).valued(np.full((3, 2, 1), 7.0))
    assert [e.values for e in again.examples] == [((7.0,), (7.0,))] * 3
    assert collate([Example(((1, 2),), (1,))], buckets_of(examples)).values is None
