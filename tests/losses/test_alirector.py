"""Alirector's losses against the published trainer's numbers and PyTorch, values and gradients, through `linear_kl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from fusion_jax.losses import divide, sft
from fusion_jax.losses.alirector import Kind, aligned_rows, alignment_kl, distilled, target_rows
from fusion_jax.ops.linear_kl import linear_kl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "alirector.json").read_text())
KINDS: tuple[Kind, ...] = ("forward", "reverse", "both")
PUBLISHED = {"rtol": 0, "atol": 2e-6}  # written with six decimals
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def loss_of(student: Any, teachers: Any, labels: Any, kind: Kind, average: str, alpha: float, beta: float) -> Any:
    """(total, KL): logits [B,T,V] as states under the identity, labels [B,T] with -100."""
    eye = jnp.eye(student.shape[-1])
    mix = (alpha, 1.0 - alpha) if average == "logits" else None
    found = linear_kl(student, eye, jnp.maximum(labels, 0), tuple((z, eye) for z in teachers), mix=mix, chunk=2)
    kl = alignment_kl(found.forward, found.reverse, kind=kind, alpha=alpha)
    loss, metrics = distilled(found.logprobs, (labels != -100).astype(student.dtype), kl, beta=beta)
    return divide(loss), divide(metrics["loss/alignment"])


def torch_loss(student: Any, teachers: Any, labels: Any, kind: Kind, average: str, alpha: float, beta: float) -> Any:
    """As the published trainer computes it: of the active rows, `kl_div` summed over the vocabulary, and means."""
    kept = labels != -100
    p = torch.log_softmax(student[kept], -1)
    logits = [z[kept] for z in teachers]
    if average == "logits":
        logits, alpha = [alpha * logits[0] + (1 - alpha) * logits[1]], 1.0

    def apart(z: torch.Tensor) -> torch.Tensor:
        q = torch.log_softmax(z, -1)
        forward, reverse = (
            functional.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p))
        )
        return {"forward": forward, "reverse": reverse, "both": (forward + reverse) / 2}[kind]

    distances = [apart(z) for z in logits]
    kl = alpha * distances[0] + (1 - alpha) * distances[-1]
    return functional.nll_loss(p, labels[kept]) + beta * kl


@pytest.mark.parametrize("average", ["loss", "logits"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", GOLDEN["distillation"], ids=["0", "1"])
def test_golden_distillation_and_pytorchs_gradients(x64, case, kind, average):
    student, *teachers = (np.asarray(case[f"{n}_logits"]) for n in ("student", "align", "align_reverse"))
    labels = np.asarray(case["labels"])
    how = (kind, average, case["alpha"], case["beta"])
    run = jax.jit(jax.value_and_grad(lambda z: loss_of(z, teachers, jnp.asarray(labels), *how), has_aux=True))
    (total, kl), gradient = run(jnp.asarray(student))
    expected = case["losses"]["both" if kind == "both" else f"{kind}-kl"]
    np.testing.assert_allclose(kl, expected[f"average_{average}_kl"], **PUBLISHED)
    np.testing.assert_allclose(total, expected[f"average_{average}_total"], **PUBLISHED)
    z = torch.tensor(student, requires_grad=True)
    theirs = torch_loss(z, [torch.tensor(t) for t in teachers], torch.tensor(labels), *how)
    theirs.backward()
    np.testing.assert_allclose(total, theirs.item(), **EXACT)
    np.testing.assert_allclose(gradient, z.grad, **EXACT)


@pytest.mark.parametrize("case", GOLDEN["distillation"], ids=["0", "1"])
def test_golden_terms(x64, case):
    student, *teachers = (jnp.asarray(case[f"{n}_logits"]) for n in ("student", "align", "align_reverse"))
    labels, eye = jnp.asarray(case["labels"]), jnp.eye(student.shape[-1])
    others = tuple((z, eye) for z in teachers)
    found = jax.jit(lambda z: linear_kl(z, eye, jnp.maximum(labels, 0), others))(student)
    mask = (labels != -100).astype(student.dtype)
    assert int(mask.sum()) == case["active_positions"]
    np.testing.assert_allclose(divide(sft(found.logprobs, mask)[0]), case["lm_loss"], **PUBLISHED)
    for kind in KINDS:
        expected = case["losses"]["both" if kind == "both" else f"{kind}-kl"]
        for alpha, name in ((1.0, "align_kl"), (0.0, "align_reverse_kl")):
            kl = alignment_kl(found.forward, found.reverse, kind=kind, alpha=alpha)
            np.testing.assert_allclose((kl * mask).sum() / mask.sum(), expected[name], **PUBLISHED)


def scored(labels: Any) -> jax.Array:
    """bool[B,T-1], the rows of a decoder that predict a label."""
    return jnp.asarray(labels)[:, 1:] != -100


def causal_total(case: dict[str, Any], teacher_labels: list[int], **compat: bool) -> tuple[float, float]:
    """Total and KL of the golden case of a decoder-only model."""
    labels = jnp.asarray([case["student_labels"]])
    names = ("student", "align", "align_reverse")
    logits = [jnp.asarray([case[f"{n}_logits"]])[:, :-1] for n in names]
    theirs = scored([teacher_labels])
    aligned = aligned_rows(scored(labels), theirs, theirs, 3, **compat)
    rows = [aligned.student, aligned.source_first, aligned.draft_first]
    student, *teachers = (jnp.take_along_axis(z[:, : r.max() + 1], r[..., None], 1) for z, r in zip(logits, rows))
    eye, targets = jnp.eye(4), jnp.take_along_axis(labels[:, 1:], aligned.student, 1)
    found = jax.jit(lambda z: linear_kl(z, eye, targets, tuple((t, eye) for t in teachers)))(student)
    kl = alignment_kl(found.forward, found.reverse, kind="forward", alpha=case["alpha"])
    loss, metrics = distilled(
        found.logprobs, aligned.exists.astype(float), kl, beta=case["beta"], taught=aligned.taught
    )
    return float(divide(loss)), float(divide(metrics["loss/alignment"]))


@pytest.mark.parametrize(
    "compat", [{}, {"compat_reverse_mask": True, "compat_drop_batch": True}], ids=["own", "compat"]
)
def test_golden_causal_distillation(x64, compat):
    (case,) = GOLDEN["distillation_causal"]
    total, kl = causal_total(case, case["teacher_labels"], **compat)
    np.testing.assert_allclose([total, kl], [case["total"], case["kl"]], **PUBLISHED)
    cut = case["length_mismatch"]
    total, kl = causal_total(case, cut["teacher_labels"], **compat)
    np.testing.assert_allclose([total, kl], [cut["expected_total_official"], 0.0], **PUBLISHED)


def test_rows_of_models_whose_prompts_differ():
    """Each item by its own offset; one whose counts differ is not taught, with it all others where it is published."""
    student = scored([[-100, 1, 2, 3, 4], [-100, -100, -100, 5, 6]])
    source = scored([[-100, -100, 1, 2, 3, 4], [-100, -100, -100, -100, -100, 5]])
    draft = scored([[-100, -100, -100, 1, 2, 3, 4], [-100, -100, -100, -100, 5, 6, -100]])
    found = aligned_rows(student, source, draft, 4)
    np.testing.assert_array_equal(found.student[0], [0, 1, 2, 3])
    np.testing.assert_array_equal(found.source_first[0], [1, 2, 3, 4])
    np.testing.assert_array_equal(found.draft_first[0], [2, 3, 4, 5])
    np.testing.assert_array_equal(found.student[1, :2], [2, 3])
    np.testing.assert_array_equal(found.draft_first[1, :2], [3, 4])
    np.testing.assert_array_equal(found.exists, [[True] * 4, [True] * 2 + [False] * 2])
    np.testing.assert_array_equal(found.taught, [[True] * 4, [False] * 4])
    wrong = aligned_rows(student, source, draft, 4, compat_reverse_mask=True)
    np.testing.assert_array_equal(wrong.draft_first, found.source_first)
    dropped = aligned_rows(student, source, draft, 4, compat_drop_batch=True)
    assert not dropped.taught.any() and dropped.exists.sum() == 6


def test_more_targets_than_rows():
    places, exists = target_rows(jnp.asarray([[False, True]]), 4)
    np.testing.assert_array_equal(exists, [[True, False, False, False]])
    assert places.shape == (1, 4) and int(places[0, 0]) == 1


def test_means_of_micro_batches_and_of_tokens():
    """Two micro-batches of 1 and 3 tokens: their means averaged, or all tokens alike."""
    rng = np.random.default_rng(0)
    logprobs, kl = jnp.asarray(-rng.random(4), jnp.float32), jnp.asarray(rng.random(4), jnp.float32)
    each = -logprobs + 0.5 * kl
    parts = [slice(0, 1), slice(1, 4)]
    for normalise, expected in (("micro_batch", (each[0] + each[1:].mean()) / 2), ("token", each.mean())):
        losses = [distilled(logprobs[p], jnp.ones(4)[p], kl[p], beta=0.5, normalise=normalise)[0] for p in parts]
        total, weight = (sum(x) for x in zip(*losses))
        np.testing.assert_allclose(total / weight, expected, rtol=1e-6)


def test_no_weight_on_the_teachers_is_plain_cross_entropy():
    """To the last bit, gradients too."""
    rng = np.random.default_rng(0)
    logits, other = (jnp.asarray(rng.normal(size=(3, 4, 9)), jnp.float32) for _ in range(2))
    labels, eye, mask = jnp.asarray(rng.integers(0, 9, (3, 4))), jnp.eye(9), jnp.ones((3, 4))

    def plain(z: Any) -> Any:
        return divide(sft(linear_kl(z, eye, labels, ((other, eye),)).logprobs, mask)[0])

    def taught(z: Any) -> Any:
        found = linear_kl(z, eye, labels, ((other, eye),))
        return divide(distilled(found.logprobs, mask, alignment_kl(found.forward, found.reverse), beta=0.0)[0])

    for a, b in zip(*(jax.tree.leaves(jax.jit(jax.value_and_grad(f))(logits)) for f in (plain, taught)), strict=True):
        np.testing.assert_array_equal(a, b)
