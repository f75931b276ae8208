"""Orders beside the search and their curves, and what a model without blocks computes."""

from __future__ import annotations

import pytest

from fusion_jax.models.families.pruned import config_without
from fusion_jax.plan.flops import forward_flops
from fusion_jax.prune.blocks import Block
from fusion_jax.prune.orders import ORDERS, baseline, curve
from fusion_jax.prune.scoring import How, perplexity
from tests.prune.test_search import opened, read

pytestmark = pytest.mark.usefixtures("quick_compiler")
GONE = frozenset({Block("attention", 0), Block("mlp", 2), Block("attention", 3), Block("mlp", 3), Block("mlp", 5)})


def test_flops_without_blocks():
    """Of a row of T tokens: 2 a parameter of a matmul and token, 4 T^2 / 2 a head's number of attention."""
    config = opened("llama-mha-8l")[0].config
    width, mlp, tokens = 48, 128, 10
    whole, left = (forward_flops(one, 0, tokens, 1, False) for one in (config, config_without(config, GONE)))
    attention = 2 * 4 * width**2 * tokens + 4 * width * tokens**2 / 2
    assert whole - left == 2 * attention + 3 * 2 * 3 * width * mlp * tokens


def test_orders_and_their_curves():
    """Each order takes all blocks once; the golden ablations' orders are among them."""
    model, text, scorer = opened("llama-mha-8l")
    golden, order = read("llama-mha-8l", "ablations.json"), baseline(model, text, scorer, How(), 0)
    found = {name: list(order(name)) for name in ORDERS}
    for blocks in found.values():
        assert sorted(one for some in blocks for one in some) == sorted({one for some in blocks for one in some})
        assert len(frozenset().union(*blocks)) == 16
    layers = [one["chosen_layer"] for one in golden["layer_greedy"]]
    assert [next(iter(blocks)).layer for blocks in found["layers"]][: len(layers)] == layers
    bi = sorted(golden["layer_influence"], key=lambda one: one["bi"])
    assert [next(iter(blocks)).layer for blocks in found["influence"]] == [one["layer"] for one in bi]
    points = list(curve(model, text, found["one-shot"], How(), 0.2))
    assert points[0].ratio == 0 and points[-1].ratio >= 0.2 > points[-2].ratio
    for point, wanted in zip(points[1:], golden["one_shot"], strict=False):
        assert point.perplexity == pytest.approx(wanted["ppl"], rel=1e-5)
        assert 100 * point.ratio == pytest.approx(wanted["ratio_percent"])
    assert points[0].perplexity == pytest.approx(perplexity(scorer((), ()).base))
