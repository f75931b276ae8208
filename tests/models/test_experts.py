"""Routed experts against a loop over the tokens' experts; what their routers are counted to have done."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.models.config import Experts, Mlp
from fusion_jax.models.experts import balance, one_device
from fusion_jax.ops.grouped import GREATEST_BLOCK
from fusion_jax.plan.hlo import parse_shapes
from tests.quick import FAST

pytestmark = pytest.mark.usefixtures("quick_compiler")

WIDTH = 12
KINDS = {
    "two of four": Experts(4, 2, normalised=True),
    "all": Experts(3, 3, scale=2.5),
    "one of many": Experts(24, 1),
    "two of three groups": Experts(12, 3, groups=3, top_groups=2, scale=0.5),
}


def weights(mlp, seed=0):
    rng = np.random.default_rng(seed)
    count = mlp.experts.count
    shapes = {"gate": (count, WIDTH, mlp.width), "up": (count, WIDTH, mlp.width), "down": (count, mlp.width, WIDTH)}
    return (
        jnp.asarray(rng.normal(size=(WIDTH, count)), jnp.float32),
        {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()},
        jnp.asarray(rng.normal(size=(2, 9, WIDTH)), jnp.float32),
    )


def naive(mlp, router, kernels, x):
    """Every token through every expert, one after the other, by a matrix of weights that is mostly zero."""
    experts, tokens = mlp.experts, x.reshape(-1, WIDTH)
    scores = jax.nn.softmax(tokens @ router, -1)
    of_group = np.repeat(np.arange(experts.groups), experts.count // experts.groups)
    rows = []
    for row in range(len(tokens)):
        values = np.asarray(jax.lax.stop_gradient(scores[row]))
        best = np.argsort([-values[of_group == g].max() for g in range(experts.groups)], kind="stable")
        allowed = np.isin(of_group, best[: experts.top_groups])
        chosen = np.argsort(-np.where(allowed, values, -1), kind="stable")[: experts.chosen]
        weight = scores[row][chosen]
        weight = weight / weight.sum() if experts.normalised else weight
        rows.append(jnp.zeros(experts.count).at[chosen].set(weight * experts.scale))
    out = 0.0
    for e, weight in enumerate(jnp.stack(rows).T):
        hidden = jax.nn.silu(tokens @ kernels["gate"][e]) * (tokens @ kernels["up"][e])
        out += weight[:, None] * (hidden @ kernels["down"][e])
    return out.reshape(x.shape)


@pytest.mark.parametrize("name", KINDS)
def test_values_and_gradients_are_those_of_a_loop_over_experts(name):
    mlp = Mlp(8, experts=KINDS[name])
    given = weights(mlp)

    def loss(out):
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    ours = jax.jit(
        jax.value_and_grad(lambda *args: loss(one_device(mlp, *args, None)[0]), (0, 1, 2)), compiler_options=FAST
    )
    (value, found), (expected, wanted) = ours(*given), jax.value_and_grad(
        lambda *args: loss(naive(mlp, *args)), (0, 1, 2)
    )(*given)  # fmt: skip
    assert value == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(abs(b).max()))
    if name == "one of many":  # of which 18 tokens leave some without any
        untouched = ~np.asarray(found[1]["up"]).any((1, 2))
        assert untouched.sum() >= 6 and not np.asarray(wanted[1]["up"])[untouched].any()


def test_no_array_holds_every_token_at_every_expert():
    """Of a thousand tokens at 16 experts of width 64: the largest array is of the size of the chosen pairs."""
    mlp = Mlp(64, experts=Experts(16, 2))
    shapes = {"gate": (16, WIDTH, 64), "up": (16, WIDTH, 64), "down": (16, 64, WIDTH)}
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    given = (f32((WIDTH, 16)), {name: f32(shape) for name, shape in shapes.items()}, f32((1, 1000, WIDTH)))

    def loss(router, kernels, x):
        return one_device(mlp, router, kernels, x, None)[0].sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=FAST).lower(*given).compile().as_text()
    largest = max(shape.elements for shape in parse_shapes(text))
    assert 2000 * 64 <= largest <= (2000 + GREATEST_BLOCK) * 64 < 16 * 1000 * 64 / 7


def test_what_routers_are_counted_to_have_done():
    """Tokens that do not count change nothing; alike choices give a balance of `chosen`."""
    mlp = Mlp(8, experts=KINDS["two of four"])
    router, kernels, x = weights(mlp)
    counted = jnp.arange(9) < jnp.asarray([[9], [4]])
    _, routing = one_device(mlp, router, kernels, x, counted)
    other = x.at[1, 4:].set(7.0)
    for a, b in zip(routing, one_device(mlp, router, kernels, other, counted)[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert routing.tokens == 13 and routing.choices.sum() == 26
    assert routing.probabilities.sum() == pytest.approx(13, rel=1e-5)
    even = dataclasses.replace(mlp, experts=Experts(4, 4))
    assert balance(one_device(even, router, kernels, x, counted)[1]) == pytest.approx(4.0, rel=1e-5)
