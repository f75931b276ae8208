"""What a merge would take, before it is run: bytes, memory by the compiler, time by a probe of this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.merge.executor.prepare import Prepared
from fusion_jax.merge.executor.reading import AHEAD, Loaded, common_dtype
from fusion_jax.merge.executor.shared_weights import read_twice
from fusion_jax.merge.executor.tensors import merge_tensor, placer
from fusion_jax.merge.methods.variation_ratio import WIDE
from fusion_jax.merge.recipes.plan import TensorPlan

PROBE = 1 << 22  # numbers of the tensor that is timed


def rules(prepared: Prepared) -> list[dict[str, Any]]:
    """One row a tensor: what is merged, from which models, with which numbers."""
    method = prepared.recipe.method
    out = []
    for tensor in prepared.plan.tensors:
        numbers = [f"{name}={_shown(value)}" for name, value in tensor.parameters.items()]
        row = {
            "tensor": tensor.name,
            "shape": "×".join(map(str, tensor.shape)),
            "dtype": prepared.dtype(tensor).name,
            "rule": method if tensor.inputs else "copy of the base",
            "models": len(tensor.inputs),
            "rows": "rewritten" if tensor.rows and prepared.rows is not None else "",
            "parameters": " ".join(numbers) if tensor.inputs else "",
        }
        out.append(row)
    return out


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def estimate(prepared: Prepared) -> dict[str, Any]:
    """Bytes to read and write; peak memory: inputs, what is read ahead, and the largest kernel as it is compiled; time
    of the arithmetic, scaled from a small tensor by the number of numbers.

    VaRM's weights of more than a tensor take two readings and the arithmetic of weights of a tensor.
    """
    tensors = [t for t in prepared.plan.tensors if t.inputs]
    largest = max(tensors, key=prepared.held)
    held = prepared.held(largest)
    ahead = max((prepared.held(t) for t in tensors if prepared.held(t) <= AHEAD), default=0)
    read = sum(map(prepared.held, prepared.plan.tensors)) + sum(map(prepared.held, read_twice(prepared)))
    written = sum(int(np.prod(t.shape)) * prepared.dtype(t).itemsize for t in prepared.plan.tensors)
    numbers = sum(int(np.prod(t.shape)) * len(t.inputs) for t in tensors)
    return {
        "tensors": len(prepared.plan.tensors),
        "GB read": f"{read / 1e9:.3g}",
        "GB written": f"{written / 1e9:.3g}",
        "largest tensor": largest.name,
        "peak GB": f"{(held + max(kernel_bytes(prepared, largest), ahead)) / 1e9:.3g}",
        "s of arithmetic": f"{_probe(prepared, largest) * numbers:.3g}",
    }


def kernel_bytes(prepared: Prepared, tensor: TensorPlan) -> int:
    """Temporaries and outputs of a tensor's compiled kernel."""
    models, base = _shapes(prepared, tensor, tensor.shape)
    numbers: dict[str, Any] = {}
    if prepared.recipe.method == "varm" and tensor.parameters["granularity"] != "avg_item":  # made before, as numbers
        numbers["weight"] = [1.0 / len(tensor.inputs)] * len(tensor.inputs)

    def kernel(models: jax.Array, base: jax.Array | None) -> jax.Array:
        return prepared.merged(tensor, models, base, **numbers).tensor.astype(prepared.dtype(tensor))

    memory = jax.jit(kernel).lower(models, base).compile().memory_analysis()
    return 0 if memory is None else int(memory.temp_size_in_bytes + memory.output_size_in_bytes)


def _shapes(prepared: Prepared, tensor: TensorPlan, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The kernel's inputs, abstract, as `load_tensor` gives them for a tensor of this shape."""
    dtype = jnp.dtype(common_dtype({prepared.entry(one).dtype for one in tensor.reads}))
    models = jax.ShapeDtypeStruct((len(tensor.inputs), *shape), dtype)
    return models, jax.ShapeDtypeStruct(shape, dtype) if tensor.base else None


def _probe(prepared: Prepared, tensor: TensorPlan) -> float:
    """Seconds of arithmetic for one number of one model, timed on noise in the shape of the tensor's first rows."""
    row = max(int(np.prod(tensor.shape[1:])), 1)
    shape = (max(1, min(tensor.shape[0], PROBE // row)), *tensor.shape[1:])
    noise = np.random.default_rng(0)
    models, base = jax.tree.map(
        lambda x: (noise.standard_normal(x.shape, np.float32) * 0.02).astype(x.dtype), _shapes(prepared, tensor, shape)
    )
    one_pass = {"granularity": "avg_param"} if tensor.parameters.get("granularity") in WIDE else {}
    small = Loaded(replace(tensor, parameters={**tensor.parameters, **one_pass}), models, base, {})
    place = placer(None)
    jax.block_until_ready(merge_tensor(prepared, small, place).value)
    started = time.perf_counter()
    jax.block_until_ready(merge_tensor(prepared, small, place).value)
    return (time.perf_counter() - started) / max(int(np.prod(shape)) * len(tensor.inputs), 1)
