"""The chunked head against plain log-softmax, values and gradients, however the vocabulary is cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.ops.linear_logprobs import FEW, linear_logprobs

pytestmark = pytest.mark.usefixtures("quick_compiler")


def plain(hidden, kernel, labels, soft_cap):
    logits = jnp.einsum("...d,vd->...v", hidden, kernel)
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    logsumexp = jax.nn.logsumexp(logits, -1)
    return jnp.take_along_axis(logits, labels[..., None], -1)[..., 0] - logsumexp, logsumexp


def inputs(vocab, dtype=jnp.float64, shape=(3, 5), dim=7):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(*shape, dim)) * 3, dtype)
    return hidden, jnp.asarray(rng.normal(size=(vocab, dim)), dtype), jnp.asarray(rng.integers(0, vocab, shape))


@pytest.mark.parametrize("vocab", [1, 11, 64, 97])
@pytest.mark.parametrize("chunk", [1, 16, 1000])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("soft_cap", [None, 4.0])
def test_values_and_gradients_equal_plain_softmax(x64, vocab, chunk, shards, soft_cap):
    hidden, kernel, labels = inputs(vocab)
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(2, *labels.shape)))

    def total(fn):
        def scalar(hidden, kernel):
            logprobs, logsumexp = fn(hidden, kernel)
            return (weights[0] * logprobs + weights[1] * logsumexp).sum(), (logprobs, logsumexp)

        return jax.jit(jax.value_and_grad(scalar, (0, 1), has_aux=True))(hidden, kernel)

    expected = total(lambda h, k: plain(h, k, labels, soft_cap))
    actual = total(lambda h, k: linear_logprobs(h, k, labels, soft_cap=soft_cap, vocab_shards=shards, chunk=chunk))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


def test_bfloat16_states_give_float32_results():
    hidden, kernel, labels = inputs(33, jnp.float32)
    logprobs, _ = linear_logprobs(hidden.astype(jnp.bfloat16), kernel, labels)
    rounded = plain(
        hidden.astype(jnp.bfloat16).astype(jnp.float32), kernel.astype(jnp.bfloat16).astype(jnp.float32), labels, None
    )[0]
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, rounded, rtol=1e-5, atol=1e-5)


def test_large_logits_stay_finite():
    hidden, kernel, labels = inputs(19, jnp.float32)
    value, grad = jax.value_and_grad(lambda h: linear_logprobs(h, kernel, labels)[0].sum())(hidden * 1e4)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_no_scored_token_at_all():
    _, kernel, _ = inputs(19, jnp.float32)
    logprobs, logsumexp = linear_logprobs(jnp.zeros((2, 0, 7)), kernel, jnp.zeros((2, 0), jnp.int32))
    assert logprobs.shape == logsumexp.shape == (2, 0)


def test_the_program_holds_no_array_of_all_logits():
    hidden, kernel, labels = inputs(8192, jnp.float32, shape=(4, 128), dim=16)
    step = jax.jit(jax.grad(lambda h, k: linear_logprobs(h, k, labels, chunk=512)[0].sum(), (0, 1)))
    sizes = [int(np.prod(v.aval.shape)) for eqn in jax.make_jaxpr(step)(hidden, kernel).jaxpr.eqns for v in eqn.outvars]
    assert max(sizes) < 4 * 128 * 8192
    assert step.lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes < 4 * 128 * 8192 * 4 / 4


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("entries", [4, FEW + 4])
def test_several_entries_a_position(shards, entries):
    """[..., K] labels: log-probs of each, and gradients, as one call a column gives them; repeated ids included."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        hidden, kernel = jnp.asarray(rng.normal(size=(3, 5, 8))), jnp.asarray(rng.normal(size=(30, 8)))
        ids, weights = jnp.asarray(rng.integers(0, 30, (3, 5, entries))), jnp.asarray(rng.normal(size=(3, 5, entries)))
        ids = ids.at[0, 0, 1].set(ids[0, 0, 0])

        def together(hidden, kernel):
            logprobs, lse = linear_logprobs(hidden, kernel, ids, soft_cap=3.0, vocab_shards=shards, chunk=7)
            return (logprobs * weights).sum() + (lse**2).sum()

        def apart(hidden, kernel):
            columns = [linear_logprobs(hidden, kernel, ids[..., k], soft_cap=3.0)[0] for k in range(entries)]
            lse = linear_logprobs(hidden, kernel, ids[..., 0], soft_cap=3.0)[1]
            return (jnp.stack(columns, -1) * weights).sum() + (lse**2).sum()

        (a, da), (b, db) = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, kernel) for f in (together, apart))
        np.testing.assert_allclose(a, b, rtol=1e-12)
        for x, y in zip(da, db, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)
