"""Run by test_task_vectors.py in its own process with 4 virtual devices: every method on a split and a whole tensor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fusion_jax.merge.arithmetic import tensor_key
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.sce import METHODS as SCE
from fusion_jax.merge.task_arithmetic import METHODS as TASK_ARITHMETIC

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(32, 64)).astype(np.float32)
MODELS = BASE + np.round(RNG.normal(size=(3, 32, 64)), 1).astype(np.float32)  # many ties
GIVEN = {"weight": [0.3, 0.5, 0.4], "density": 0.4, "select_topk": 0.3, "rescale": "l1"}


def main() -> None:
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    models = jax.device_put(MODELS, NamedSharding(mesh, PartitionSpec(None, "rows", "columns")))
    base = jax.device_put(BASE, NamedSharding(mesh, PartitionSpec("rows", "columns")))
    for method in (*TASK_ARITHMETIC, *SCE):
        given = {p.name: GIVEN[p.name] for p in method.parameters if p.name in GIVEN}
        if method.random:
            given["keys"] = jnp.stack([tensor_key(0, "x", i) for i in range(3)])
        split, whole = (METHODS[method.name].function(m, b, **given) for m, b in ((models, base), (MODELS, BASE)))
        np.testing.assert_array_equal(split.tensor, whole.tensor, method.name)
        for name, value in whole.report.items():
            np.testing.assert_array_equal(split.report[name], value, f"{method.name} {name}")


if __name__ == "__main__":
    main()
