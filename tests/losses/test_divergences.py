"""Divergences from sparse targets, values and gradients, against dense computations in PyTorch and trl's functions."""

from __future__ import annotations

import functools
import itertools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from fusion_jax.errors import InputError
from fusion_jax.losses import fusion
from fusion_jax.losses.fusion import Target, divergence
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.teachers.settings import FusionSettings

KINDS, TAILS = get_args(fusion.Kind), get_args(fusion.Tail)
B, T, V, D, BETA = 2, 5, 40, 12, 0.3
EXACT, SINGLE = {"rtol": 1e-10, "atol": 1e-10}, 2e-5  # what the golden files state for float64 and for float32


def textbook(kind: str, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """A divergence of dense masses t (teacher) and p (student), both [...,C]; terms with 0 log 0 are 0."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (torch.xlogy(a, a) - torch.xlogy(a, b)).sum(-1)

    if kind == "ce":
        return -torch.xlogy(t, p).sum(-1)
    if kind == "kl":
        return kl(t, p)
    if kind == "reverse_kl":
        return kl(p, t)
    if kind == "jsd":
        m = BETA * t + (1 - BETA) * p
        return BETA * kl(t, m) + (1 - BETA) * kl(p, m)
    return (t - p).abs().sum(-1) / 2


def dense(kind: str, tail: str, logits: torch.Tensor, ids: np.ndarray, probs: np.ndarray) -> torch.Tensor:
    """[B,T] divergences of students with logits [B,T,V], with the tail as its definition says, position by position."""
    out = []
    for z, some, masses in zip(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1, ids.shape[-1]),
                               probs.reshape(-1, probs.shape[-1])):  # fmt: skip
        t = torch.zeros_like(z)
        t[torch.as_tensor(some[masses > 0]).long()] = torch.as_tensor(masses[masses > 0], dtype=z.dtype)
        p = torch.softmax(z, -1)
        on = t > 0
        if tail == "renormalise":
            t, p = t[on] / t[on].sum(), p[on] / p[on].sum()
        elif tail == "bucket":
            t, p = (torch.cat([x[on], 1 - x[on].sum()[None]]) for x in (t, p))
        elif tail == "ignore" or kind == "reverse_kl":
            t, p = t[on], p[on]
        out.append(textbook(kind, t, p))
    return torch.stack(out).reshape(ids.shape[:-1])


def case(k: int, seed: int = 0, *, mass: float = 0.8) -> tuple[np.ndarray, ...]:
    """hidden [B,T,D], head [V,D], ids and probs [B,T,k] of a teacher who lists `mass` of its own, some entries without
    any (whose ids repeat), and a mask [B,T]."""
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(B, T, D)), rng.normal(size=(V, D)) * 0.5
    ids = np.argsort(rng.random((B, T, V)), -1)[..., :k].astype(np.int32)
    probs = rng.dirichlet(np.ones(k), (B, T)) * mass
    if k < V:
        probs[0, 1, 2:], ids[0, 1, 2:] = 0.0, 0
    mask = np.ones((B, T))
    mask[0, -1] = mask[1, 2] = 0.0
    probs[1, 2] = 0.0  # a position that nobody teaches
    return hidden, head, ids, probs, mask


@functools.cache
def ours(k: int, dtype: Any) -> dict[tuple[str, str], tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Of each kind and tail, the mean over the mask and its gradients by hidden states and head, by chunks of 7 entries
    of the vocabulary: one program, since all begin with the same log-probs."""
    hidden, head, ids, probs, mask = case(k)
    target, weights = Target(jnp.asarray(ids), jnp.asarray(probs, dtype)), jnp.asarray(mask, dtype)
    wanted = list(itertools.product(KINDS, TAILS))

    def losses(hidden: jax.Array, head: jax.Array) -> Any:
        logprobs, back = jax.vjp(lambda *x: linear_logprobs(*x, jnp.asarray(ids), chunk=7)[0], hidden, head)

        def loss(logprobs: jax.Array, kind: Any, tail: Any) -> jax.Array:
            mean = divergence(logprobs, target, weights, kind=kind, tail=tail, beta=BETA)
            return mean.total / mean.weight

        values, slopes = zip(*(jax.value_and_grad(loss)(logprobs, *one) for one in wanted), strict=True)
        return values, jax.vmap(back)(jnp.stack(slopes))

    values, gradients = jax.jit(losses)(jnp.asarray(hidden, dtype), jnp.asarray(head, dtype))
    found = [(np.asarray(value), tuple(np.asarray(x[i]) for x in gradients)) for i, value in enumerate(values)]
    return dict(zip(wanted, found, strict=True))


def theirs(kind: str, tail: str, given: tuple[np.ndarray, ...]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    hidden, head, ids, probs, mask = given
    x, w = (torch.tensor(a, requires_grad=True) for a in (hidden, head))
    taught = torch.as_tensor(mask > 0)
    loss = dense(kind, tail, (x @ w.T)[taught], ids[mask > 0], probs[mask > 0]).mean()
    loss.backward()
    return loss.detach().numpy(), (x.grad.numpy(), w.grad.numpy())


@pytest.mark.parametrize("k", [3, 20])  # labels of a position that are compared, and that are gathered
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_dense_ones(kind, k):
    given = case(k)
    for tail in TAILS:
        value, gradients = theirs(kind, tail, given)
        with jax.enable_x64(True):
            found, slopes = ours(k, jnp.float64)[kind, tail]
            np.testing.assert_allclose(found, value, **EXACT)
            for slope, gradient in zip(slopes, gradients, strict=True):
                np.testing.assert_allclose(slope, gradient, **EXACT)
        found, slopes = ours(k, jnp.float32)[kind, tail]
        np.testing.assert_allclose(found, value, rtol=SINGLE)
        for slope, gradient in zip(slopes, gradients, strict=True):
            np.testing.assert_allclose(slope, gradient, rtol=SINGLE, atol=SINGLE * np.abs(gradient).max())
        np.testing.assert_array_equal(np.asarray(slopes[0])[given[-1] == 0], 0.0)  # masked: nothing at all


@pytest.mark.parametrize("tail", TAILS)
def test_a_list_of_the_whole_vocabulary_gives_the_textbook_divergences(tail, x64):
    """PyTorch's kl_div in both directions, trl's generalised JSD with the same weight, total variation."""
    loss_utils = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(2, 6, V)) * 2
    p, t = (torch.log_softmax(torch.tensor(x), -1) for x in (ours, theirs))
    expected = {
        "kl": functional.kl_div(p, t, log_target=True, reduction="batchmean"),
        "reverse_kl": functional.kl_div(t, p, log_target=True, reduction="batchmean"),
        "ce": functional.cross_entropy(torch.tensor(ours), t.exp()),
        "jsd": loss_utils.compute_divergence(p, t, BETA).mean(),
        "tv": (p.exp() - t.exp()).abs().sum(-1).mean() / 2,
    }
    target = Target(jnp.broadcast_to(jnp.arange(V), (6, V)), jnp.asarray(t.exp().numpy()))
    for kind in KINDS:
        mean = divergence(jnp.asarray(p.numpy()), target, jnp.ones(6), kind=kind, tail=tail, beta=BETA)
        np.testing.assert_allclose(mean.total / mean.weight, expected[kind], **EXACT)


@pytest.mark.parametrize("tail", ["renormalise", "bucket"])
@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd"])
def test_lists_are_compared_as_trl_compares_them(kind, tail, x64):
    """trl lists what its student finds probable, so teacher and student change places, and with them the weights."""
    loss_utils = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(2, 6, V)) * 2
    alpha = {"kl": 1.0, "reverse_kl": 0.0, "jsd": 1 - BETA}[kind]
    expected = loss_utils.compute_topk_self_distillation_loss(
        torch.tensor(teacher), torch.tensor(student), distillation_topk=5, distillation_alpha=alpha,
        distillation_add_tail=tail == "bucket",
    )  # fmt: skip
    logprobs = jax.nn.log_softmax(jnp.asarray(teacher))
    values, ids = jax.lax.top_k(logprobs, 5)
    listed = jnp.take_along_axis(jax.nn.log_softmax(jnp.asarray(student)), ids, -1)
    mean = divergence(listed, Target(ids, jnp.exp(values)), jnp.ones(6), kind=kind, tail=tail, beta=BETA)
    np.testing.assert_allclose(mean.total / mean.weight, expected.mean(), **EXACT)


