"""Exact selection of the largest or smallest values of a whole tensor, without sorting it.

The bits of float32 numbers are, but for the sign, ordered as the numbers are, so a threshold is found by counting:
sixteen passes settle two bits each. Equal values are taken in the order of their flat index, as a stable sort takes
them. Only counts cross the devices of a sharded tensor (merge specification, sections 6 and 12).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.merge.methods.sums import counts, row_counts

Array = jax.Array
U = jnp.uint32
SIGN = np.uint32(1 << 31)  # of NumPy: an import takes no device


def largest(values: Array, k: Array | int) -> Array:
    """bool[...]: the k largest of float32[...] values (of one axis or more), of equal ones those of lowest flat index.

    k: uint32 scalar from 0 to the number of values (less than 2**32), which may be traced.
    """
    return _take(_ascending(values), jnp.asarray(k, U))


def smallest(values: Array, k: Array | int) -> Array:
    """bool[...]: the k smallest values, the other end of `largest`; equal values go by lowest flat index here too."""
    return _take(~_ascending(values), jnp.asarray(k, U))


def kth_smallest(values: Array, index: Array | int) -> Array:
    """float32 scalar: sorted(values)[index] of float32[...] values; index: uint32 scalar, which may be traced."""
    key = ~_threshold(~_ascending(jnp.atleast_1d(values)), jnp.asarray(index, U) + U(1))
    return jax.lax.bitcast_convert_type(jnp.where(key < SIGN, ~key, key - SIGN), jnp.float32)


def _ascending(values: Array) -> Array:
    """uint32[...] keys in the order of the values; both zeros have one key."""
    bits = jax.lax.bitcast_convert_type(values, U)
    return jnp.where(bits <= SIGN, bits | SIGN, ~bits)


def _take(keys: Array, k: Array) -> Array:
    threshold = _threshold(keys, k)
    above, reaching = counts(keys > threshold, keys >= threshold)

    def settle_ties() -> Array:
        return (keys > threshold) | _first(keys == threshold, k - above)

    return jax.lax.cond(reaching == k, lambda: keys >= threshold, settle_ties)


def _threshold(keys: Array, k: Array) -> Array:
    """The k-th largest of uint32[...] keys: the greatest number that at least k of them reach."""

    def settle(i: Array, found: Array) -> Array:
        step = U(1) << (U(30) - 2 * i.astype(U))
        reached = counts(*(keys >= found + U(j) * step for j in (1, 2, 3)))
        return found + step * sum((n >= k).astype(U) for n in reached)

    return jax.lax.fori_loop(0, 16, settle, U(0))


def _first(candidates: Array, k: Array) -> Array:
    """bool[...]: the first k of the candidates by flat index: those of whole rows, then those that begin a row."""
    rows = candidates.reshape(-1, candidates.shape[-1])
    of_row = jax.lax.optimization_barrier(row_counts(rows))
    whole = jnp.cumsum(of_row, dtype=U) <= k
    split = (jnp.arange(len(rows)) == whole.sum())[:, None]
    left = k - jnp.where(whole, of_row, U(0)).sum(dtype=U)
    begun = jax.lax.optimization_barrier((rows & split).any(0))
    first = jax.lax.optimization_barrier(begun & (jnp.cumsum(begun, dtype=U) <= left))
    return jnp.where(split, first, rows & whole[:, None]).reshape(candidates.shape)
