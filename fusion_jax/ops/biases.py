"""What is added to the scores of a query and a key by their distance, in place of a rotary embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def alibi_slopes(heads: int) -> np.ndarray:
    """float32[H]: 2^(-8 i / n) for i = 1..n where n heads are a power of two; otherwise those of the largest such n,
    and then every second one of those of 2 n (Press et al., arXiv 2108.12409)."""
    whole = 2 ** math.floor(math.log2(heads))

    def slopes(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 * np.arange(1, count + 1) / count)

    return np.concatenate([slopes(whole), slopes(2 * whole)[::2][: heads - whole]]).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alibi:
    """-slope of the head * distance, float32."""

    heads: int = field(metadata={"static": True})

    def __call__(self, queries: Array, keys: Array) -> Array:
        """float32[H,*S] of positions of queries and of keys, int arrays that broadcast to a shape S."""
        distance = (queries - keys).astype(jnp.float32)
        slopes = jnp.asarray(alibi_slopes(self.heads)).reshape(-1, *(1,) * distance.ndim)
        return -slopes * distance


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bucketed:
    """A learned number for each range of distances and head (T5, arXiv 1910.10683, section 2.1).

    Half of the ranges hold one distance each; those of the other half grow logarithmically up to `distance`, beyond
    which all share the last. Without causality one half of the table is for keys behind the query.

    table: float[buckets,H].
    """

    table: Array
    distance: int = field(metadata={"static": True})
    causal: bool = field(metadata={"static": True})

    def __call__(self, queries: Array, keys: Array) -> Array:
        """float[H,*S] of positions of queries and of keys, int arrays that broadcast to a shape S."""
        relative = queries - keys
        buckets = self.table.shape[0] if self.causal else self.table.shape[0] // 2
        exact = buckets // 2
        first = 0 if self.causal else jnp.where(relative < 0, buckets, 0)
        far = jnp.maximum(relative, 0) if self.causal else jnp.abs(relative)
        ratio = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(self.distance / exact)
        large = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
        found = first + jnp.where(far < exact, far, large)
        return jnp.moveaxis(self.table[found], -1, 0)


Bias = Alibi | Bucketed
"""A bias of scores by positions; what it learned is a leaf of the pytree that it is."""
