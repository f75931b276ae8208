"""The chunked top k against a dense softmax, sorted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.ops.linear_topk import linear_topk

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.parametrize("shards, chunk", [(1, 7), (1, None), (2, 6), (3, 50)])
@pytest.mark.parametrize("limit", [None, 41])
def test_entries_logprobs_and_normaliser(shards, chunk, limit):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        hidden, kernel = rng.normal(size=(3, 5, 8)), rng.normal(size=(50, 8))
        logits = 3.0 * np.tanh(hidden @ kernel.T / 3.0)
        logits = logits[..., : limit or 50]
        logsumexp = np.log(np.exp(logits).sum(-1))
        order = np.argsort(-logits, -1, kind="stable")[..., :9]
        out = linear_topk(
            jnp.asarray(hidden), jnp.asarray(kernel), 9, soft_cap=3.0, vocab_shards=shards, chunk=chunk,
            vocab_limit=limit,
        )  # fmt: skip
        np.testing.assert_array_equal(out.ids, order)
        np.testing.assert_allclose(out.logsumexp, logsumexp, rtol=1e-12)
        expected = np.take_along_axis(logits, order, -1) - logsumexp[..., None]
        np.testing.assert_allclose(out.logprobs, expected, rtol=1e-10)


def test_equal_logits_come_by_rising_id():
    kernel = jnp.asarray(np.repeat(np.arange(4.0), 5)[:, None])
    out = linear_topk(jnp.ones((1, 1)), kernel, 7, chunk=3)
    np.testing.assert_array_equal(out.ids[0], [15, 16, 17, 18, 19, 10, 11])
