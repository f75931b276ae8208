"""Kernels as int8 with one scale an output: half the bytes of bfloat16, to hold and to read for every token.

w ~ values * scale with scale = max |w| / 127 over the inputs of an output, rounded to bfloat16, and values the nearest
whole numbers. A product is (x @ values) * scale, where x has few rows, or x @ (values * scale). Values and scales are
exact in bfloat16; their products are rounded as every weight in bfloat16 is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
LARGEST = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A kernel [...,D,F] that stands where an array would. values: int8[...,D,F]; scale: float32[...,1,F]: every layer,
    and every expert of a layer, has scales of its own."""

    values: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    @property
    def size(self) -> int:
        return int(self.values.size)

    def astype(self, dtype: Any) -> Array:
        """The kernel in a floating dtype: a copy of all of it, for what cannot multiply by `times`."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


def is_int8(x: Any) -> bool:
    """Whether a node of parameters is a kernel in int8."""
    return isinstance(x, Int8)


def holds_int8(params: Any) -> bool:
    """Whether any of the parameters is."""
    return any(map(is_int8, jax.tree.leaves(params, is_leaf=is_int8)))


def rounded(kernel: np.ndarray) -> Int8:
    """A kernel [...,D,F] in int8, on the host.

    >>> print(rounded(np.asarray([[1.0, 0.0], [-4.0, 0.0]])).values.tolist())
    [[32, 0], [-127, 0]]
    """
    wide = kernel.astype(np.float32)
    scale = (np.abs(wide).max(-2, keepdims=True) / LARGEST).astype(jnp.bfloat16).astype(np.float32)
    return Int8(np.rint(wide / np.where(scale == 0, 1, scale)).astype(np.int8), scale)


def times(x: Array, kernel: Array | Int8, dtype: Any) -> Array:
    """x [N,D] @ kernel [D,F] in `dtype`."""
    if not isinstance(kernel, Int8):
        return x @ kernel.astype(dtype)
    values, scale = kernel.values.astype(dtype), kernel.scale.astype(dtype)
    if x.shape[0] < kernel.shape[0]:  # the scale on what has fewer numbers, the result or the kernel
        return (x @ values) * scale
    return x @ (values * scale)
