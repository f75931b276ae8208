"""Matmuls of rows that lie in groups, one behind the other, each group with a kernel of its own.

What is computed is the rows' own kernels, whatever the sizes of the groups, which only the data tell. On TPU the
compiler has a kernel for it behind `jax.lax.ragged_dot`, but none for the gradient of the kernels, which it would mask:
that is Megablox's (MegaBlocks, arXiv 2211.15841), which JAX ships. Elsewhere `ragged_dot` multiplies every row with
every kernel; in its place a loop takes the groups that have rows, in blocks of rows of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

Array = jax.Array
LEAST_BLOCK, GREATEST_BLOCK = 8, 128
_COLUMNS = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
"""[M,D] and [E,D,F] -> [M,F]."""
_ROWS = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
"""[M,F] and [E,D,F] -> [M,D]."""
_TILE = 1024  # columns of a kernel's gradient that are summed at once, each way


@jax.custom_vjp
def grouped_matmul(x: Array, kernels: Array, sizes: Array) -> Array:
    """out[i] = x[i] @ kernels[e], e the group of row i.

    Args:
      x: [M,D], the rows of group 0 first, then those of group 1, and so on. kernels: [E,D,F] of the same dtype.
      sizes: int32[E], how many rows each group has; they add up to M, and any of them may be 0.

    Returns:
      [M,F] in the dtype of x, summed in at least float32. Groups without rows get a gradient of 0.
    """
    return lax.platform_dependent(x, kernels, sizes, tpu=_ragged, default=_looped)


def _forward(x: Array, kernels: Array, sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return grouped_matmul(x, kernels, sizes), (x, kernels, sizes)


def _backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, None]:
    x, kernels, sizes = saved
    d_x = lax.platform_dependent(
        gradient, kernels, sizes,
        tpu=partial(_ragged, numbers=_ROWS), default=partial(_looped, transposed=True),
    )  # fmt: skip
    d_kernels = lax.platform_dependent(x, gradient, sizes, tpu=_megablox, default=_summed)
    return d_x, d_kernels, None


grouped_matmul.defvjp(_forward, _backward)


def _ragged(x: Array, y: Array, sizes: Array, numbers: lax.RaggedDotDimensionNumbers = _COLUMNS) -> Array:
    return lax.ragged_dot_general(x, y, sizes, numbers)  # whose kernel sums in float32 and writes what it was given


def _megablox(x: Array, gradient: Array, sizes: Array) -> Array:
    """`_summed` on TPU; rows are filled up to whole tiles, and a tile with rows of two groups is computed for both."""
    tile = 256 if len(x) >= 1024 * len(sizes) else 128
    x, gradient = (jnp.pad(one, ((0, -len(x) % tile), (0, 0))) for one in (x, gradient))
    tiling = (tile, min(_TILE, x.shape[1]), min(_TILE, gradient.shape[1]))
    return tgmm(x.T, gradient, sizes, x.dtype, tiling)


def _looped(x: Array, kernels: Array, sizes: Array, transposed: bool = False) -> Array:
    """Blocks of rows times their group's kernel; the next group's rows in a group's last block are written again by
    that one."""
    block, contracted = _block(x, sizes), int(transposed)
    filled = jnp.pad(x, ((0, block), (0, 0)))
    out = jnp.zeros((len(filled), kernels.shape[1 if transposed else 2]), x.dtype)

    def group(number: Array, start: Array, size: Array, out: Array) -> Array:
        kernel = lax.dynamic_index_in_dim(kernels, number, keepdims=False)

        def one(i: Array, out: Array) -> Array:
            at = start + i * block
            rows = lax.dynamic_slice_in_dim(filled, at, block)
            product = lax.dot_general(
                rows, kernel, (((1,), (contracted,)), ((), ())), preferred_element_type=_wide(x)
            ).astype(x.dtype)  # fmt: skip
            return lax.dynamic_update_slice_in_dim(out, product, at, 0)

        return lax.fori_loop(0, -(-size // block), one, out)

    return _groups(sizes, group, out)[: len(x)]


def _summed(x: Array, gradient: Array, sizes: Array) -> Array:
    """[M,D] and [M,F] -> [E,D,F], for each group the sum of its rows' outer products."""
    block, wide = _block(x, sizes), _wide(x)
    filled, gradients = (jnp.pad(one, ((0, block), (0, 0))) for one in (x, gradient))
    out = jnp.zeros((len(sizes), x.shape[1], gradient.shape[1]), x.dtype)

    def group(number: Array, start: Array, size: Array, out: Array) -> Array:
        def one(i: Array, total: Array) -> Array:
            at = i * block
            rows, errors = (lax.dynamic_slice_in_dim(of, start + at, block) for of in (filled, gradients))
            rows = jnp.where((jnp.arange(block, dtype=sizes.dtype) + at < size)[:, None], rows, 0)
            return total + lax.dot_general(rows, errors, (((0,), (0,)), ((), ())), preferred_element_type=wide)

        total = lax.fori_loop(0, -(-size // block), one, jnp.zeros(out.shape[1:], wide))
        return lax.dynamic_update_index_in_dim(out, total.astype(out.dtype), number, 0)

    return _groups(sizes, group, out)


def _groups(sizes: Array, group: Callable[[Array, Array, Array, Any], Any], out: Any) -> Any:
    """`group(number, start, size, out)` of each group that has rows, in order."""
    starts = jnp.cumsum(sizes) - sizes
    order = jnp.argsort(sizes == 0, stable=True).astype(sizes.dtype)

    def one(i: Array, out: Any) -> Any:
        number = order[i]
        return group(number, starts[number], sizes[number], out)

    return lax.fori_loop(0, (sizes > 0).sum(dtype=sizes.dtype), one, out)


def _block(x: Array, sizes: Array) -> int:
    """Rows of a block: a third to two thirds of a group of mean size. Smaller ones read a kernel more often, of larger
    ones more rows are the next group's."""
    wanted = max(2 * len(x) // (3 * len(sizes)), 1)
    return min(max(1 << wanted.bit_length() - 1, LEAST_BLOCK), GREATEST_BLOCK, len(x))


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
