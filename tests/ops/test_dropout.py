"""Dropout against the published masks, its statistics, and that an example's noise is its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fusion_jax.errors import InputError
from fusion_jax.ops.dropout import drop, dropout, source_dropout
from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")

(CASE,) = json.loads((Path(__file__).parents[1] / "golden" / "alirector.json").read_text())["source_dropout"]
RATE = 0.2
KEYS = jnp.asarray([3, 2**31 - 1, 0, -5], jnp.int32)


def test_golden_output_of_a_given_mask():
    noise = 1.0 - jnp.asarray(CASE["keep_mask"], jnp.float32)[:, None]
    np.testing.assert_allclose(drop(jnp.asarray(CASE["embeddings"]), noise, CASE["p"]), CASE["output"], rtol=1e-6)


def test_golden_rule_by_which_noise_keeps_a_token():
    rules = CASE["mask_rules"]
    kept = drop(jnp.ones(5), jnp.asarray(rules["noise"]), CASE["p"]) > 0
    np.testing.assert_array_equal(kept, rules["official_keep_if_noise_below_1_minus_p"])


@pytest.mark.parametrize("normal, probability", [(False, 1 - RATE), (True, CASE["official_keep_probability"])])
def test_tokens_are_kept_as_often_as_it_says(normal, probability):
    """Of 20,000 tokens, within what a binomial stays in but for 1 in 10,000; a token's vector stays or goes whole."""
    keys, x = jnp.arange(40), jnp.ones((40, 500, 3))
    out = np.asarray(source_dropout(x, keys, RATE, normal_noise=normal))
    np.testing.assert_array_equal(out, out[..., :1].repeat(3, -1))
    assert set(np.unique(out)) == {0.0, np.float32(1.25)}
    low, high = stats.binom.interval(1 - 1e-4, 20_000, probability)
    assert low <= (out[..., 0] > 0).sum() <= high


def test_entries_are_kept_as_often_as_it_says_and_independently():
    out = np.asarray(dropout(jnp.ones((8, 50, 50)), jnp.arange(8), 1, 0.1)) > 0
    low, high = stats.binom.interval(1 - 1e-4, out.size, 0.9)
    assert low <= out.sum() <= high
    for one, next_one in ((out[1:], out[:-1]), (out[:, 1:], out[:, :-1]), (out[:, :, 1:], out[:, :, :-1])):
        correlation = np.corrcoef(one.ravel(), next_one.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(one.size)


@pytest.mark.parametrize(
    "fn", [lambda x, keys: dropout(x, keys, 7, RATE), lambda x, keys: source_dropout(x, keys, RATE)]
)
def test_noise_is_an_examples_own(fn):
    """Whatever else is in the batch, in whichever order, however far it is padded."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)
    out = np.asarray(fn(x, KEYS))
    np.testing.assert_array_equal(fn(x[2:3], KEYS[2:3]), out[2:3])
    np.testing.assert_array_equal(fn(x[::-1], KEYS[::-1]), out[::-1])
    padded = jnp.pad(x, ((0, 0), (0, 9), (0, 0)))
    np.testing.assert_array_equal(fn(padded, KEYS)[:, :6], out)
    np.testing.assert_array_equal(fn(x, KEYS.astype(jnp.uint32)), out)
    assert not (np.asarray(fn(x, KEYS + 1)) == out).all()


@pytest.mark.slow
def test_noise_is_the_same_on_eight_devices():
    script = str(Path(__file__).with_name("sharded_ops.py"))
    assert json.loads(finished([script, "dropout"], os.environ | virtual_devices(8))) == [True, True]


def test_a_tag_may_be_a_layers_number_in_a_scan():
    x, tags = jnp.ones((4, 6, 5)), jnp.arange(3)
    scanned = jax.lax.scan(lambda _, tag: (None, dropout(x, KEYS, tag, RATE)), None, tags)[1]
    apart = np.stack([dropout(x, KEYS, tag, RATE) for tag in range(3)])
    np.testing.assert_array_equal(scanned, apart)
    assert not (apart[0] == apart[1]).all() and not (apart[1] == apart[2]).all()


def test_gradients_pass_where_entries_are_kept():
    x = jnp.ones((4, 6, 5))
    out, gradient = dropout(x, KEYS, 1, RATE), jax.grad(lambda x: dropout(x, KEYS, 1, RATE).sum())(x)
    np.testing.assert_array_equal(gradient, out)


def test_bfloat16_is_scaled_before_it_is_rounded():
    """1 / 0.9 itself would be rounded by 0.15 %."""
    x = jnp.full((1, 200), 0.9, jnp.bfloat16)
    out = dropout(x, KEYS[:1], 1, 0.1)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out[out > 0].astype(jnp.float32), np.float32(jnp.bfloat16(np.float32(x[0, 0]) / 0.9)))


def test_rates():
    x = jnp.ones((4, 6, 5))
    assert dropout(x, KEYS, 1, 0.0) is x and source_dropout(x, KEYS, 0.0, normal_noise=True) is x
    for rate in (1.0, -0.1):
        with pytest.raises(InputError, match="rate"):
            dropout(x, KEYS, 1, rate)
        with pytest.raises(InputError, match="rate"):
            source_dropout(x, KEYS, rate)
