"""MK-TOD's losses against golden numbers, dense float64 computations and PyTorch, values and gradients."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from fusion_jax.losses import Mean, combined, divide
from fusion_jax.losses.mktod import entity_contrast, in_batch_contrastive, marginal_likelihood

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mktod.json").read_text())
PUBLISHED = {"rtol": 0, "atol": 2e-6}  # written with six decimals
EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, E, T = 3, 4, 6


@pytest.mark.parametrize("case", GOLDEN["mml"], ids=lambda case: f"{len(case['scores'])}-tau-{case['tau']}")
def test_golden_marginal_likelihood(x64, case):
    logprobs = jnp.asarray(case["token_log_probs"])[None]
    mask, exists = jnp.ones((1, logprobs.shape[2])), jnp.ones((1, logprobs.shape[1]), bool)

    def run(scores: Any) -> Any:
        found, token = (
            marginal_likelihood(scores, logprobs, mask, exists, tau=case["tau"], level=level)
            for level in ("sequence", "token")
        )
        return divide(found.loss), (found, divide(token.loss), divide(found.entropy))

    scores = jnp.asarray(case["scores"])[None]
    (value, (found, token, entropy)), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(scores)
    np.testing.assert_allclose(value, case["mml_sequence_over_length"], **PUBLISHED)
    np.testing.assert_allclose(found.loss.total, case["mml_sequence"], **PUBLISHED)
    np.testing.assert_allclose(found.prior[0], case["q"], **PUBLISHED)
    np.testing.assert_allclose(found.posterior[0], case["posterior"], **PUBLISHED)
    np.testing.assert_allclose(gradient[0], case["grad_scores_of_mml_over_length"], **PUBLISHED)
    np.testing.assert_allclose(token, case["mml_token_level"], **PUBLISHED)
    w = np.asarray(case["posterior"])
    np.testing.assert_allclose(entropy, -(w * np.log(w)).sum(), atol=2e-5)


@pytest.mark.parametrize("case", GOLDEN["ctr"], ids=["0", "1"])
def test_golden_contrast_of_entities(x64, case):
    logprobs, without = jnp.asarray(case["token_log_probs"])[None], jnp.asarray(case["no_entity_token_log_probs"])[None]
    mask, there = jnp.ones((1, logprobs.shape[2])), jnp.ones((1, logprobs.shape[1]), bool)
    for size, expected in case["loss_by_size_of_E_star"].items():
        run = jax.jit(partial(entity_contrast, size=int(size), margin=case["lambda"]))
        loss = divide(run(logprobs, without, mask, there, jnp.ones(1)))
        np.testing.assert_allclose(loss, expected, **PUBLISHED)


@pytest.mark.parametrize("case", GOLDEN["total_loss"], ids=["0", "1"])
def test_golden_total(x64, case):
    terms = [(case[weight], Mean(jnp.asarray(2 * case[name]), jnp.asarray(2.0)))
             for weight, name in (("alpha", "nll"), ("beta", "mml"), ("gamma", "ctr"))]  # fmt: skip
    total = combined(*terms)
    np.testing.assert_allclose([total.total, total.weight], [case["total"], 1.0], **EXACT)


@pytest.mark.parametrize("case", GOLDEN["in_batch_contrastive"], ids=["apart", "twice"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "plain"])
def test_golden_contrastive_and_pytorchs_gradients(x64, case, masked):
    contexts, entities = np.asarray(case["context_vectors"]), np.asarray(case["entity_vectors"])
    ids = np.asarray(case["positive_entity_ids"])

    def run(c: Any, e: Any) -> Any:
        return divide(
            in_batch_contrastive(c, e, jnp.asarray(ids), jnp.ones(3), tau=case["tau"], mask_duplicates=masked)[0]
        )

    value, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(jnp.asarray(contexts), jnp.asarray(entities))
    np.testing.assert_allclose(value, case["loss_duplicates_masked" if masked else "loss_plain"], **PUBLISHED)
    c, e = (torch.tensor(x, requires_grad=True) for x in (contexts, entities))
    scores = c @ e.T / case["tau"]
    if masked:
        same = torch.tensor(ids[:, None] == ids[None]) & ~torch.eye(3, dtype=torch.bool)
        scores = scores.masked_fill(same, -torch.inf)
    loss = functional.cross_entropy(scores, torch.arange(3))
    loss.backward()
    for a, b in zip([value, *gradients], [loss.detach(), c.grad, e.grad], strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


def turns(dtype: Any = jnp.float64) -> tuple[jax.Array, ...]:
    """scores [B,E], logprobs [B,E,T], mask [B,T], exists [B,E]: a whole turn, a shorter one, one with two entities."""
    rng = np.random.default_rng(0)
    mask = np.arange(T) < np.asarray([[T], [2], [5]])
    exists = np.arange(E) < np.asarray([[E], [E], [2]])
    scores, logprobs = rng.uniform(-1, 1, (B, E)), -rng.exponential(2.0, (B, E, T))
    return (
        jnp.asarray(scores, dtype), jnp.asarray(logprobs, dtype), jnp.asarray(mask, dtype), jnp.asarray(exists)
    )  # fmt: skip


def tensors(*arrays: Any) -> list[torch.Tensor]:
    return [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]


def dense(scores: Any, logprobs: Any, mask: Any, exists: Any, tau: float, level: str) -> list[Any]:
    """The mean over tokens and its gradients by scores and log-probs, in probabilities, turn by turn."""
    s, p = tensors(scores, logprobs)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        kept, n = int(exists[b].sum()), int(mask[b].sum())
        q, each = torch.softmax(s[b, :kept] / tau, 0), p[b, :kept, :n].exp()
        total = total - (torch.log(q @ each.prod(1)) if level == "sequence" else torch.log(q @ each).sum())
    (mean := total / float(mask.sum())).backward()
    return [mean.detach(), s.grad, p.grad]


def marginal(mask: Any, exists: Any, **how: Any) -> Any:
    """(scores, logprobs) -> ((loss, found), gradients by both)."""

    def loss(scores: Any, logprobs: Any) -> Any:
        found = marginal_likelihood(scores, logprobs, mask, exists, **how)
        return divide(found.loss), found

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_marginal_likelihood_is_the_dense_one(x64, level, tau):
    scores, logprobs, mask, exists = turns()
    (value, _), gradients = marginal(mask, exists, tau=tau, level=level)(scores, logprobs)
    for a, e in zip([value, *gradients], dense(scores, logprobs, mask, exists, tau, level), strict=True):
        np.testing.assert_allclose(a, e, **EXACT)


def test_the_gradient_of_a_score_is_the_prior_less_the_posterior(x64):
    """(q - w) / (n tau), n the tokens of all turns."""
    scores, logprobs, mask, exists = turns()
    (_, found), (gradient, _) = marginal(mask, exists, tau=0.5)(scores, logprobs)
    np.testing.assert_allclose(gradient, (found.prior - found.posterior) / (mask.sum() * 0.5), **EXACT)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_generator_may_be_held(x64, level):
    scores, logprobs, mask, exists = turns()

    ((value, _), (of_scores, of_logprobs)), ((free, _), (free_scores, _)) = (
        marginal(mask, exists, level=level, stop_grad_theta=stop)(scores, logprobs) for stop in (True, False)
    )
    np.testing.assert_array_equal(of_logprobs, 0)
    np.testing.assert_array_equal([value, *of_scores.ravel()], [free, *free_scores.ravel()])


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_float32_tiny_probabilities_and_what_is_not_there(level):
    """Tokens of -90 and -130 nats, of log-prob -inf, NaN where nothing is, and a turn without entities."""
    _, logprobs, mask, exists = turns(jnp.float32)
    scores = jnp.zeros((B, E), jnp.float32)
    logprobs = logprobs.at[0].set(jnp.asarray([-90.0, -130.0, -jnp.inf, -jnp.inf])[:, None] / T)
    logprobs = logprobs.at[1, :, 2:].set(jnp.nan).at[2].set(jnp.nan)
    exists = exists.at[2].set(False)
    (value, found), gradients = marginal(mask, exists, level=level)(scores, logprobs)
    assert all(np.isfinite(x).all() for x in (value, *gradients, found.prior, found.posterior))
    np.testing.assert_array_equal(found.posterior[2], 0)
    np.testing.assert_array_equal(gradients[1][2], 0)
    assert float(found.entropy.weight) == 2 and float(found.loss.weight) == 13
    if level == "sequence":  # of the first turn 90 nats, and the prior of 1 / 4
        (alone, _), _ = marginal(mask[:1], exists[:1])(scores[:1], logprobs[:1])
        np.testing.assert_allclose(alone * T, 90 + np.log(4), rtol=1e-6)


def test_contrast_of_entities_is_the_dense_one(x64):
    """The second turn has a shorter response, the third one entity among its three best, and a negative."""
    _, logprobs, mask, exists = turns()
    retrieved = exists.at[2, 1].set(False).at[:, 3].set(False)
    without = jnp.asarray(-np.random.default_rng(1).exponential(2.0, (B, T)))

    def ours(p: Any, none: Any) -> Any:
        return divide(entity_contrast(p, none, mask, retrieved, jnp.ones(B), size=3, margin=0.5))

    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(logprobs, without)
    p, none = tensors(logprobs, without)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        n = int(mask[b].sum())
        for i in np.flatnonzero(retrieved[b, :3]):
            total = total + torch.relu(none[b, :n].mean() - p[b, i, :n].mean() + 0.5)
    (total / B).backward()
    for a, e in zip([value, *gradients], [total.detach() / B, p.grad, none.grad], strict=True):
        np.testing.assert_allclose(a, e, **EXACT)


def test_turns_that_fill_a_batch_are_no_negatives():
    rng = np.random.default_rng(0)
    contexts, entities = (jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for _ in range(2))
    ids, weights = jnp.asarray([1, 2, 3, 1]), jnp.asarray([1.0, 1.0, 1.0, 0.0])
    run = jax.jit(in_batch_contrastive)
    whole, metrics = run(contexts, entities, ids, weights)
    three, expected = run(contexts[:3], entities[:3], ids[:3], weights[:3])
    np.testing.assert_allclose(whole, three, rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], expected["accuracy"])


def test_accuracy_counts_own_entities_that_score_highest():
    vectors = jnp.eye(3)
    _, metrics = in_batch_contrastive(vectors, vectors[jnp.asarray([0, 2, 1])], jnp.arange(3), jnp.ones(3))
    assert float(divide(metrics["accuracy"])) == pytest.approx(1 / 3)
