"""Fusion losses against the official collators and trainers (tests/golden/fusion_loss.json), values and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.losses import fusion
from fusion_jax.losses.fusion import Target
from fusion_jax.losses.reductions import Mean
from fusion_jax.losses.sft import sft
from fusion_jax.ops.linear_logprobs import linear_logprobs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fusion_loss.json").read_text())
# The file states: CE losses 1e-5 relative, KL values 5e-4, gradients 1e-6.
LOSS = {"ce": 1e-5, "kl": 5e-4}
OFFICIAL: fusion.Rounding = "bfloat16"
COLUMNS = {
    "pivot": ("per_step_indices", "per_step_logits", "metric_ce"),
    "src0": ("per_step_aligned_indices_0", "per_step_aligned_logits_0", "metric_ce_aligned_0"),
    "src1": ("per_step_aligned_indices_1", "per_step_aligned_logits_1", "metric_ce_aligned_1"),
    "fused": ("fused_per_step_indices", "fused_per_step_logits", "fused_metric_ce"),
}


def padded(rows: list[list[list[float]]], length: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ragged [B][T][k] lists as [B,length,K] with the number of entries of each position."""
    width = max(len(entry) for row in rows for entry in row)
    out, counts = np.zeros((len(rows), length, width), dtype), np.zeros((len(rows), length), np.int32)
    for b, row in enumerate(rows):
        for t, entry in enumerate(row):
            out[b, t, : len(entry)], counts[b, t] = entry, len(entry)
    return out, counts


def teacher(batch: dict[str, Any], name: str, temperature: float) -> Target:
    ids, counts = padded([f[COLUMNS[name][0]] for f in batch["features"]], batch["max_length"], np.int32)
    logits, _ = padded([f[COLUMNS[name][1]] for f in batch["features"]], batch["max_length"], np.float32)
    return fusion.teacher_target(
        jnp.asarray(ids), jnp.asarray(logits), jnp.asarray(counts), temperature=temperature, rounding=OFFICIAL
    )


