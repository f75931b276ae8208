"""Whatever the backward pass keeps, the gradient is the same, with either kernel of attention, whose inputs and
results some policies name."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.models.decoder import forward
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params
from fusion_jax.ops.remat import Remat

pytestmark = pytest.mark.usefixtures("quick_compiler")

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 32,
    "initializer_range": 0.3,
})  # fmt: skip


def gradient(remat, kernel):
    params = init_params(CONFIG, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 20), 0, 32)
    toward = jax.random.normal(jax.random.key(2), (2, 20, 16))

    def loss(params):
        return (forward(params, CONFIG, tokens, remat=remat, kernel=kernel) * toward).sum()

    return jax.device_get(jax.jit(jax.grad(loss))(params))


@pytest.fixture(scope="module")
def kept():
    return gradient("none", "xla")


@pytest.mark.parametrize(("remat", "kernel"), [
    ("full", "xla"), ("dots", "splash-interpreted"),
    *(pytest.param(remat, "xla", marks=pytest.mark.slow) for remat in get_args(Remat) if remat not in ("none", "full")),
    *(pytest.param(remat, "splash-interpreted", marks=pytest.mark.slow) for remat in ("attention", "qkv")),
])  # fmt: skip
def test_same_gradient(remat, kernel, kept):
    for ours, theirs in zip(jax.tree.leaves(gradient(remat, kernel)), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * float(jnp.abs(theirs).max()))
