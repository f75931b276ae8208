"""Grouped matmuls and their gradients against a loop over the groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.ops.grouped import grouped_matmul
from tests.quick import FAST

pytestmark = pytest.mark.usefixtures("quick_compiler")


def looped(x, kernels, sizes):
    ends = np.cumsum(sizes)
    return jnp.concatenate([x[end - size : end] @ kernel for kernel, size, end in zip(kernels, sizes, ends)])


@pytest.mark.parametrize("sizes", [[5, 0, 17, 0, 1], [0, 0, 40], [2], [1, 1, 0, 1], [300, 7]], ids=str)
def test_values_and_gradients(sizes):
    """Groups without rows, of less than a block, of several."""
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=(sum(sizes), 6)), rng.normal(size=(len(sizes), 6, 5))
    x, kernels, wanted = (jnp.asarray(a, jnp.float32) for a in (x, kernels, rng.normal(size=(sum(sizes), 5))))

    def both(multiply):
        def loss(x, kernels):
            out = multiply(x, kernels)
            return (out * wanted).sum(), out

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=FAST)(x, kernels)

    found = both(lambda x, kernels: grouped_matmul(x, kernels, jnp.asarray(sizes, jnp.int32)))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(both(lambda x, k: looped(x, k, sizes)))):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(abs(theirs).max()))


def test_half_precision_sums_in_float32():
    rng = np.random.default_rng(1)
    x, kernels = rng.normal(size=(64, 512)), rng.normal(size=(2, 512, 8))
    x, kernels = (jnp.asarray(a, jnp.bfloat16) for a in (x, kernels))
    out = grouped_matmul(x, kernels, jnp.asarray([40, 24], jnp.int32))
    exact = looped(x.astype(jnp.float32), kernels.astype(jnp.float32), [40, 24])
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.01 * float(abs(exact).max()))
