"""How much a block changes the residual stream: cheap scores that a search is compared with, and can be without."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.prune.blocks import Block
from fusion_jax.prune.scoring import How, states_of

Array = jax.Array


class Influence(NamedTuple):
    """Means over all tokens of the text.

    blocks: 1 - cos(x, x + f(x)) of each block (ShortGPT, arXiv 2403.03853); layers: the same of each whole layer;
    magnitude: |f(x)| / |x + f(x)| of each block; angles: arccos(cos) / pi of each layer (arXiv 2403.17887).
    """

    blocks: dict[Block, float]
    layers: list[float]
    magnitude: dict[Block, float]
    angles: list[float]


def influence(params: Params, config: ModelConfig, tokens: np.ndarray, how: How = How()) -> Influence:
    """Of every block and layer on rows int[R,T]."""
    blocks: dict[Block, float] = {}
    magnitude: dict[Block, float] = {}
    layers, angles, first = [], [], None
    for block, before, after in states_of(params, config, tokens, how):
        similar, share, _ = map(float, _compared(before, after))
        blocks[block], magnitude[block] = 1.0 - similar, share
        if block.part == "attention":
            first = before
        else:
            assert first is not None
            whole, _, angle = map(float, _compared(first, after))
            layers.append(1.0 - whole)
            angles.append(angle)
    return Influence(blocks, layers, magnitude, angles)


@jax.jit
def _compared(before: Array, after: Array) -> tuple[Array, Array, Array]:
    """Means of cos(before, after), of |after - before| / |after| and of the angle between them over pi."""
    one, other = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (before, after))
    lengths = jnp.linalg.norm(one, axis=-1), jnp.linalg.norm(other, axis=-1)
    cosine = (one * other).sum(-1) / (lengths[0] * lengths[1])
    share = jnp.linalg.norm(other - one, axis=-1) / lengths[1]
    return cosine.mean(), share.mean(), (jnp.arccos(jnp.clip(cosine, -1, 1)) / jnp.pi).mean()
