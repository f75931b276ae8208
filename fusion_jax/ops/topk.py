"""The largest entries of long rows, exactly, without sorting the rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_BLOCK = 128


def largest(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row of x [R,V] and their places, both [R,k], as `lax.top_k` gives them: by falling value,
    equal ones by rising place.

    They lie in the k blocks of 128 entries whose maxima are largest; only those are looked through.
    """
    rows, size = x.shape
    blocks = -(-size // _BLOCK)
    if blocks <= 2 * k:
        values, places = lax.top_k(x, k)
        return values, places
    padded = jnp.pad(x, ((0, 0), (0, blocks * _BLOCK - size)), constant_values=-jnp.inf).reshape(rows, blocks, _BLOCK)
    chosen = jnp.sort(lax.top_k(padded.max(-1), k)[1], -1)  # by rising place, so that equals keep their order
    values, places = lax.top_k(jnp.take_along_axis(padded, chosen[:, :, None], 1).reshape(rows, -1), k)
    return values, jnp.take_along_axis(chosen, places // _BLOCK, 1) * _BLOCK + places % _BLOCK
