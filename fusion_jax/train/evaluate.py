"""The objective on held-out examples, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import Buckets, Data, collate
from fusion_jax.intervals import student95
from fusion_jax.losses.reductions import Count, divide
from fusion_jax.sharding import local_rows
from fusion_jax.train.objective import Metrics
from fusion_jax.train.state import Params, TrainState
from fusion_jax.train.step import shard_batch


def evaluator(
    step: Callable[..., Metrics],
    held: Data,
    buckets: Buckets,
    mesh: Mesh | None,
    *,
    batch_size: int,
    weights: Callable[[Params], Params] = lambda params: params,
) -> Callable[[TrainState], dict[str, float]]:
    """state -> means and counts of all held-out examples, named `eval_`; the last batch is filled with weight 0.

    Args:
      step: (params, micro-batch, optimizer steps done) -> sums: `step.make_eval_step`, told the rest.
      weights: the model's, of those of the state.
    """
    mine = local_rows(batch_size, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: Metrics = {}
        parts: list[Metrics] = []
        for start in range(0, len(held), batch_size):
            part = list(held.examples[start : start + batch_size])
            filled = part + [dataclasses.replace(part[0], weight=0.0)] * (batch_size - len(part))
            needs = held.extents[start : start + batch_size].max(0)
            batch = collate([filled[i] for i in mine], buckets, needs, held.shapes)
            new = step(weights(state.params), shard_batch(batch, mesh), state.step)
            sums = jax.tree.map(jnp.add, sums, new) if sums else new
            parts.append(new)
        found = {f"eval_{k}": float(divide(v)) for k, v in sums.items()}
        return found | {"eval_examples": float(len(held))} | half_widths(parts)

    return evaluate


def half_widths(parts: Sequence[Metrics]) -> dict[str, float]:
    """Half of each mean's 95 % Student interval, from its means over batches; of fewer than four, none is told."""
    if len(parts) < 4:
        return {}
    found = {}
    for name in parts[0]:
        means = [part[name] for part in parts]
        if any(isinstance(mean, Count) for mean in means):
            continue
        sums, weights = (np.asarray([float(mean[i]) for mean in means]) for i in (0, 1))
        if (weights > 0).all():
            off = (sums - weights * sums.sum() / weights.sum()) / weights.sum()
            error = np.sqrt(len(parts) / (len(parts) - 1) * np.sum(off**2))
            found[f"eval_{name}/half"] = float(student95(len(parts) - 1) * error)
    return found
