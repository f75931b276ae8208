"""Run by test_sharding.py in its own process with 8 virtual devices: one step on several meshes against one device."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.parameters import init_params, parameter_specs
from fusion_jax.sharding import make_mesh, named
from fusion_jax.train.objectives import WrpoSettings, wrpo_objective
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer
from fusion_jax.train.step import Compute, make_train_step, shard_batch

CONFIG = DecoderConfig(
    model_type="gemma2",
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    max_positions=64,
    windows=(5, 0),
    attention_soft_cap=5.0,
    final_soft_cap=3.0,
    post_norms=True,
    norm_unit_offset=True,
    initializer_range=0.3,
)


def batch():
    rng = np.random.default_rng(0)
    rows = [tuple(tuple(rng.integers(0, 256, n)) for n in rng.integers(8, 30, 3)) for _ in range(16)]
    examples = [Example(r, (4, 4, 4), i, reference=(-20.0, -21.0, -22.0)) for i, r in enumerate(rows)]
    flat = collate(examples, buckets_of(examples))
    return jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), flat)


def run(config, mesh, params):
    optimizer = make_optimizer(OptimizerSettings(learning_rate=0.1, warmup_ratio=0.0), 4)
    step = make_train_step(
        config, wrpo_objective(WrpoSettings(beta=1.0), 4), optimizer, Compute(mesh, jnp.float32, "full")
    )
    if mesh is not None:
        specs = parameter_specs(config)
        params = jax.tree.map(lambda p, s: jax.device_put(p, named(mesh, s.axes, s.shape)), params, specs)
    state = init_state(params, optimizer, mesh)
    state, metrics = step(state, shard_batch(batch(), mesh))
    # Adam's first moment after one step is (1 - beta1) times the clipped gradient.
    moments = [m.mu for m in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(m, "mu")]
    gradient = jax.device_get(moments[0])
    state, second = step(state, shard_batch(batch(), mesh))
    values = {k: float(v) for k, v in metrics.items() if k != "bad"} | {"second": float(second["loss"])}
    spread = sorted({len(x.sharding.device_set) for x in jax.tree.leaves(state.opt_state)})
    return values, gradient, spread


def main() -> None:
    results = {}
    for tied in (True, False):
        config = dataclasses.replace(CONFIG, tied_head=tied)
        params = init_params(config, jax.random.key(1))
        single, gradient, _ = run(config, None, params)
        scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))
        for shape in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)):
            values, other, spread = run(config, make_mesh(*shape), params)
            results[f"{tied} {shape}"] = {
                "values": max(abs(values[k] - single[k]) / max(abs(single[k]), 1e-3) for k in single),
                "gradient": max(
                    float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other))
                ) / scale,
                "devices": spread,
            }  # fmt: skip
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
