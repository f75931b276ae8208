"""Divergences between heads, values and gradients, against dense softmaxes in JAX and PyTorch, however the vocabulary is
cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from fusion_jax.ops.linear_kl import KEPT, Divergences, linear_kl
from fusion_jax.ops.linear_logprobs import linear_logprobs
from tests.ops.sharded_ops import largest
from tests.programs import finished
from tests.small import virtual_devices

ROWS, MIX, CAPS, NO_CAPS = (3, 5), (0.3, 0.7), (5.0, None), (None, None)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def inputs(vocab: int, dtype: Any = jnp.float64, rows: tuple[int, ...] = ROWS) -> tuple:
    """hidden, kernel, labels, teachers of widths 7, 12 and 4, and random weights of every result."""
    rng = np.random.default_rng(vocab)
    (student, *teachers) = [
        (jnp.asarray(rng.normal(size=(*rows, d)), dtype), jnp.asarray(rng.normal(size=(vocab, d)), dtype))
        for d in (7, 12, 4)
    ]
    labels = jnp.asarray(rng.integers(0, vocab, rows), jnp.int32)
    return (*student, labels, tuple(teachers), jnp.asarray(rng.normal(size=(5, *rows)), dtype))


def capped(logits: Any, cap: float | None, tanh: Any) -> Any:
    return logits if cap is None else cap * tanh(logits / cap)


def dense(
    hidden: Any, kernel: Any, labels: Any, teachers: Any, cap: Any = None, caps: Any = NO_CAPS, mix: Any = None
) -> Divergences:
    student = jax.nn.log_softmax(capped(hidden @ kernel.T, cap, jnp.tanh))
    logits = [capped(h @ k.T, c, jnp.tanh) for (h, k), c in zip(teachers, caps)]
    if mix is not None:
        logits = [sum(w * z for w, z in zip(mix, logits))]
    others = [jax.nn.log_softmax(z) for z in logits]
    forward = [(jnp.exp(q) * (q - student)).sum(-1) for q in others]
    reverse = [(jnp.exp(student) * (student - q)).sum(-1) for q in others]
    logprobs = jnp.take_along_axis(student, labels[..., None], -1)[..., 0]
    return Divergences(logprobs, jnp.stack(forward, -1), jnp.stack(reverse, -1))


def weighed(found: Divergences, weights: Any) -> Any:
    parts = [found.logprobs, *jnp.moveaxis(found.forward, -1, 0), *jnp.moveaxis(found.reverse, -1, 0)]
    return sum((w * part).sum() for w, part in zip(weights, parts))


def slopes(fn: Any, hidden: Any, kernel: Any, weights: Any) -> list[Any]:
    """Gradients by hidden states and head, and what they are gradients of."""

    def total(hidden: Any, kernel: Any) -> tuple[Any, Divergences]:
        found = fn(hidden, kernel)
        return weighed(found, weights), found

    return jax.tree.leaves(jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, kernel))


@pytest.mark.parametrize("dtype, tolerance", [("float64", EXACT), ("float32", {"rtol": 2e-5, "atol": 2e-5})])
def test_values_and_gradients_equal_pytorch(dtype, tolerance):
    """`functional.kl_div`, as the published trainer calls it."""
    with jax.enable_x64(dtype == "float64"):
        hidden, kernel, labels, teachers, weights = inputs(97, jnp.dtype(dtype))
        found = slopes(lambda h, k: linear_kl(h, k, labels, teachers, chunk=20), hidden, kernel, weights)
    x, w = (torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (hidden, kernel))
    student = torch.log_softmax(x @ w.T, -1)
    others = [
        torch.log_softmax(torch.tensor(np.asarray(h, np.float64) @ np.asarray(k, np.float64).T), -1)
        for h, k in teachers
    ]
    both = {"reduction": "none", "log_target": True}
    forward = [functional.kl_div(student, q, **both).sum(-1) for q in others]
    reverse = [functional.kl_div(q, student, **both).sum(-1) for q in others]
    logprobs = student.gather(-1, torch.tensor(np.asarray(labels)).long()[..., None])[..., 0]
    given = torch.tensor(np.asarray(weights, np.float64))
    sum((g * part).sum() for g, part in zip(given, [logprobs, *forward, *reverse])).backward()
    expected = [x.grad, w.grad, logprobs, torch.stack(forward, -1), torch.stack(reverse, -1)]
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e.detach().numpy(), **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sure", ["teacher", "student", "both"])
def test_a_distribution_that_is_certain(dtype, sure):
    """One logit of 0 among logits of -1e4, wherever it lies; the other side flat, or certain of the next entry."""
    vocab, rows = 13, jnp.arange(13)
    with jax.enable_x64(dtype == "float64"):
        certain = (1e4 * (jnp.eye(vocab) - 1.0)).astype(dtype)
        flat, turned = jnp.zeros((vocab, vocab), dtype), jnp.roll(certain, 1, 1)
        student, teacher = {"teacher": (flat, certain), "student": (certain, flat), "both": (certain, turned)}[sure]
        eye, weights = jnp.eye(vocab, dtype=dtype), jnp.ones((3, vocab), dtype)
        found = slopes(lambda h, k: linear_kl(h, k, rows, ((teacher, eye),), chunk=3), student, eye, weights)
        x = torch.tensor(np.asarray(student, np.float64), requires_grad=True)
        p, q = torch.log_softmax(x, -1), torch.log_softmax(torch.tensor(np.asarray(teacher, np.float64)), -1)
        forward, reverse = (q.exp() * (q - p)).sum(-1), (p.exp() * (p - q)).sum(-1)
        (p.diagonal().sum() + forward.sum() + reverse.sum()).backward()
        expected = [x.grad, p.diagonal(), forward[:, None], reverse[:, None]]
        tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype == "float32" else EXACT
        for a, e in zip([found[0], *found[2:]], expected, strict=True):
            np.testing.assert_allclose(a, e.detach().numpy(), **tolerance)


@pytest.mark.usefixtures("quick_compiler")  # from here on
@pytest.mark.parametrize(
    "vocab, chunk, shards, kept", [(1, 1, 1, KEPT), (11, 16, 2, 0), (64, 16, 1, 0), (97, 10, 1, KEPT), (97, 16, 2, 0)]
)
@pytest.mark.parametrize("mix", [None, MIX], ids=["each", "mixed"])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_values_and_gradients_equal_dense_softmaxes(x64, vocab, chunk, shards, kept, mix, cap):
    hidden, kernel, labels, teachers, weights = inputs(vocab)
    expected = slopes(lambda h, k: dense(h, k, labels, teachers, cap, CAPS, mix), hidden, kernel, weights)
    found = slopes(
        lambda h, k: linear_kl(
            h, k, labels, teachers, mix=mix, soft_cap=cap, teacher_caps=CAPS, vocab_shards=shards, chunk=chunk,
            kept=kept,
        ),
        hidden, kernel, weights,
    )  # fmt: skip
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, **EXACT)


def test_logprobs_are_those_of_the_head_alone(x64):
    hidden, kernel, labels, teachers, _ = inputs(64)
    alone, _ = linear_logprobs(hidden, kernel, labels)
    np.testing.assert_allclose(linear_kl(hidden, kernel, labels, teachers).logprobs, alone, **EXACT)


def test_a_mix_is_the_joined_head(x64):
    hidden, kernel, labels, teachers, _ = inputs(97)
    states = jnp.concatenate([w * h for w, (h, _) in zip(MIX, teachers)], -1)
    joined = ((states, jnp.concatenate([k for _, k in teachers], -1)),)
    mixed = linear_kl(hidden, kernel, labels, teachers, mix=MIX, chunk=20)
    for a, e in zip(mixed, linear_kl(hidden, kernel, labels, joined, chunk=20), strict=True):
        np.testing.assert_allclose(a, e, **EXACT)


def test_a_student_who_is_the_teacher_is_at_distance_0():
    hidden, kernel, labels, _, weights = inputs(97, jnp.float32)
    same, weights = ((hidden, kernel),), weights.at[0].set(0.0)  # of the divergences alone
    found = slopes(lambda h, k: linear_kl(h, k, labels, same, chunk=20), hidden, kernel, weights)
    gradients, (_, forward, reverse) = found[:2], found[2:]
    np.testing.assert_array_equal(forward, 0)
    np.testing.assert_array_equal(reverse, 0)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_shifted_logits_are_compared_to_float32s_own_precision():
    """Constants of thousands in a side's logits, which no softmax sees, cost only what they cost the logits."""
    rng = np.random.default_rng(0)
    logits, teacher = (np.round(rng.normal(size=(4, 30)) * 8) / 8 for _ in range(2))  # exact in float32 with the shift
    eye, labels = jnp.eye(30), jnp.zeros(4, jnp.int32)
    plain, moved = (
        linear_kl(
            jnp.asarray(logits, jnp.float32), eye, labels, ((jnp.asarray(teacher + c, jnp.float32), eye),), chunk=7
        )
        for c in (0.0, 8192.0)
    )
    np.testing.assert_allclose(moved.forward, plain.forward, rtol=1e-6)
    np.testing.assert_allclose(moved.reverse, plain.reverse, rtol=1e-6)


