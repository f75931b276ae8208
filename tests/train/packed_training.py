"""Run by test_packing.py in its own process with 8 virtual devices: two steps of two micro-batches, packed and not."""

from __future__ import annotations

import json

import jax
import numpy as np

from fusion_jax.data.batches import Data, buckets_of
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import init_params, place_params
from fusion_jax.sharding import make_mesh
from fusion_jax.train import objectives
from fusion_jax.train.batching import step_batch
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, paces
from fusion_jax.train.step import make_train_step, shard_batch
from tests.train.sharded_step import CONFIG
from tests.train.test_shared_prompt import examples


def run(pack_tokens, mesh):
    many = examples(tuple(np.random.default_rng(5).integers(1, 30, 32)))
    settings = OptimizerSettings(learning_rate=0.1, warmup_ratio=0.0)
    optimizer, pace = make_optimizer(settings), paces(settings, 4)
    step = make_train_step(CONFIG, objectives.wrpo(WrpoSettings(beta=1.0)), optimizer, Compute(mesh))
    state = init_state(place_params(init_params(CONFIG, jax.random.key(1)), CONFIG, mesh), optimizer, mesh)
    out = []
    for number, indices in enumerate((np.arange(16), np.arange(16, 32))):
        micro = indices.reshape(2, -1)
        batch = step_batch(Data(many), micro, buckets_of(many), mesh, pack_tokens)
        state, metrics = step(state, shard_batch(batch, mesh), pace(number))
        out.append({name: float(value) for name, value in metrics.items() if name != "bad"})
    return out


def main() -> None:
    runs = {
        "plain, one device": run(0, None),
        "packed, eight devices": run(48, make_mesh(2, 2, 2)),
    }
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
