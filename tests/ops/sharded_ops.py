"""Run by test_linear_kl.py and test_dropout.py in its own process with 8 virtual devices: heads split over `tensor`, rows
over `data` and `fsdp`, against one device."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.ops.dropout import dropout, source_dropout
from fusion_jax.ops.linear_kl import KEPT, linear_kl
from fusion_jax.sharding import data_ways, make_mesh, named, tensor_shards

ROWS, V = (8, 16), 1024


def largest(program: str) -> int:
    """The numbers in the largest array of a compiled program's text."""
    return max(int(np.prod([int(n) for n in found.split(",")])) for found in re.findall(r"\w\[(\d[\d,]*)\]", program))


def run(mesh: Any, kept: int = 0) -> tuple[list[np.ndarray], int]:
    """The values and gradients, and the largest array of the compiled program on a device."""
    rng = np.random.default_rng(0)
    heads = [(rng.normal(size=(*ROWS, d)), rng.normal(size=(V, d))) for d in (8, 16, 8)]
    weights = jnp.asarray(rng.normal(size=(3, *ROWS)))

    def placed(x: np.ndarray, axes: tuple[str | None, ...]) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        return x if mesh is None else jax.device_put(x, named(mesh, axes, x.shape))

    (student, *teachers) = [(placed(h, ("batch", None, None)), placed(k, ("vocab", "embed"))) for h, k in heads]
    labels = placed(rng.integers(0, V, ROWS), ("batch", None)).astype(jnp.int32)

    def total(hidden: jax.Array, kernel: jax.Array, teachers: Any) -> tuple[jax.Array, Any]:
        found = linear_kl(
            hidden, kernel, labels, teachers,
            vocab_shards=tensor_shards(mesh), row_shards=data_ways(mesh), chunk=128, kept=kept,
        )  # fmt: skip
        values = jnp.stack([found.logprobs, found.forward.sum(-1), found.reverse.sum(-1)])
        return (values * weights).sum(), found

    program = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True)).lower(*student, tuple(teachers)).compile()
    leaves = jax.tree.leaves(jax.device_get(program(*student, tuple(teachers))))
    return leaves, largest(program.as_text())


def dropped(mesh: Any) -> list[np.ndarray]:
    x, keys = jnp.ones((8, 6, 16)), jnp.arange(8)
    if mesh is not None:
        x = jax.device_put(x, named(mesh, ("batch", None, "mlp"), x.shape))
        keys = jax.device_put(keys, named(mesh, ("batch",), keys.shape))
    out = jax.jit(lambda x, keys: [dropout(x, keys, 1, 0.3), source_dropout(x, keys, 0.3)])(x, keys)
    return [np.asarray(value) for value in out]


def main() -> None:
    mesh = make_mesh(2, 2, 2)
    if sys.argv[1:] == ["dropout"]:
        same = [np.array_equal(a, b) for a, b in zip(dropped(mesh), dropped(None), strict=True)]
        json.dump(same, sys.stdout)
        return
    expected, _ = run(None)
    out = {"logits": int(np.prod(ROWS) * V // mesh.size)}
    for name, kept in (("", 0), (" kept", KEPT)):
        found, size = run(mesh, kept)
        apart = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True)]
        out |= {f"apart{name}": max(apart), f"largest{name}": size}
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
