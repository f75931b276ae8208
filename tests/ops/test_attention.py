"""Attention against a dense softmax written out: values and gradients, float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.ops.attention import attention
from fusion_jax.ops.kernels import ContextPart, Visible

pytestmark = pytest.mark.usefixtures("quick_compiler")

HEADS, KV_HEADS, DIM = 4, 2, 8


def dense(q, k, v, mask, soft_cap, bias=0.0):
    """q [B,T,H,h] over k, v [B,S,K,h] where mask [B,T,S] allows; bias [B,H,T,S]."""
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, 2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * 0.3
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    scores = scores + bias
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), -1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def arrays(rng, *shapes):
    return [jnp.asarray(rng.normal(size=s)) for s in shapes]


def assert_same(actual, expected, inputs):
    """Values and the gradients of a fixed random projection of them."""
    with jax.enable_x64(True):
        toward = jnp.asarray(np.random.default_rng(9).normal(size=jax.eval_shape(expected, *inputs).shape))

        def found(f):
            out, pull = jax.vjp(f, *inputs)
            return out, pull(toward)

        (out, ours), (wanted, theirs) = (jax.jit(found, static_argnums=0)(f) for f in (actual, expected))
        np.testing.assert_allclose(out, wanted, atol=1e-12)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("tokens", [1, 7, 100])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_segments_windows_and_caps(tokens, window, soft_cap):
    """100 tokens are several query blocks of unequal size; the window may be traced."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(tokens)
        inputs = arrays(rng, (2, tokens, HEADS, DIM), *[(2, tokens, KV_HEADS, DIM)] * 2)
        segments = np.sort(rng.integers(1, 4, (2, tokens)), 1)
        index = np.arange(tokens)
        near = index[:, None] - index[None, :]
        mask = (near >= 0) & ((near < window) | (window == 0)) & (segments[:, :, None] == segments[:, None, :])
        positions = jnp.broadcast_to(jnp.asarray(index), (2, tokens))

        def ours(q, k, v, window=window):
            visible = Visible(positions, jnp.asarray(segments), window=window)
            return attention(q, k, v, visible, scale=0.3, soft_cap=soft_cap)

        assert_same(ours, lambda q, k, v: dense(q, k, v, jnp.asarray(mask), soft_cap), inputs)
        traced = jax.jit(lambda w: ours(*inputs, window=w))(jnp.asarray(window))
        np.testing.assert_allclose(traced, ours(*inputs), atol=1e-12)


