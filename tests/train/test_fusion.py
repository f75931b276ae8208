"""Fused targets and the step that learns them, against dense arithmetic in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.align.distributions import RowRule
from fusion_jax.data.batches import Example, Targets, buckets_of, collate
from fusion_jax.errors import InputError
from fusion_jax.models.compute import Compute
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, logits
from fusion_jax.models.parameters import init_params
from fusion_jax.teachers.rows import FusionRow, FusionRows, Opinion, Opinions, fusion_rows, packed
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.targets import fuse, fused_examples
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.scores import score

pytestmark = pytest.mark.usefixtures("quick_compiler")

V, M, K = 40, 7, 3


def opinion(rng, metric, *, m=M, counts=None, rule=None):
    ids = np.stack([rng.permutation(V)[:K] for _ in range(m)]).astype(np.int32)
    logits = -np.sort(rng.exponential(1.0, (m, K)), -1)
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True) / 0.8)).astype(np.float32)  # .2 is elsewhere
    counts = np.full(m, K, np.int32) if counts is None else np.asarray(counts, np.int32)
    return Opinion(ids, logprobs, counts, np.zeros(m, np.uint8) if rule is None else np.asarray(rule, np.uint8), metric)


def row(rng, *opinions, m=M, scored=None):
    chosen = np.arange(m) > 0 if scored is None else np.asarray(scored, bool)
    return FusionRow(rng.integers(1, V, m).astype(np.int32), chosen, opinions, np.ones(m, np.int32))


def opinions_of(*views):
    return Opinions(np.asarray([v.metric for v in views]), views.__getitem__, "views")


def as_rows(rows):
    metrics = np.asarray([[o.metric for o in r.opinions] for r in rows])
    return FusionRows(np.asarray([len(r.ids) for r in rows]), metrics, rows.__getitem__, "rows")


def dense(view, t):
    """softmax over the entries that exist, as a vector over the vocabulary."""
    out = np.zeros(V)
    n = int(view.counts[t])
    weights = np.exp(view.logprobs[t, :n].astype(np.float64))
    out[view.ids[t, :n]] = weights / weights.sum()
    return out


def as_dense(targets, t):
    out = np.zeros(V)
    np.add.at(out, targets.ids[t], targets.probs[t])
    return out


def test_mince_takes_the_sample_s_best_teacher_and_fills_holes_with_the_pivot():
    rng = np.random.default_rng(0)
    pivot, good, bad = opinion(rng, 2.0), opinion(rng, 1.5, counts=[3, 0, 2, 3, 3, 0, 1]), opinion(rng, 3.0)
    (example,) = fuse([row(rng, pivot, bad, good)], FusionSettings(), mask="all")
    for t in range(M):
        expected = dense(pivot if good.counts[t] == 0 else good, t)
        np.testing.assert_allclose(as_dense(example.targets, t), expected, atol=1e-6)


def test_avgce_weighs_by_the_softmax_of_exp_minus_ce():
    rng = np.random.default_rng(1)
    views = [opinion(rng, metric) for metric in (2.0, 1.0, 0.5)]
    (example,) = fuse([row(rng, *views)], FusionSettings(function="avgce"), mask="all")
    rewards = np.exp(-np.asarray([v.metric for v in views]))
    weights = np.exp(rewards) / np.exp(rewards).sum()
    for t in range(M):
        expected = sum(w * dense(v, t) for w, v in zip(weights, views, strict=True))
        np.testing.assert_allclose(as_dense(example.targets, t), expected, atol=1e-6)


def test_a_choice_per_token_takes_who_expects_the_next_token_and_leaves_fallback_rows():
    rng = np.random.default_rng(2)
    pivot, source = opinion(rng, 1.0), opinion(rng, 9.0, rule=[0, 0, RowRule.FALLBACK, 0, 0, 0, 0])
    text = row(rng, pivot, source)
    for t, knows in enumerate([source, pivot, source]):  # the third is the source's fallback row
        others = [i for i in range(V) if i != text.ids[t + 1]]
        for view in (pivot, source):
            view.ids[t] = [text.ids[t + 1], *others[1:K]] if view is knows else others[:K]
    (example,) = fuse([text], FusionSettings(choice="token"), mask="all")
    for t, expected in ((0, source), (1, pivot), (2, pivot)):
        np.testing.assert_allclose(as_dense(example.targets, t), dense(expected, t), atol=1e-6)


@pytest.mark.parametrize("tail, whole", [("none", True), ("renormalise", True), ("bucket", False), ("ignore", False)])
def test_a_tail_keeps_a_teachers_probabilities_or_not(tail, whole):
    """Those of its entries, and all of a fallback row."""
    rng = np.random.default_rng(12)
    view = opinion(rng, 1.0, rule=[0, 0, RowRule.FALLBACK, 0, 0, 0, 0], counts=[3, 3, 1, 3, 3, 3, 3])
    view = view._replace(logprobs=np.where(np.arange(K) < 3, np.log(rng.dirichlet(np.ones(K + 2), M)[:, :K]), 0))
    (example,) = fuse([row(rng, opinion(rng, 2.0), view)], FusionSettings(tail=tail, pivot=False), mask="all")
    given = np.where(np.arange(K) < view.counts[:, None], np.exp(view.logprobs), 0).sum(-1)
    expected = np.where(view.rule == RowRule.FALLBACK, 1.0, np.ones(M) if whole else given)
    np.testing.assert_allclose(example.targets.probs.sum(-1), expected, rtol=1e-5)


def test_masks_compare_every_token_or_those_before_a_scored_one():
    rng = np.random.default_rng(3)
    text = row(rng, opinion(rng, 1.0), scored=[0, 0, 0, 1, 1, 0, 1])
    (all_tokens,) = fuse([text], FusionSettings(), mask="all")
    assert all_tokens.rows == ((*text.ids.tolist(), 0),) and all_tokens.scored == (3,)
    assert (all_tokens.targets.probs.sum(-1) > 0).tolist() == [True] * M
    (labels,) = fuse([text], FusionSettings(), mask="labels")
    assert labels.rows == (tuple(text.ids.tolist()),) and labels.scored == (3,) and labels.shared == 2
    assert (labels.targets.probs.sum(-1) > 0).tolist() == [False, False, True, True, False, True]


def test_packing_keeps_the_last_short_block_and_averages_the_metric_over_tokens():
    rng = np.random.default_rng(4)
    first, second = row(rng, opinion(rng, 1.0)), row(rng, opinion(rng, 4.0, m=4), m=4)
    rows = as_rows([first, second])
    blocks = packed(rows, 8, reset=False)
    assert [len(b.ids) for b in blocks] == [8, 3]
    np.testing.assert_array_equal(np.concatenate([b.ids for b in blocks]), np.concatenate([first.ids, second.ids]))
    np.testing.assert_array_equal(blocks[0].segments, [1] * 7 + [2])
    assert blocks[0].opinions[0].metric == pytest.approx((7 * 1.0 + 1 * 4.0) / 8)
    assert blocks[1].opinions[0].metric == 4.0 and not blocks[1].scored[0]
    np.testing.assert_array_equal(blocks[0].scored, [0, 1, 1, 1, 1, 1, 1, 1])  # the document before predicts the next
    blocks = packed(rows, 8, reset=True)
    np.testing.assert_array_equal(blocks[0].scored, [0, 1, 1, 1, 1, 1, 1, 0])
    reset, _ = fuse(blocks, FusionSettings(), mask="all", reset=True)
    assert reset.segments == (1,) * 7 + (2, 2)


def test_blocks_of_many_rows_hold_every_token_once():
    """Whatever the lengths: tokens in order, each with its own entries, metrics known before a block is made."""
    rng = np.random.default_rng(10)
    lengths = [1, 9, 2, 17, 3, 1, 1, 8, 5, 30, 2]
    rows = [row(rng, opinion(rng, rng.uniform(1, 3), m=m), opinion(rng, 2.0, m=m), m=m) for m in lengths]
    blocks = packed(as_rows(rows), 8, reset=False)
    made = list(blocks)
    assert [len(b.ids) for b in made] == blocks.sizes.tolist() == [8] * 9 + [7]
    for name in ("ids", "logprobs", "counts"):
        found = np.concatenate([getattr(b.opinions[0], name) for b in made])
        np.testing.assert_array_equal(found, np.concatenate([getattr(r.opinions[0], name) for r in rows]))
    np.testing.assert_array_equal(np.concatenate([b.ids for b in made]), np.concatenate([r.ids for r in rows]))
    np.testing.assert_allclose(blocks.metrics, [[o.metric for o in b.opinions] for b in made])
    per_token = np.repeat([r.opinions[0].metric for r in rows], lengths)
    np.testing.assert_allclose(blocks.metrics[2, 0], per_token[16:24].mean())


def test_examples_are_kept_and_made_once(tmp_path):
    rng = np.random.default_rng(11)
    rows = as_rows([row(rng, opinion(rng, 2.0, m=m), opinion(rng, 1.0, m=m), m=m) for m in rng.integers(2, 9, 300)])
    settings = FusionSettings(function="avgce")
    kept = fused_examples(tmp_path / "e", rows, settings, mask="labels")
    for example, expected in zip(kept, fuse(list(rows), settings, mask="labels"), strict=True):
        assert example == expected
        np.testing.assert_array_equal(example.groups, expected.groups)
        for ours, theirs in zip(example.targets, expected.targets, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    parts = {p.name: p.read_bytes() for p in (tmp_path / "e").glob("part-*")}
    assert len(parts) == 2
    (tmp_path / "e" / max(parts)).unlink()
    fused_examples(tmp_path / "e", rows, settings, mask="labels")
    assert {p.name: p.read_bytes() for p in (tmp_path / "e").glob("part-*")} == parts
    with pytest.raises(InputError, match="made with another function"):
        fused_examples(tmp_path / "e", rows, FusionSettings(), mask="labels")


def test_texts_that_a_teacher_cannot_score_are_left_out_and_counted():
    rng = np.random.default_rng(5)
    good, bad = opinion(rng, 1.0), opinion(rng, float("nan"))
    texts = [row(rng, good), row(rng, good)]
    rows, counts = fusion_rows(texts, [opinions_of(good, good), opinions_of(bad, good)])
    assert len(rows) == 1 and sum(counts.values()) == 1
    with pytest.raises(InputError, match="no text is left"):
        fusion_rows(texts[:1], [opinions_of(good), opinions_of(bad)])


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"pivot": False}, "pivot"),
        ({"tail": "bucket", "temperature": 2.0}, "tail"),
        ({"tail": "ignore", "rounding": "bfloat16"}, "tail"),
        ({"choice": "token", "function": "avgce"}, "choice"),
        ({"choice": "token", "schedule": "soft"}, "schedule"),
    ],
)
def test_settings_that_do_not_go_together(settings, field):
    rng = np.random.default_rng(6)
    with pytest.raises(InputError, match=f"field '{field}'"):
        fuse([row(rng, opinion(rng, 1.0))], FusionSettings(**settings), mask="all")


@pytest.fixture(scope="module")
def model():
    config = config_from_hf({
        "model_type": "llama", "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    })  # fmt: skip
    return Model(config, init_params(config, jax.random.key(0)))


def mean_of(model, objective, examples, step=0):
    """The objective's loss of these examples."""
    batch = collate(examples, buckets_of(examples))

    def loss(params):
        return objective.loss(score(params, model.config, batch, Compute()), Progress(jnp.asarray(step), 10))[0]

    return jax.jit(loss)(model.params)


