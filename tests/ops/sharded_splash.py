"""Run by test_splash.py in its own process with 8 virtual devices: a WRPO step with the splash kernel, interpreted, and
offloading on a mesh, against the reference attention on one device."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.batches import buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import init_params, parameter_specs
from fusion_jax.sharding import make_mesh, named
from fusion_jax.train import objectives
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, paces
from fusion_jax.train.step import make_train_step, shard_batch
from tests.small import changed
from tests.train.sharded_step import CONFIG as GEMMA
from tests.train.sharded_step import quadruples

CONFIG = changed(
    GEMMA, attention={"kv_heads": 2, "head_dim": 128, "scale": None}, stack={"windows": (), "residual": "pre"},
    model_type="llama",
)  # fmt: skip


def run(compute: Compute) -> tuple[float, Any]:
    """Loss, and Adam's first moment after one step: (1 - beta1) times the clipped gradient."""
    examples = quadruples(np.random.default_rng(0))[:8]
    batch = jax.tree.map(lambda x: x[None], collate(examples, buckets_of(examples)))
    settings = OptimizerSettings(learning_rate=0.1, warmup_ratio=0.0)
    optimizer, pace = make_optimizer(settings), paces(settings, 4)
    params = init_params(CONFIG, jax.random.key(1))
    if compute.mesh is not None:
        specs = parameter_specs(CONFIG)
        params = jax.tree.map(lambda p, s: jax.device_put(p, named(compute.mesh, s.axes, s.shape)), params, specs)
    step = make_train_step(CONFIG, objectives.wrpo(WrpoSettings(beta=1.0)), optimizer, compute)
    state, metrics = step(init_state(params, optimizer, compute.mesh), shard_batch(batch, compute.mesh), pace(0))
    (moments,) = [
        m.mu for m in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(m, "mu")
    ]
    return float(metrics["loss"]), jax.device_get(moments)


def main() -> None:
    loss, expected = run(Compute())
    found, gradient = run(Compute(make_mesh(2, 2, 2), jnp.float32, "offload", kernel="splash-interpreted"))
    pairs = list(zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True))
    scale = max(float(np.abs(g).max()) for _, g in pairs)
    apart = max(float(np.abs(a - b).max()) for a, b in pairs) / scale
    json.dump({"loss": abs(found - loss) / abs(loss), "gradient": apart}, sys.stdout)


if __name__ == "__main__":
    main()
