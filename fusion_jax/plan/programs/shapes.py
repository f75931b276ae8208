"""Arrays of a program as shapes with shardings, and its trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.data.batches import Targets, TokenBatch
from fusion_jax.models.compute import Compute
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS_ACCELERATOR
from fusion_jax.sharding import named
from fusion_jax.train.state import Pace


def tpu_compute(mesh: Mesh, dtype: str, **how: Any) -> Compute:
    """As `train.settings.compute_for` sets it on TPU."""
    return Compute(mesh, jnp.dtype(dtype), logits=CHUNK_ELEMENTS_ACCELERATOR, **how)


def traced(step: Callable[..., Any], *arguments: Any) -> jax.stages.Traced:
    """A jitted function, traced with these arguments."""
    found: jax.stages.Traced = step.trace(*arguments)  # type: ignore[attr-defined]
    return found


def array(mesh: Mesh, leading: tuple[int, ...], shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array [*leading, B, ...] with the examples over the data axes, as `train.step.shard_batch` places it."""
    axes = (*(None for _ in leading), "batch", *(None for _ in shape[1:]))
    return jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=named(mesh, axes))


def spread(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], dtype: Any) -> Any:
    """An array with these logical axes, whole where the mesh does not divide it."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh, axes, shape))


def pace(mesh: Mesh, companion: bool = False) -> Pace:
    """What the host tells an optimizer step."""
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=named(mesh, ()))
    return Pace(jax.ShapeDtypeStruct((), jnp.int32, sharding=named(mesh, ())), rate, rate if companion else None)


def batch(mesh: Mesh, leading: tuple[int, ...], examples: int, groups: int, prompt: int, tokens: int) -> TokenBatch:
    """A batch of `examples` with `groups` rows of `tokens` behind `prompt` tokens."""

    def of(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
        return array(mesh, leading, (examples, *rest), dtype)

    row = (groups, tokens)
    return TokenBatch(
        prompts=of(jnp.int32, prompt), prompt_lengths=of(jnp.int32), tokens=of(jnp.int32, *row),
        labels=of(jnp.int32, *row), positions=of(jnp.int32, *row), segment_ids=None,
        groups=of(jnp.uint8, *row), example_ids=of(jnp.int32), reference=of(jnp.float32, groups),
        weights=of(jnp.float32), branch=of(jnp.int32),
    )  # fmt: skip


def targets(mesh: Mesh, sizes: tuple[int, int], tokens: int, k: int) -> Targets:
    """Fused targets of k entries for micro-batches of (count, examples)."""
    leading, shape = sizes[:1], (sizes[1], 1, tokens, k)
    return Targets(
        array(mesh, leading, shape, jnp.int32), array(mesh, leading, shape, jnp.float32),
        array(mesh, leading, shape[:1], jnp.float32),
    )  # fmt: skip