@pytest.mark.parametrize("mask", ["all", "labels"])
@pytest.mark.parametrize("kind, tail", [("ce", "none"), ("kl", "none"), ("ce", "bucket"), ("kl", "bucket")])
def test_the_step_s_loss_is_the_dense_one(model, mask, kind, tail):
    """lambda * CE + (1 - lambda) * divergence from full softmaxes, two texts of unequal length, one prompt shared."""
    rng = np.random.default_rng(7)
    settings = FusionSettings(weight=0.7, kind=kind, tail=tail)
    rows = [
        row(rng, opinion(rng, 2.0), opinion(rng, 1.0, counts=[3, 0, 2, 3, 3, 2, 1]), scored=[0, 0, 1, 1, 1, 0, 1]),
        row(rng, opinion(rng, 1.0, m=5), opinion(rng, 2.0, m=5), m=5, scored=[0, 0, 0, 1, 1]),
    ]
    examples = fuse(rows, settings, mask=mask)
    objective = objectives.fusion(settings)
    found = mean_of(model, objective, examples, 3)
    language, fused = [], []
    for text, example in zip(rows, examples, strict=True):
        z = np.asarray(jax.jit(lambda ids: logits(model, ids))(text.ids[None]), np.float64)[0]
        logprobs = z - np.log(np.exp(z).sum(-1, keepdims=True))
        language += [-logprobs[t, text.ids[t + 1]] for t in range(len(text.ids) - 1) if text.scored[t + 1]]
        for t in range(len(text.ids)):
            if mask == "labels" and (t + 1 == len(text.ids) or not text.scored[t + 1]):
                continue
            ids, probs = example.targets.ids[t], example.targets.probs[t].astype(np.float64)
            listed = probs > 0
            value = -(probs[listed] * logprobs[t, ids[listed]]).sum()
            rest = 1 - probs.sum()
            if tail == "bucket":
                value -= rest * np.log(1 - np.exp(logprobs[t, ids[listed]]).sum())
            if kind == "kl":
                value += (probs[listed] * np.log(probs[listed])).sum()
                value += rest * np.log(rest) if tail == "bucket" and rest > 1e-9 else 0.0
            fused.append(value)
    expected = 0.7 * np.mean(language) + 0.3 * np.mean(fused)
    np.testing.assert_allclose(found.total / found.weight, expected, rtol=2e-5)