@pytest.mark.parametrize("window", [0, 6])
def test_keys_shared_by_rows(window):
    """Four rows over two prompts of different length, one of them empty, and rows of 70 tokens."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        size, tokens, lengths = 9, 70, np.asarray([6, 0])
        inputs = arrays(
            rng, (4, tokens, HEADS, DIM), *[(4, tokens, KV_HEADS, DIM)] * 2, *[(2, size, KV_HEADS, DIM)] * 2
        )
        starts = np.repeat(lengths, 2)
        positions = starts[:, None] + np.arange(tokens)
        places = np.broadcast_to(np.arange(size), (2, size))
        all_positions = np.concatenate([np.repeat(places, 2, 0), positions], 1)
        exists = np.concatenate([np.arange(size) < starts[:, None], np.ones((4, tokens), bool)], 1)
        near = positions[:, :, None] - all_positions[:, None, :]
        mask = (near >= 0) & ((near < window) | (window == 0)) & exists[:, None, :]

        def ours(q, k, v, pk, pv):
            part = ContextPart(*(jnp.swapaxes(x, 1, 2) for x in (pk, pv)), jnp.asarray(places), jnp.asarray(lengths))
            return attention(q, k, v, Visible(jnp.asarray(positions), window=window), scale=0.3, context=(part,))

        def theirs(q, k, v, pk, pv):
            k, v = (jnp.concatenate([jnp.repeat(p, 2, 0), x], 1) for p, x in ((pk, k), (pv, v)))
            return dense(q, k, v, jnp.asarray(mask), None)

        assert_same(ours, theirs, inputs)


@pytest.mark.parametrize(("tokens", "window", "soft_cap"), [(1, 0, None), (1, 4, 2.0), (3, 0, None)])
def test_rows_that_share_keys_see_their_own_ones_of_them(tokens, window, soft_cap):
    """Three rows each over two entries of twelve keys, of which every row sees others, at most nine."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        size, lengths = 12, np.asarray([9, 5])
        inputs = arrays(
            rng, (6, tokens, HEADS, DIM), *[(6, tokens, KV_HEADS, DIM)] * 2, *[(2, size, KV_HEADS, DIM)] * 2
        )
        seen = rng.random((6, size)) < 0.5
        positions = np.repeat(lengths, 3)[:, None] + np.arange(tokens)
        places = np.broadcast_to(np.arange(size), (2, size))
        all_positions = np.concatenate([np.repeat(places, 3, 0), positions], 1)
        exists = seen & (np.arange(size) < np.repeat(lengths, 3)[:, None])
        exists = np.concatenate([exists, np.ones((6, tokens), bool)], 1)
        near = positions[:, :, None] - all_positions[:, None, :]
        mask = jnp.asarray((near >= 0) & ((near < window) | (window == 0)) & exists[:, None, :])

        def ours(q, k, v, pk, pv):
            kept = (jnp.swapaxes(x, 1, 2) for x in (pk, pv))
            part = ContextPart(*kept, jnp.asarray(places), jnp.asarray(lengths), jnp.asarray(seen))
            visible = Visible(jnp.asarray(positions), window=window)
            return attention(q, k, v, visible, scale=0.3, soft_cap=soft_cap, context=(part,))

        def theirs(q, k, v, pk, pv):
            k, v = (jnp.concatenate([jnp.repeat(p, 3, 0), x], 1) for p, x in ((pk, k), (pv, v)))
            return dense(q, k, v, mask, soft_cap)

        assert_same(ours, theirs, inputs)


def test_branches_see_their_prompt_and_themselves():
    """One row of a prompt of 40 tokens (33 exist) and three continuations of 35, as one dense mask."""
    with jax.enable_x64(True):
        size, count, rest, length = 40, 3, 35, 33
        total = size + count * rest
        inputs = arrays(np.random.default_rng(5), (1, total, HEADS, DIM), *[(1, total, KV_HEADS, DIM)] * 2)
        branch = np.concatenate([np.full(size, -1), np.repeat(np.arange(count), rest)])
        inside = np.concatenate([np.arange(size), np.tile(np.arange(rest), count)])
        positions = np.where(branch < 0, inside, length + inside)
        causal = inside[:, None] >= inside[None, :]
        mask = (branch[:, None] == branch[None, :]) & causal
        mask |= (branch[:, None] >= 0) & (branch[None, :] < 0) & (inside[None, :] < length)

        def ours(q, k, v):
            places, lengths = jnp.asarray(positions)[None], jnp.asarray([length])
            return attention(q, k, v, Visible(places, prompt_lengths=lengths, branches=(size, count)), scale=0.3)

        assert_same(ours, lambda q, k, v: dense(q, k, v, jnp.asarray(mask)[None], None), inputs)


