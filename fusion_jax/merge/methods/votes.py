"""The vote on signs: at each position the models that agree with the sign of the sum over models win."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fusion_jax.merge.methods.arithmetic import Round
from fusion_jax.merge.methods.sums import counts, total

Array = jax.Array


def winners(votes: Sequence[Array], rounded: Round) -> list[Array]:
    """K bool[...]: entries of the sign of the sum over models, in which 0 counts as positive; no zero wins."""
    positive = rounded(total(votes)) >= 0
    return [jnp.where(positive, v > 0, v < 0) for v in votes]


def erased(votes: Sequence[Array], stays: Sequence[Array]) -> Array:
    """float32[K]: the share of nonzero entries of K task vectors float32[...] that do not stay; no zero stays."""
    nonzero, staying = jnp.asarray([counts(v != 0, s) for v, s in zip(votes, stays, strict=True)]).T
    return (nonzero - staying) / jnp.maximum(nonzero, 1)