def labels_and_mask(batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Labels int[B,T] with -100, and the row mask: real positions (FuseLLM), or those with a label next (FuseChat)."""
    shape = len(batch["features"]), batch["max_length"]
    labels, mask = np.full(shape, -100), np.zeros(shape)
    for b, feature in enumerate(batch["features"]):
        labels[b, : len(feature["labels"])] = feature["labels"]
        mask[b, : len(feature["attention_mask"])] = feature["attention_mask"]
    if batch["kind"] == "fusechat":
        mask[:, :-1], mask[:, -1] = labels[:, 1:] != -100, 0
    return labels, mask


def fused(batch: dict[str, Any], s: dict[str, Any]) -> tuple[Target, jax.Array]:
    """The fused target and the teachers' scores [n,B]."""
    names = ["pivot", "src0", "src1"] if batch["kind"] == "fusellm" else ["pivot", "fused"]
    present = [n for n in names if s.get(n, True)]
    pivot = teacher(batch, "pivot", s["temperature"])
    targets = [fusion.filled(teacher(batch, n, s["temperature"]), pivot) for n in present]
    metrics = jnp.asarray([[f[COLUMNS[n][2]] for f in batch["features"]] for n in present])
    scores = fusion.rewards(metrics, rounding=OFFICIAL)
    ties = "first" if "pivot" in present else "last"
    return fusion.fused_targets(targets, scores, function=s["fusion"], rounding=OFFICIAL, ties=ties), scores


@jax.jit
def logprobs_of(logits: jax.Array, entries: jax.Array) -> jax.Array:
    """float32[...,K] of logits [...,V] as hidden states under an identity head."""
    return linear_logprobs(logits, jnp.eye(logits.shape[-1]), entries, chunk=5)[0]


def loss_of(batch: dict[str, Any], s: dict[str, Any], logits: jax.Array) -> jax.Array:
    target, scores = fused(batch, s)
    labels, mask = labels_and_mask(batch)
    next_labels = np.concatenate([labels[:, 1:], np.full((len(labels), 1), -100)], 1)
    entries = jnp.concatenate([target.ids, jnp.asarray(np.maximum(next_labels, 0))[..., None]], -1)
    logprobs = logprobs_of(logits, entries)
    language, _ = sft(logprobs[..., -1], jnp.asarray(next_labels != -100, jnp.float32))
    rows = fusion.divergence(logprobs[..., :-1], target, jnp.asarray(mask), kind=s["loss_type"], rounding=OFFICIAL)
    if s.get("schedule") == "soft":
        weight = fusion.soft_weights(scores[:, 0], s["fusion"], rounding=OFFICIAL)
    else:
        weight = fusion.scheduled_weights(
            s.get("step", 0), weight=s["lambda"], num_steps=s.get("max_steps", 1), schedule=s.get("schedule", "hard")
        )
    return fusion.fused_loss(language, rows, weight).total


@pytest.mark.parametrize("index", range(len(GOLDEN["cases"])))
def test_loss_and_gradient(index):
    case = GOLDEN["cases"][index]
    batch, s = GOLDEN["batches"][case["batch"]], case["settings"]
    logits = jnp.asarray(batch["logits"], jnp.float32)
    loss, gradient = jax.value_and_grad(lambda x: loss_of(batch, s, x))(logits)
    np.testing.assert_allclose(loss, case["loss"], rtol=LOSS[s["loss_type"]])
    np.testing.assert_allclose(jnp.abs(gradient).sum(-1), case["grad_sum_per_position"], atol=1e-6)
    if "grad" in case:
        np.testing.assert_allclose(gradient, case["grad"], atol=1e-6)


@pytest.mark.parametrize("index", [i for i, c in enumerate(GOLDEN["cases"]) if "target_dists_sparse" in c])
def test_targets(index):
    """What the official collator scatters into dense rows, entry by entry."""
    case = GOLDEN["cases"][index]
    batch = GOLDEN["batches"][case["batch"]]
    names = dict(
        zip(
            case["target_dists_sparse"], ["pivot", "src0", "src1"] if batch["kind"] == "fusellm" else ["pivot", "fused"]
        )
    )
    pivot = teacher(batch, "pivot", 1.0)
    for key, name in names.items():
        target = fusion.filled(teacher(batch, name, 1.0), pivot)
        for b, feature in enumerate(batch["features"]):
            for t in range(len(feature["input_ids"])):
                ours = {int(i): float(p) for i, p in zip(target.ids[b, t], target.probs[b, t]) if p > 0}
                theirs = {int(i): p for i, p in case["target_dists_sparse"][key][b][t] if p > 0}
                assert ours.keys() == theirs.keys()
                np.testing.assert_allclose([ours[i] for i in theirs], list(theirs.values()), rtol=1e-6)


def test_choices_by_token_and_ties():
    """One choice a token; equal scores go to the first teacher, or to the last when asked."""
    one, two = (Target(jnp.full((1, 2, 1), i, jnp.int32), jnp.ones((1, 2, 1))) for i in (1, 2))
    by_token = fusion.min_ce([one, two], jnp.asarray([[[0.4, 0.2]], [[0.3, 0.9]]]))
    np.testing.assert_array_equal(by_token.ids[0, :, 0], [1, 2])
    tied = jnp.asarray([[0.5], [0.5]])
    assert int(fusion.min_ce([one, two], tied).ids[0, 0, 0]) == 1
    assert int(fusion.min_ce([one, two], tied, ties="last").ids[0, 0, 0]) == 2


def test_an_average_joins_equal_ids_and_keeps_all_mass():
    one = Target(jnp.asarray([[[3, 5, 0]]]), jnp.asarray([[[0.7, 0.3, 0.0]]]))
    two = Target(jnp.asarray([[[5, 0]]]), jnp.asarray([[[0.6, 0.4]]]))
    out = fusion.avg_ce([one, two], jnp.zeros((2, 1)))
    dense = np.zeros(6)
    for i, p in zip(out.ids[0, 0], out.probs[0, 0]):
        if p > 0:
            assert dense[int(i)] == 0
            dense[int(i)] = p
    np.testing.assert_allclose(dense, [0.2, 0, 0, 0.35, 0, 0.45], atol=1e-6)


def test_a_score_that_is_not_finite_never_wins_and_weighs_nothing():
    one, two = (Target(jnp.full((1, 1, 1), i, jnp.int32), jnp.ones((1, 1, 1))) for i in (1, 2))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        scores = jnp.asarray([[bad], [0.1]])
        assert int(fusion.min_ce([one, two], scores).ids[0, 0, 0]) == 2
        np.testing.assert_array_equal(fusion.avg_ce([one, two], scores).probs[0, 0], [0.0, 1.0])


def test_unknown_options_and_no_teacher_are_refused_with_the_choices():
    target, scores = Target(jnp.zeros((1, 1, 1), jnp.int32), jnp.ones((1, 1, 1))), jnp.zeros((1, 1))
    logprobs, mask = jnp.zeros((1, 1, 1)), jnp.ones((1, 1))
    for call, told in [
        (lambda: fusion.sparse_kl(logprobs, target, mask, tail="x"), "tail must be 'none' or .*'bucket' or 'ignore', not 'x'"),
        (lambda: fusion.divergence(logprobs, target, mask, kind="x"), "kind must be 'ce' or 'kl'"),
        (lambda: fusion.min_ce([target], scores, ties="x"), "ties must be 'first' or 'last'"),
        (lambda: fusion.avg_ce([target], scores, rounding="x"), "rounding must be 'none' or 'bfloat16'"),
        (lambda: fusion.fused_targets([target], scores, function="x"), "function must be 'mince' or 'avgce'"),
        (lambda: fusion.fused_targets([], jnp.zeros((0, 1))), "there is no target"),
        (lambda: fusion.min_ce([target], jnp.zeros((2, 1))), "1 targets but scores of 2 teachers"),
    ]:
        with pytest.raises(ValueError, match=told):
            call()


@pytest.mark.parametrize("kind", ["ce", "kl"])
@pytest.mark.parametrize("tail", ["none", "bucket"])
def test_an_entry_without_mass_counts_nothing_whatever_the_student_gives_it(kind, tail):
    target = Target(jnp.asarray([[[3, 5]]]), jnp.asarray([[[0.5, 0.0]]]))

    def loss(logprob, other):
        logprobs = jnp.stack([logprob, other])[None, None]
        return fusion.divergence(logprobs, target, jnp.ones((1, 1)), kind=kind, tail=tail).total

    at = jnp.log(0.25), jnp.asarray(-jnp.inf)
    value, gradients = jax.value_and_grad(loss, (0, 1))(*at)
    expected, (slope, _) = jax.value_and_grad(loss, (0, 1))(at[0], jnp.asarray(-1.0))
    assert np.isfinite(value) and value == expected
    assert gradients == (slope, 0.0) and slope != 0


def test_kl_of_the_student_itself_is_zero_and_masked_rows_do_not_count():
    logprobs = jax.nn.log_softmax(jnp.asarray([[[1.0, 2.0, 0.5], [0.0, 0.0, 9.0]]]))
    target = Target(jnp.broadcast_to(jnp.arange(3), (1, 2, 3)), jnp.exp(logprobs))
    out = fusion.sparse_kl(logprobs, target, jnp.asarray([[1.0, 0.0]]))
    assert out == Mean(pytest.approx(0.0, abs=1e-6), 1.0)