def test_what_only_fills_the_batch_counts_for_nothing(model):
    rng = np.random.default_rng(8)
    settings = FusionSettings()
    (example,) = fuse([row(rng, opinion(rng, 2.0))], settings, mask="all")
    filler = dataclasses.replace(example, rows=((5,) * 8,), weight=0.0)
    objective = objectives.fusion(settings)

    alone, filled = (mean_of(model, objective, given).total for given in ([example], [example, filler]))
    np.testing.assert_allclose(alone, filled, rtol=1e-6)


def test_the_soft_schedule_weighs_each_example_by_its_own_scores(model):
    """A batch is the mean of its examples taken one at a time, whatever their lengths."""
    rng = np.random.default_rng(9)
    settings = FusionSettings(schedule="soft")
    rows = [
        row(rng, opinion(rng, 2.0), opinion(rng, 0.5)),
        row(rng, opinion(rng, 1.0, m=4), opinion(rng, 2.0, m=4), m=4),
    ]
    examples = fuse(rows, settings, mask="all")
    np.testing.assert_allclose([e.targets.share for e in examples], [np.exp(-0.5), np.exp(-1.0)], rtol=1e-6)

    def loss(examples, settings):
        found = mean_of(model, objectives.fusion(settings), examples)
        return found.total / found.weight

    alone = [loss([e], FusionSettings(weight=1 - float(e.targets.share))) for e in examples]
    np.testing.assert_allclose(loss(examples, settings), np.mean(alone), rtol=1e-6)


def test_targets_stand_behind_a_shared_prompt():
    """Only the tokens behind the prompt reach the head; their targets move with them."""
    targets = Targets(np.arange(12).reshape(6, 2), np.asarray([[0.0, 0.0]] * 3 + [[0.5, 0.5]] * 3), np.float32(0))
    chosen = np.asarray([0, 0, 0, 0, 1, 1, 1], bool)
    example = Example(((1, 2, 3, 4, 5, 6, 7),), (4,), groups=chosen, targets=targets)
    batch = collate([example], buckets_of([example]))
    assert batch.prompt_lengths.tolist() == [3]
    assert batch.tokens[0, 0, :3].tolist() == [4, 5, 6] and batch.labels[0, 0, :3].tolist() == [5, 6, 7]
    assert batch.targets.ids[0, 0, :3].tolist() == [[6, 7], [8, 9], [10, 11]]
    assert batch.scored[0, 0].sum() == 3
