"""Dropout whose noise belongs to an example: the same in any batch, on any devices, at any padding behind it.

Every example brings one integer, its noise key. The noise of x[b,t] depends on that key, a tag, the place t and the
sizes of the axes behind it, so that neither the other examples nor padding behind an example change it. Padding before
a token does: rows behind a prompt that is padded to its batch's longest are drawn by their place in the joined row.
Another step of training means other keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError

Array = jax.Array
SOURCE = 0x736F7572  # the tag of source dropout, far from the numbers of layers


def dropout(x: Array, keys: Array, tag: Array | int, rate: float) -> Array:
    """x with each entry kept with probability 1 - rate and divided by it, 0 otherwise.

    Args:
      x: float[B,...]; keys: int32 or uint32[B], the examples' noise keys.
      tag: where in the model this is, an int or an integer array (), for instance a layer's number inside a scan.
      rate: at least 0 and below 1; 0 leaves x as it is.

    Raises:
      InputError: a rate out of range.
    """
    _check(rate)
    return x if rate == 0 else drop(x, _noise(keys, tag, x.shape[1:], normal=False), rate)


def source_dropout(
    embeddings: Array, keys: Array, rate: float, *, normal_noise: bool = False, tag: Array | int = SOURCE
) -> Array:
    """Token embeddings of an encoder's input [B,S,D], each token's whole vector kept with probability 1 - rate and
    divided by it, 0 otherwise (Alirector, arXiv 2402.04601).

    It comes before positions and norms, and counts the tokens that mark beginning and end, and padding, like others.

    Args:
      keys, rate: see `dropout`.
      normal_noise: as the published code does it, which compares normal instead of uniform noise with 1 - rate: a token
        is then kept with probability Phi(1 - rate), 0.788 for a rate of 0.2, and still divided by 1 - rate.
    """
    _check(rate)
    if rate == 0:
        return embeddings
    return drop(embeddings, _noise(keys, tag, embeddings.shape[1:2], normal=normal_noise)[..., None], rate)


def drop(x: Array, noise: Array, rate: float) -> Array:
    """x / (1 - rate) where noise < 1 - rate, 0 elsewhere; the noise broadcasts to x. Computed in at least float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(noise < 1.0 - rate, wide * (1.0 / (1.0 - rate)), 0.0).astype(x.dtype)


def _noise(keys: Array, tag: Array | int, shape: tuple[int, ...], *, normal: bool) -> Array:
    """float32[B,*shape]: uniform in [0, 1), or standard normal."""
    draw = jax.random.normal if normal else jax.random.uniform

    def of(key: Array) -> Array:
        folded = jax.random.fold_in(jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), key), tag)
        return draw(folded, shape, jnp.float32)

    return jax.vmap(of)(keys)


def _check(rate: float) -> None:
    if not 0 <= rate < 1:
        raise InputError(f"{rate} is out of range", field="rate", cure="Give at least 0 and less than 1")