def test_jsd_tends_to_both_divergences(x64):
    hidden, head, ids, probs, _ = case(4)
    logprobs, _ = linear_logprobs(jnp.asarray(hidden[0, 0]), jnp.asarray(head), jnp.asarray(ids[0, 0]))
    target = Target(jnp.asarray(ids[0, 0]), jnp.asarray(probs[0, 0]))

    def of(kind, beta=0.5):
        return float(divergence(logprobs, target, jnp.ones(()), kind=kind, tail="bucket", beta=beta).total)

    assert of("jsd", 1e-7) / 1e-7 == pytest.approx(of("kl"), rel=1e-5)
    assert of("jsd", 1 - 1e-7) / 1e-7 == pytest.approx(of("reverse_kl"), rel=1e-5)
    assert of("jsd", 0.2) < of("jsd") and of("tv") < 1


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_student_finds_impossible(kind, tail):
    """A listed entry with log-prob -inf: infinitely far in ce and kl, finite elsewhere; its gradient is never nan."""
    target = Target(jnp.asarray([[3, 5]]), jnp.asarray([[0.5, 0.25]]))

    def loss(logprobs):
        return divergence(logprobs[None], target, jnp.ones(1), kind=kind, tail=tail, beta=BETA).total

    value, slope = jax.value_and_grad(loss)(jnp.asarray([np.log(0.25), -np.inf], jnp.float32))
    assert np.isfinite(slope).all()
    if kind in ("ce", "kl"):
        assert value == np.inf
    else:
        near = jax.grad(loss)(jnp.asarray([np.log(0.25), -80.0]))
        np.testing.assert_allclose(slope, near, atol=1e-6)
        assert np.isfinite(value) and slope[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_lists_all_its_mass_leaves_an_empty_bucket(kind):
    """The bucket then asks for nothing in ce and kl; reverse KL holds the student's mass of it against `LEAST_MASS`."""
    target = Target(jnp.asarray([[3, 5]]), jnp.asarray([[0.75, 0.25]]))
    logprobs = jnp.log(jnp.asarray([[0.5, 0.25]]))
    mean = divergence(logprobs, target, jnp.ones(1), kind=kind, tail="bucket", beta=BETA)
    t, p = (torch.tensor(x, dtype=torch.float64) for x in ([0.75, 0.25, 0.0], [0.5, 0.25, 0.25]))
    if kind == "reverse_kl":
        t[2] = fusion.LEAST_MASS
    np.testing.assert_allclose(mean.total, textbook(kind, t, p), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_positions_have_no_gradient_whatever_stands_there(kind):
    """Not even where the student's log-probs are -inf or nothing is listed."""
    target = Target(jnp.asarray([[3, 5]] * 3), jnp.asarray([[0.5, 0.25], [0.5, 0.5], [0.0, 0.0]]))
    logprobs = jnp.asarray([[-1.0, -2.0], [-np.inf, -1.0], [-1.0, -1.0]])
    for tail in TAILS:
        slopes = jax.grad(
            lambda x: divergence(x, target, jnp.asarray([1.0, 0, 0]), kind=kind, tail=tail).total  # noqa: B023
        )(logprobs)
        assert np.asarray(slopes[0]).any()
        np.testing.assert_array_equal(slopes[1:], 0.0)


def test_settings_that_do_not_go_together():
    with pytest.raises(
        InputError, match=r"field 'kind': is infinite where .* Set tail to renormalise, bucket or ignore"
    ):
        FusionSettings(kind="reverse_kl")
    for beta in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"field 'jsd_beta': .* is out of range"):
            FusionSettings(jsd_beta=beta)
        with pytest.raises(InputError, match="field 'beta'"):
            divergence(jnp.zeros((1, 1)), Target(jnp.zeros((1, 1), int), jnp.ones((1, 1))), jnp.ones(1), beta=beta)