@pytest.mark.parametrize("window", [0, 5])
def test_both_directions(window):
    """An encoder's rows: padding seen by itself alone, a window on both sides."""
    with jax.enable_x64(True):
        tokens, lengths = 40, np.asarray([40, 13])
        inputs = arrays(np.random.default_rng(6), (2, tokens, HEADS, DIM), *[(2, tokens, KV_HEADS, DIM)] * 2)
        place = np.arange(tokens)
        exists = place < lengths[:, None]
        apart = np.abs(place[:, None] - place[None, :])
        mask = (exists[:, :, None] == exists[:, None, :]) & ((apart < window) | (window == 0))
        visible = Visible(
            jnp.broadcast_to(place, (2, tokens)), jnp.asarray(exists, jnp.int32), window=window, causal=False
        )
        assert_same(
            lambda q, k, v: attention(q, k, v, visible, scale=0.3),
            lambda q, k, v: dense(q, k, v, jnp.asarray(mask), None),
            inputs,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableBias:
    """By head and clipped distance: float[H,...] of table [H,9]."""

    table: jax.Array

    def __call__(self, queries, keys):
        return self.table[:, jnp.clip(queries - keys, -4, 4) + 4]


def test_a_bias_of_positions_and_its_gradient():
    """Rows of several query blocks behind shared keys; the table that the bias is read from has a gradient."""
    with jax.enable_x64(True):
        size, tokens = 6, 70
        inputs = arrays(
            np.random.default_rng(7), (4, tokens, HEADS, DIM), *[(4, tokens, KV_HEADS, DIM)] * 2,
            *[(2, size, KV_HEADS, DIM)] * 2, (HEADS, 9),
        )  # fmt: skip
        positions = jnp.broadcast_to(size + jnp.arange(tokens), (4, tokens))
        places = jnp.broadcast_to(jnp.arange(size), (2, size))
        every = jnp.concatenate([jnp.repeat(places, 2, 0), positions], 1)
        mask = positions[:, :, None] >= every[:, None, :]

        def ours(q, k, v, pk, pv, table):
            part = ContextPart(*(jnp.swapaxes(x, 1, 2) for x in (pk, pv)), places, jnp.full(2, size))
            return attention(q, k, v, Visible(positions), scale=0.3, bias=TableBias(table), context=(part,))

        def theirs(q, k, v, pk, pv, table):
            k, v = (jnp.concatenate([jnp.repeat(p, 2, 0), x], 1) for p, x in ((pk, k), (pv, v)))
            bias = TableBias(table)(positions[:, :, None], every[:, None, :])
            return dense(q, k, v, mask, None, jnp.swapaxes(bias, 0, 1))

        assert_same(ours, theirs, inputs)


def test_keys_of_the_context_alone():
    """Cross-attention: rows without keys of their own over encoder outputs of different length."""
    with jax.enable_x64(True):
        size, lengths = 9, jnp.asarray([9, 4])
        inputs = arrays(np.random.default_rng(8), (2, 50, HEADS, DIM), *[(2, size, KV_HEADS, DIM)] * 2)
        positions, places = (jnp.broadcast_to(jnp.arange(n), (2, n)) for n in (50, size))
        mask = jnp.broadcast_to((places < lengths[:, None])[:, None], (2, 50, size))

        def ours(q, k, v):
            part = ContextPart(*(jnp.swapaxes(x, 1, 2) for x in (k, v)), places, lengths)
            return attention(q, None, None, Visible(positions), scale=0.3, context=(part,))

        assert_same(ours, lambda q, k, v: dense(q, k, v, mask, None), inputs)


def test_questions_without_an_answer_are_refused():
    one = jnp.zeros((1, 4), int)
    q, k = jnp.zeros((1, 4, HEADS, DIM)), jnp.zeros((1, 4, KV_HEADS, DIM))
    with pytest.raises(ValueError, match="a bias or a soft cap"):
        attention(q, k, k, Visible(one), scale=1.0, soft_cap=2.0, bias=TableBias(jnp.zeros((HEADS, 9))))
    shared = Visible(one, prompt_lengths=jnp.ones(1, int), branches=(2, 1))
    with pytest.raises(ValueError, match="keys of their own"):
        attention(q, None, None, shared, scale=1.0)
    with pytest.raises(ValueError, match="are causal"):
        Visible(one, prompt_lengths=jnp.ones(1, int), branches=(2, 1), causal=False)
