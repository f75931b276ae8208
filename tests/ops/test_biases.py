"""Biases of scores by positions against formulas written out for one pair at a time, and transformers' T5 and MPT."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from fusion_jax.ops.biases import Alibi, Bucketed


@pytest.mark.parametrize("heads", [1, 8, 12, 40])
def test_alibi_is_that_of_mpt_but_for_a_number_a_query(heads):
    """MPT's bias is that of the last query; a softmax does not see the difference."""
    places = jnp.arange(9)
    ours = np.asarray(Alibi(heads)(places[:, None], places[None, :]))
    theirs = build_mpt_alibi_tensor(heads, 9).numpy()
    theirs = theirs.reshape(heads, 1, 9) - theirs.reshape(heads, 1, 9)[:, :, :1]
    np.testing.assert_allclose(ours - ours[:, :, :1], np.broadcast_to(theirs, ours.shape), rtol=1e-6, atol=1e-6)
    assert (np.diagonal(ours, axis1=1, axis2=2) == 0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20)])
def test_buckets_are_those_of_t5(causal, buckets, distance):
    places = np.arange(300)
    table = np.random.default_rng(0).normal(size=(buckets, 3)).astype(np.float32)
    ours = Bucketed(jnp.asarray(table), distance, causal)(places[:, None], places[None, :])
    relative = torch.tensor(places[None, :] - places[:, None])
    found = T5Attention._relative_position_bucket(relative, not causal, buckets, distance).numpy()
    np.testing.assert_array_equal(np.asarray(ours), np.moveaxis(table[found], -1, 0))
