"""A pruned model as it trains: the same numbers as the search sees, no parameter of what is gone, and the way back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.models.decoder import forward, head_kernel
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import numbers_of, parameter_specs
from fusion_jax.plan.flops import forward_flops
from fusion_jax.prune.apart import apart, pruned_config, put_back
from fusion_jax.prune.blocks import Block, parameters_of
from fusion_jax.prune.export import served
from fusion_jax.prune.orders import ORDERS, baseline, curve
from fusion_jax.prune.scoring import How, Text, perplexity, score
from tests.prune.test_search import opened, read
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")
GONE = frozenset({Block("attention", 0), Block("mlp", 2), Block("attention", 3), Block("mlp", 3), Block("mlp", 5)})
GEMMA = {
    "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 6, "sliding_window": 5,
    "query_pre_attn_scalar": 16, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip


def losses(model: Model, rows: np.ndarray) -> np.ndarray:
    """float[R], of all positions, by the whole model's own forward pass."""
    hidden = forward(model.params, model.config, jnp.asarray(rows))
    logits = hidden @ head_kernel(model.params, model.config).T
    if cap := model.config.head.soft_cap:
        logits = cap * jnp.tanh(logits / cap)
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    return -np.take_along_axis(np.asarray(logprobs), rows[:, 1:, None], -1)[..., 0].mean(1)


@pytest.mark.parametrize("name", ["llama-mha-8l", "gemma2"])
def test_a_model_without_its_blocks(name):
    """Windows by layer among them. Trained, it goes back to its places, and is served as it was trained."""
    model = small_model(**GEMMA) if name == "gemma2" else opened(name)[0]
    rows = np.random.default_rng(0).integers(3, 250, (2, 20)).astype(np.int32)
    small = apart(model, GONE)
    assert sum(x.size for x in jax.tree.leaves(small.params)) == parameters_of(model.config, GONE)
    assert numbers_of(parameter_specs(small.config)) == parameters_of(model.config, GONE)
    expected = score(model.params, model.config, Text(rows), GONE, ()).base
    np.testing.assert_allclose(losses(small, rows), expected, rtol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, put_back(small, model, GONE).params, model.params)
    moved = Model(small.config, jax.tree.map(lambda x: 1.1 * x, small.params))
    again = served(put_back(moved, model, GONE), GONE)
    np.testing.assert_allclose(losses(again, rows), losses(moved, rows), rtol=2e-6)
    assert abs(losses(moved, rows) - expected).max() > 1e-3


def test_flops_without_blocks():
    """Of a row of T tokens: 2 a parameter of a matmul and token, 4 T^2 / 2 a head's number of attention."""
    config = opened("llama-mha-8l")[0].config
    width, mlp, tokens = 48, 128, 10
    whole, left = (forward_flops(one, 0, tokens, 1, False) for one in (config, pruned_config(config, GONE)))
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
