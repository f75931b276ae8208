"""Attention as the decoder asks for it: one question, and the kernel that answers it."""

from __future__ import annotations

from typing import Literal

import jax
from jax.sharding import Mesh

from fusion_jax.ops.attention import attention
from fusion_jax.ops.biases import Bias
from fusion_jax.ops.splash import splash_attention, takes
from fusion_jax.ops.visible import ContextPart, Visible
from fusion_jax.sharding import data_ways, tensor_shards

__all__ = ["Bias", "ContextPart", "Kernel", "Visible", "attend"]

Array = jax.Array
Kernel = Literal["xla", "splash", "splash-interpreted"]  # the last in plain JAX, where there is no TPU


def attend(
    q: Array,
    k: Array | None,
    v: Array | None,
    visible: Visible,
    *,
    scale: float,
    soft_cap: float | None = None,
    bias: Bias | None = None,
    context: tuple[ContextPart, ...] = (),
    kernel: Kernel = "xla",
    mesh: Mesh | None = None,
) -> Array:
    """Exact softmax attention, the same by every kernel; one that does not take the question, or rows or heads that the
    mesh does not divide, leaves it to XLA.

    Args:
      q: [B,T,H,h]; k: [B,T,K,h] with H a multiple of K, rotary already applied; v: [B,T,K,n]. None: the
        context's alone.
      bias, context: see `ops.attention.attention`.
      mesh: what the rows and heads lie over.

    Returns:
      [B,T,H,n] in the dtype of q; what tokens that do not exist get is undefined.
    """
    even = q.shape[0] % data_ways(mesh) == 0 and q.shape[2] % tensor_shards(mesh) == 0
    plain = kernel == "xla" or k is None or v is None or bias is not None or bool(context)
    if plain or not even or not takes(visible):
        return attention(q, k, v, visible, scale=scale, soft_cap=soft_cap, bias=bias, context=context)
    assert k is not None and v is not None
    interpret = kernel == "splash-interpreted"
    return splash_attention(q, k, v, visible, scale=scale, soft_cap=soft_cap, mesh=mesh, interpret=interpret)
