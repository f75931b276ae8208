"""Token choice against the sorting definition of the nucleus, against `transformers`, and against the softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.utils import GenerationMixin

from fusion_jax.errors import InputError
from fusion_jax.sampling.samplers import Sampler, choose, draw, nucleus, penalised, restrict


def by_sorting(weights: np.ndarray, share: float) -> np.ndarray:
    kept = np.zeros(weights.shape, bool)
    for row, out in zip(weights.astype(np.float64), kept, strict=True):
        order = np.argsort(-row, kind="stable")
        mass = np.cumsum(row[order])
        out[order[: 1 + int(np.searchsorted(mass, share * mass[-1]))]] = True
    return kept


@pytest.mark.parametrize("top_k, top_p", [(0, 0.9), (5, 1.0), (20, 0.7), (1, 0.5), (0, 0.01), (500, 1.0)])
def test_the_same_tokens_stay_as_in_transformers(top_k, top_p):
    logits = np.random.default_rng(2).normal(size=(16, 200)).astype(np.float32) * 2
    theirs = torch.tensor(logits) / 0.7
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    ours = np.asarray(restrict(jnp.asarray(logits), Sampler(0.7, top_p, top_k)))
    assert (np.isfinite(ours) == torch.isfinite(theirs).numpy()).all()
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize("min_p, top_k, top_p", [(0.05, 0, 1.0), (0.3, 0, 0.9), (0.02, 12, 0.8), (1.0, 0, 1.0)])
def test_min_p_comes_where_transformers_has_it(min_p, top_k, top_p):
    """The whole chain that `transformers` makes of the same settings."""
    logits = np.random.default_rng(6).normal(size=(16, 200)).astype(np.float32) * 2
    settings = GenerationConfig(do_sample=True, temperature=0.7, top_k=top_k or None, top_p=top_p, min_p=min_p)
    chain = GenerationMixin()._get_logits_processor(settings)
    theirs = chain(torch.zeros((16, 1), dtype=torch.long), torch.tensor(logits)).numpy()
    ours = np.asarray(restrict(jnp.asarray(logits), Sampler(0.7, top_p, top_k, min_p=min_p)))
    assert (np.isfinite(ours) == np.isfinite(theirs)).all() and np.isfinite(ours).any(-1).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (np.isfinite(ours).sum() == 16) == (min_p == 1.0)


def test_the_repetition_penalty_is_that_of_transformers():
    logits = np.random.default_rng(4).normal(size=(8, 50)).astype(np.float32)
    there = np.random.default_rng(5).integers(0, 50, (8, 12))
    seen = np.zeros((8, 50), bool)
    seen[np.arange(8)[:, None], there] = True
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(there), torch.tensor(logits)).numpy()
    np.testing.assert_allclose(penalised(jnp.asarray(logits), jnp.asarray(seen), 1.3), theirs, rtol=1e-6)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_the_nucleus_is_the_smallest_sufficient_set(share, spread):
    logits = np.random.default_rng(1).normal(size=(20, 300)).astype(np.float32) * spread
    weights = np.asarray(jnp.exp(logits - logits.max(-1, keepdims=True)))
    assert (np.asarray(nucleus(jnp.asarray(weights), share)) == by_sorting(weights, share)).all()


def test_of_equal_tokens_only_so_many_as_needed_are_kept():
    weights = jnp.asarray([[1.0, 1.0, 1.0, 1.0], [0.25, 1.0, 0.25, 0.25], [1.0, 0.5, 0.5, 0.0]])
    kept = np.asarray(nucleus(weights, 0.625))
    assert kept.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("vocabulary", [7, 128, 300])
def test_draws_follow_the_softmax(vocabulary):
    """30,000 draws: total variation distance below what they allow, and far above for a wrong distribution."""
    count = 30_000
    values = np.random.default_rng(3).normal(size=vocabulary) * 1.5 - np.arange(vocabulary) // 128
    logits = jnp.asarray(values, jnp.float32).at[3].set(-jnp.inf)
    keys = jax.random.key_data(jax.random.split(jax.random.key(5), count))
    drawn = np.asarray(draw(jnp.broadcast_to(logits, (count, vocabulary)), keys))
    seen = np.bincount(drawn, minlength=vocabulary) / count
    expected = np.asarray(jax.nn.softmax(logits))
    allowed = 1.2 * np.sqrt(expected * (1 - expected) / count).sum() / 2  # 0.8 of the sum is the mean
    assert seen[3] == 0
    assert np.abs(seen - expected).sum() / 2 < allowed
    assert np.abs(np.roll(seen, 1) - expected).sum() / 2 > 5 * allowed
    warmer = np.asarray(jax.nn.softmax(logits / 1.1))
    assert np.abs(seen - warmer).sum() / 2 > allowed


def test_greedy_takes_the_largest_and_nucleus_zero_too():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(8, 50)), jnp.float32)
    keys = jnp.zeros((8, 2), jnp.uint32)
    assert (choose(logits, keys, Sampler()) == logits.argmax(-1)).all()
    assert (choose(logits, keys, Sampler(1.0, 0.0)) == logits.argmax(-1)).all()
    assert (choose(logits, keys, Sampler(1.0, 1.0, 1)) == logits.argmax(-1)).all()


@pytest.mark.parametrize("values", [(-1.0, 1.0, 0), (float("nan"), 1.0, 0), (1.0, 1.5, 0), (1.0, 1.0, -2), (1.0, 1.0, 0, 1.0, 1.1)])
def test_values_out_of_range(values):
    with pytest.raises(InputError, match="is out of range"):
        Sampler(*values)
