"""ALiBi where keys lie in more than one place: shared prompts, rows with branches, several query blocks; float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.models.blocks import bias_of
from fusion_jax.models.config import Attention, Mlp, ModelConfig, Positions, Stack
from fusion_jax.ops.attention import attention
from fusion_jax.ops.kernels import ContextPart, Visible

pytestmark = pytest.mark.usefixtures("quick_compiler")

HEADS, DIM, SCALE = 6, 4, 0.4
SLOPES = np.asarray([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])  # of 4 heads, and two of those of 8
STACK = Stack(1, Attention(HEADS, HEADS, DIM), Mlp(8))
BIAS = bias_of(ModelConfig("none", 8, 8, Positions(256, (), "alibi"), (STACK,)), STACK, None)


def drawn(*shapes):
    rng = np.random.default_rng(len(shapes))
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def plain(q, k, v, queries, keys, mask):
    """One softmax over q k scale - slope (place of the query - place of the key) where mask [B,T,S] allows."""
    apart = jnp.asarray(queries)[:, None, :, None] - jnp.asarray(keys)[:, None, None, :]
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * SCALE - SLOPES[:, None, None] * apart
    weights = jax.nn.softmax(jnp.where(jnp.asarray(mask)[:, None], scores, -jnp.inf), -1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def assert_same(ours, theirs, inputs):
    """Values, and gradients of a fixed projection of them."""
    toward = drawn(jax.eval_shape(theirs, *inputs).shape)[0]
    (out, found), (wanted, expected) = (
        jax.jit(lambda *x, f=f: (f(*x), jax.vjp(f, *x)[1](toward)))(*inputs) for f in (ours, theirs)
    )
    np.testing.assert_allclose(out, wanted, atol=1e-12)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


def test_behind_a_shared_prompt(x64):
    """Rows of two query blocks; two rows read each of two prompts, of 6 and 4 tokens."""
    size, tokens, lengths = 6, 70, np.asarray([6, 4])
    inputs = drawn(*[(4, tokens, HEADS, DIM)] * 3, *[(2, size, HEADS, DIM)] * 2)
    positions = np.repeat(lengths, 2)[:, None] + np.arange(tokens)
    places = np.broadcast_to(np.arange(size), (2, size))
    keys = np.concatenate([np.repeat(places, 2, 0), positions], 1)
    exists = np.concatenate([np.repeat(places < lengths[:, None], 2, 0), np.ones((4, tokens), bool)], 1)
    mask = (positions[:, :, None] >= keys[:, None, :]) & exists[:, None]

    def ours(q, k, v, pk, pv):
        part = ContextPart(*(jnp.swapaxes(x, 1, 2) for x in (pk, pv)), jnp.asarray(places), jnp.asarray(lengths))
        return attention(q, k, v, Visible(jnp.asarray(positions)), scale=SCALE, bias=BIAS, context=(part,))

    def theirs(q, k, v, pk, pv):
        k, v = (jnp.concatenate([jnp.repeat(p, 2, 0), x], 1) for p, x in ((pk, k), (pv, v)))
        return plain(q, k, v, positions, keys, mask)

    assert_same(ours, theirs, inputs)


def test_continuations_of_one_prompt(x64):
    """A row of a prompt of 12 tokens, of which 9 exist, and two continuations of 5: distances skip what is between."""
    size, count, rest, length = 12, 2, 5, 9
    inputs = drawn(*[(1, size + count * rest, HEADS, DIM)] * 3)
    branch = np.concatenate([np.full(size, -1), np.repeat(np.arange(count), rest)])
    inside = np.concatenate([np.arange(size), np.tile(np.arange(rest), count)])
    positions = np.where(branch < 0, inside, length + inside)[None]
    mask = (branch[:, None] == branch) & (inside[:, None] >= inside)
    mask |= (branch[:, None] >= 0) & (branch < 0) & (inside < length)

    def ours(q, k, v):
        seen = Visible(jnp.asarray(positions), prompt_lengths=jnp.asarray([length]), branches=(size, count))
        return attention(q, k, v, seen, scale=SCALE, bias=BIAS)

    assert_same(ours, lambda q, k, v: plain(q, k, v, positions, positions, mask[None]), inputs)
