"""The largest entries of rows, as `lax.top_k` gives them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import lax

from fusion_jax.ops.topk import largest


@pytest.mark.parametrize(("size", "k"), [(5, 5), (128, 3), (1000, 3), (2500, 7)])
def test_the_same_as_a_whole_sort_with_equal_entries_in_their_order(size, k):
    x = np.random.default_rng(0).integers(0, 40, (6, size)).astype(np.float32)  # most entries have equals
    x[1] = -np.inf
    x[2, : size - 2] = -np.inf
    x[3] = np.random.default_rng(1).standard_normal(size)
    for ours, theirs in zip(jax.jit(largest, static_argnums=1)(x, k), lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)
