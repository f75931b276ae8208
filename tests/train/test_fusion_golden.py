"""The training path, from opinions to the objective, against the official losses (tests/golden/fusion_loss.json)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.batches import Buckets, collate
from fusion_jax.teachers.rows import FusionRow, Opinion
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.targets import fuse
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.scores import Scores
from tests.losses.test_fusion_golden import COLUMNS, GOLDEN, LOSS, labels_and_mask, logprobs_of, padded


def rows_of(batch, names):
    """A row for every feature, cut to its own tokens."""
    labels, _ = labels_and_mask(batch)
    out = []
    for b, feature in enumerate(batch["features"]):
        m = len(feature["input_ids"])
        opinions = []
        for ids_column, logits_column, metric in (COLUMNS[n] for n in names):
            ids, counts = padded([feature[ids_column]], m, np.int32)
            logits, _ = padded([feature[logits_column]], m, np.float32)
            opinions.append(Opinion(ids[0], logits[0], counts[0], np.zeros(m, np.uint8), feature[metric]))
        scored = labels[b, :m] != -100
        scored[0] = False
        out.append(FusionRow(np.asarray(feature["input_ids"], np.int32), scored, tuple(opinions), np.ones(m, np.int32)))
    return out


@pytest.mark.parametrize("index", range(len(GOLDEN["cases"])))
def test_the_training_path_gives_the_official_loss(index):
    case = GOLDEN["cases"][index]
    batch, s = GOLDEN["batches"][case["batch"]], case["settings"]
    sources = [n for n in (["src0", "src1"] if batch["kind"] == "fusellm" else ["fused"]) if s.get(n, True)]
    settings = FusionSettings(
        weight=s["lambda"], kind=s["loss_type"], schedule=s.get("schedule", "hard"), function=s["fusion"],
        pivot=s.get("pivot", True), temperature=s["temperature"], rounding="bfloat16",
    )  # fmt: skip
    rows = rows_of(batch, ["pivot", *sources])
    examples = fuse(rows, settings, mask="all" if batch["kind"] == "fusellm" else "labels")
    width = max(len(e.rows[0]) - 1 for e in examples)
    data = jax.tree.map(jnp.asarray, collate(examples, Buckets([0, width], [width])))
    logits = jnp.asarray(batch["logits"], jnp.float32)
    places = jnp.minimum(data.prompt_lengths[:, None] + jnp.arange(width), logits.shape[1] - 1)
    hidden = jnp.take_along_axis(logits, places[..., None], 1)[:, None]
    entries = jnp.concatenate([data.labels[..., None], data.targets.ids], -1)
    logprobs = logprobs_of(hidden, entries)
    mask = data.scored.astype(jnp.float32)
    kept = jnp.where(data.scored, logprobs[..., 0], 0.0)
    scores = Scores(
        kept, mask, kept.sum(-1), mask.sum(-1), data.reference, data.weights, data.targets, logprobs[..., 1:]
    )  # fmt: skip
    objective = objectives.fusion(settings)
    loss, metrics = objective.loss(scores, Progress(jnp.asarray(s.get("step", 0)), s.get("max_steps", 1)))
    np.testing.assert_allclose(loss.total / loss.weight, case["loss"], rtol=LOSS[s["loss_type"]])
    if settings.schedule != "soft":
        assert float(metrics["lambda"].total) == pytest.approx(
            settings.weight + (1 - settings.weight) * s.get("step", 0) / s.get("max_steps", 1)
            if settings.schedule == "hard_and_decay" else settings.weight
        )  # fmt: skip
