"""Run by test_task_vectors.py in its own process with 4 virtual devices: every method on a split and a whole tensor."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fusion_jax.merge.methods import METHODS, select_calculate_erase, task_vectors, variation_ratio
from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.methods.method import Method
from fusion_jax.merge.methods.sparsify import tensor_keys

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(32, 64)).astype(np.float32)
MODELS = BASE + np.round(RNG.normal(size=(3, 32, 64)), 1).astype(np.float32)  # many ties
GIVEN = {"weight": [0.3, 0.5, 0.4], "density": 0.4, "select_topk": 0.3, "rescale": "l1", "t": 0.3}
EXACT = task_vectors.METHODS.keys() | select_calculate_erase.METHODS.keys() | variation_ratio.METHODS.keys()


def main() -> None:
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    models = jax.device_put(MODELS, NamedSharding(mesh, PartitionSpec(None, "rows", "columns")))
    base = jax.device_put(BASE, NamedSharding(mesh, PartitionSpec("rows", "columns")))
    for method in METHODS.values():
        for math_dtype in get_args(MathDtype)[: 2 if method.name == "varm" else 1]:
            compare(method, math_dtype, models, base)


def compare(method: Method, math_dtype: MathDtype, models: jax.Array, base: jax.Array) -> None:
    """Methods whose votes, masks or roundings hang on the last bit of a sum are equal to the bit; others to 4e-7 of
    the largest number."""
    count = method.most_models or 3
    given = {p.name: GIVEN[p.name] for p in method.parameters if p.name in GIVEN}
    if count < 3 and "weight" in given:
        given["weight"] = GIVEN["weight"][:count]
    if method.random:
        given["keys"] = tensor_keys(0, "x", range(count))
    split, whole = (
        method.function(m[:count], None if method.base == "none" else b, math_dtype=math_dtype, **given)
        for m, b in ((models, base), (jnp.asarray(MODELS), jnp.asarray(BASE)))
    )
    for name, value in {"tensor": whole.tensor, **whole.report}.items():
        other = split.tensor if name == "tensor" else split.report[name]
        tolerance = 0.0 if method.name in EXACT else 4e-7 * np.abs(value).max()
        np.testing.assert_allclose(other, value, rtol=0, atol=tolerance, err_msg=f"{method.name} {name}")


if __name__ == "__main__":
    main()