def test_bfloat16_states_give_float32_results():
    hidden, kernel, labels, teachers, weights = inputs(33, jnp.float32)
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (hidden, kernel, teachers))
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), halved)
    (*gradients, logprobs, forward, reverse), expected = (
        slopes(fn, *given, weights)
        for fn, given in (
            (lambda h, k: linear_kl(h, k, labels, halved[2], chunk=10), (halved[0], kernel)),
            (lambda h, k: dense(h, k, labels, rounded[2]), rounded[:2]),
        )
    )
    assert [x.dtype for x in gradients] == [jnp.bfloat16, jnp.float32]
    for a, e in zip(gradients, expected, strict=False):  # gradients of logits are rounded to 8 bits
        np.testing.assert_allclose(a.astype(jnp.float32), e, rtol=0.02, atol=0.02 * np.abs(e).max())
    for a, e in zip((logprobs, forward, reverse), expected[2:], strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


def test_teachers_have_no_gradient(x64):
    hidden, kernel, labels, teachers, weights = inputs(11)
    found = jax.grad(lambda t: weighed(linear_kl(hidden, kernel, labels, t), weights))(teachers)
    for gradient in jax.tree.leaves(found):
        np.testing.assert_array_equal(gradient, 0)


def test_no_row_at_all():
    _, kernel, _, teachers, _ = inputs(11, jnp.float32)
    others = tuple((jnp.zeros((2, 0, k.shape[1])), k) for _, k in teachers)
    found = linear_kl(jnp.zeros((2, 0, 7)), kernel, jnp.zeros((2, 0), jnp.int32), others)
    assert [x.shape for x in found] == [(2, 0), (2, 0, 2), (2, 0, 2)]


def test_the_program_holds_no_array_of_all_logits():
    rows, vocab = (4, 128), 8192
    hidden, kernel, labels, teachers, weights = inputs(vocab, jnp.float32, rows)

    def total(hidden: Any, kernel: Any) -> Any:
        return weighed(linear_kl(hidden, kernel, labels, teachers, chunk=128, kept=0), weights)

    program = jax.jit(jax.grad(total, (0, 1))).lower(hidden, kernel).compile()
    assert largest(program.as_text()) < np.prod(rows) * vocab
    assert program.memory_analysis().temp_size_in_bytes < np.prod(rows) * vocab * 4 / 2


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one():
    """Each holds rows / 4 and vocabulary / 2, and never the logits of both, or those that are its own."""
    script = str(Path(__file__).with_name("sharded_ops.py"))
    out = json.loads(finished([script, "linear_kl"], os.environ | virtual_devices(8)))
    assert out["apart"] < 2e-5 and out["largest"] < out["logits"], out
    assert out["apart kept"] < 2e-5 and out["largest kept"] == out["logits"], out


def test_heads_that_do_not_match_are_refused():
    hidden, kernel, labels, teachers, _ = inputs(11, jnp.float32)
    with pytest.raises(ValueError, match="10 entries, the student's 11"):
        linear_kl(hidden, kernel, labels, ((teachers[0][0], teachers[0][1][:10]),))
    with pytest.raises(ValueError, match="mix has 1 values for 2 teachers"):
        linear_kl(hidden, kernel, labels, teachers, mix=(1.0,))
    with pytest.raises(ValueError, match="no teacher"):
        linear_kl(hidden, kernel, labels, ())
