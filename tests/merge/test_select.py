"""Selection without a sort against a stable sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.merge.methods.select import kth_smallest, largest, smallest

pytestmark = pytest.mark.usefixtures("quick_compiler")

EDGES = [-np.inf, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1e-38, 1.0, np.finfo(np.float32).max, np.inf]


def drawn(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(len(shape))
    values = rng.normal(size=shape).astype(np.float32)
    if kind == "tied":
        return np.abs(np.round(values * 2))
    if kind == "edges":
        return rng.choice(np.asarray(EDGES, np.float32), shape)
    return np.zeros(shape, np.float32) if kind == "zero" else values


def mask_of(order: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(int(np.prod(shape)), bool)
    mask[order] = True
    return mask.reshape(shape)


@pytest.mark.parametrize("kind", ["random", "tied", "edges", "zero"])
@pytest.mark.parametrize("shape", [(1,), (97,), (12, 35), (5, 1), (3, 4, 10)])
def test_selection_is_a_stable_sort(kind, shape):
    values = drawn(kind, shape)
    flat = values.ravel()
    up, down = np.argsort(flat, kind="stable"), np.argsort(-flat, kind="stable")
    n = flat.size
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        np.testing.assert_array_equal(jax.jit(largest)(values, k), mask_of(down[:k], shape))
        np.testing.assert_array_equal(jax.jit(smallest)(values, k), mask_of(up[:k], shape))
        if k < n:
            assert jax.jit(kth_smallest)(values, k) == flat[up[k]]


def test_another_k_compiles_nothing():
    select = jax.jit(lambda values, k: largest(values, k))
    found = [int(select(jnp.arange(50.0), np.uint32(k)).sum()) for k in (3, 40)]
    assert found == [3, 40] and select._cache_size() == 1
