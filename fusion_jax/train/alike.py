"""How alike two objectives are to a model: the cosine of their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_jax.data.batches import Data, TokenBatch, buckets_for, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model
from fusion_jax.sharding import data_ways, local_rows, padded_rows
from fusion_jax.train.objective import Objective, Progress
from fusion_jax.train.step import shard_batch

Array = jax.Array


def gradient_cosine(
    model: Model, data: Data, objectives: tuple[Objective, Objective], compute: Compute, *, batch_size: int
) -> float:
    """cos(g1, g2) = <g1, g2> / (|g1| |g2|) of the objectives' gradients on the examples, where training starts.

    The model is its own reference, as in the first step of a training. Both objectives read the same rows. It takes
    the memory of a training step with Adam: weights, two gradients, and one being computed.

    Args:
      batch_size: examples at once; the last batch is filled with examples of weight 0.
    """
    size, ways = min(batch_size, len(data)), data_ways(compute.mesh)
    size, buckets = padded_rows(size, ways), buckets_for(data.extents)
    mine = local_rows(size, compute.mesh)

    def gradient_of(objective: Objective) -> Params:
        def loss(params: Params, batch: TokenBatch) -> Array:
            scores = objective.scores(params, model.config, batch, compute)
            frozen = scores._replace(reference=jax.lax.stop_gradient(scores.sequence))
            return objective.loss(frozen, Progress(jnp.zeros((), jnp.int32), 1))[0].total

        def add(total: Params, params: Params, batch: TokenBatch) -> Params:
            return jax.tree.map(jnp.add, total, jax.grad(loss)(params, batch))

        step = compute.jit(add, donate_argnums=0)
        total = jax.tree.map(jnp.zeros_like, model.params)
        for start in range(0, len(data), size):
            places = np.arange(start, start + size)[mine]
            batch = collate([data.examples[i % len(data)] for i in places], buckets, data.extents.max(0))
            batch = batch._replace(weights=(places < len(data)).astype(np.float32))
            total = step(total, model.params, shard_batch(batch, compute.mesh))
        return total

    def cosine(one: Params, other: Params) -> Array:
        return optax.tree.vdot(one, other) / (optax.tree.norm(one) * optax.tree.norm(other))

    return float(compute.jit(cosine)(*map(gradient_of, objectives)))
