"""How much a block changes the residual stream: cheap scores that a search is compared with, and can be without."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.prune.blocks import Block
from fusion_jax.prune.scoring import How, Text, states_of
from fusion_jax.sharding import data_ways, padded_rows, placed

Array = jax.Array


class Influence(NamedTuple):
    """Means over the tokens of a text, its padding left out.

    blocks: 1 - cos(x, x + f(x)) of each block (ShortGPT, arXiv 2403.03853); layers: the same of each whole layer;
    magnitude: |f(x)| / |x + f(x)| of each block; angles: arccos(cos) / pi of each layer (arXiv 2403.17887).
    """

    blocks: dict[Block, float]
    layers: list[float]
    magnitude: dict[Block, float]
    angles: list[float]


def influence(params: Params, config: ModelConfig, text: Text, how: How = How()) -> Influence:
    """Of every block and layer, `how.rows` rows of the text at once."""
    mesh, rows = how.compute.mesh, padded_rows(how.rows, data_ways(how.compute.mesh))
    sums: dict[Block | int, np.ndarray] = {}
    count = 0.0
    for start in range(0, len(text.rows), rows):
        some, own = text.part(start, rows)
        ends = np.full(rows, some.rows.shape[1]) if some.lengths is None else some.lengths
        real = (np.arange(some.rows.shape[1]) < ends[:, None]) & (np.arange(rows) < own)[:, None]
        weights, count = placed(real, mesh, ("batch", "tokens")), count + real.sum()
        first = None
        for block, before, after in states_of(params, config, some.rows, how):
            first = before if block.part == "attention" else first
            sums[block] = sums.get(block, 0.0) + np.asarray(_compared(before, after, weights), np.float64)
            if block.part == "mlp":
                sums[block.layer] = sums.get(block.layer, 0.0) + np.asarray(
                    _compared(first, after, weights), np.float64
                )
    means = {key: value / count for key, value in sums.items()}
    blocks = {key: value for key, value in means.items() if isinstance(key, Block)}
    layers = [value for key, value in means.items() if not isinstance(key, Block)]
    return Influence(
        {block: float(1.0 - similar) for block, (similar, _, _) in blocks.items()},
        [float(1.0 - similar) for similar, _, _ in layers],
        {block: float(share) for block, (_, share, _) in blocks.items()},
        [float(angle) for _, _, angle in layers],
    )


@jax.jit
def _compared(before: Array, after: Array, weights: Array) -> Array:
    """float[3], weighted sums of cos(before, after), of |after - before| / |after| and of the angle between over pi."""
    one, other = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (before, after))
    lengths = jnp.linalg.norm(one, axis=-1), jnp.linalg.norm(other, axis=-1)
    cosine = (one * other).sum(-1) / (lengths[0] * lengths[1])
    share = jnp.linalg.norm(other - one, axis=-1) / lengths[1]
    angle = jnp.arccos(jnp.clip(cosine, -1, 1)) / jnp.pi
    return jnp.stack([jnp.where(weights, x, 0.0).sum() for x in (cosine, share, angle)])
