"""Attention as the decoder asks for it: what the queries of a row see, and the kernel that computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
from jax.sharding import Mesh

from fusion_jax.ops.attention import ContextPart, attention, branched_attention
from fusion_jax.ops.splash import splash_attention, takes
from fusion_jax.sharding import data_ways, tensor_shards

Array = jax.Array
Kernel = Literal["xla", "splash", "splash-interpreted"]  # the last in plain JAX, where there is no TPU


@dataclass(frozen=True)
class Visible:
    """What each query of a row of T tokens sees: itself and the keys before it, of its segment, on the way from the
    row's start through its own branch, that are nearer than the layer's window.

    Distances are differences of `positions`, whatever lies between two tokens in the row.

    positions: int[B,T]; within a segment, and from a prompt into each of its continuations, they grow by one a token.
    segment_ids: int[B,T]; None: one segment. Rows with branches have none.
    windows: of all layers, as `DecoderConfig` has them; 0 is no limit.
    branches, prompt_lengths: (size, n) and int[B]: a row is a prompt of `size` tokens, of which prompt_lengths exist,
      and n continuations of equal width; None: a row is one text.
    """

    positions: Array
    segment_ids: Array | None = None
    windows: tuple[int, ...] = ()
    branches: tuple[int, int] | None = None
    prompt_lengths: Array | None = None

    def __post_init__(self) -> None:
        if (self.branches is None) != (self.prompt_lengths is None):
            raise ValueError("branches and prompt_lengths belong together")
        if self.branches is not None and self.segment_ids is not None:
            raise ValueError("rows that share a prompt have no segments")


def attend(
    q: Array,
    k: Array,
    v: Array,
    visible: Visible,
    *,
    window: Array | int,
    scale: float,
    soft_cap: float | None = None,
    context: tuple[ContextPart, ...] = (),
    kernel: Kernel = "xla",
    mesh: Mesh | None = None,
) -> Array:
    """Exact softmax attention, the same by every kernel; one that does not take the question, or rows or heads that the
    mesh does not divide, leaves it to XLA.

    Args:
      q: [B,T,H,h]; k, v: [B,T,K,h] with H a multiple of K, rotary already applied.
      window: of this layer, one of the visible's windows; it may be traced.
      context: keys that rows see besides their own; see `ops.attention`.
      mesh: what the rows and heads lie over.

    Returns:
      [B,T,H,h] in the dtype of q; what tokens that do not exist get is undefined.
    """
    see, window = visible, window if any(visible.windows) else 0
    even = q.shape[0] % data_ways(mesh) == 0 and q.shape[2] % tensor_shards(mesh) == 0
    if kernel != "xla" and not context and even and takes(q.shape[1], see.windows, see.branches):
        return splash_attention(
            q, k, v, segment_ids=see.segment_ids, window=window, windows=see.windows, branches=see.branches,
            prompt_lengths=see.prompt_lengths, scale=scale, soft_cap=soft_cap, mesh=mesh,
            interpret=kernel == "splash-interpreted",
        )  # fmt: skip
    if see.branches is not None and see.prompt_lengths is not None:
        return branched_attention(
            q, k, v, branches=see.branches, prompt_lengths=see.prompt_lengths, positions=see.positions,
            window=window, scale=scale, soft_cap=soft_cap,
        )  # fmt: skip
    return attention(
        q, k, v, positions=see.positions, segment_ids=see.segment_ids, window=window, scale=scale,
        soft_cap=soft_cap, context=context,
    )  # fmt: skip
