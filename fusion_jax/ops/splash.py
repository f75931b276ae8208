"""Splash attention on TPU: the Pallas kernel that JAX ships, for the questions (`Visible`) that it takes.

What a query may see is known when the program is made: causality, a window, or the tree of a prompt and its
continuations. Blocks of the matrix that nothing sees are not computed, forward or backward. What depends on the data
(segments, padding) goes in as segment ids. The kernel sees one device's rows and heads: `shard_map` splits them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import Mesh

from fusion_jax.ops.remat import ATTENDED, QKV, named
from fusion_jax.ops.visible import Visible
from fusion_jax.sharding import partition_spec, tensor_shards

Array = jax.Array
LANES = 128  # tokens and head sizes are filled up to multiples of it
BLOCK = 512  # tokens of a tile, at most


@dataclass(frozen=True)
class TreeMask(Mask):
    """bool[T,T]: a token sees itself, those before it on its way to the root, none further than `window` (0: any).

    The first `prompt` tokens are the root's; the others are branches of `branch` tokens, each behind the prompt alone.
    Distances are measured along that way, not in places of the row, where other branches may lie between.
    """

    tokens: int
    window: int = 0
    prompt: int = 0
    branch: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens, self.tokens

    def __getitem__(self, index: Any) -> np.ndarray:
        every = np.arange(self.tokens)
        query, key = every[index[0]][:, None], every[index[1]][None, :]
        seen = key <= query
        if self.branch:
            seen &= (key < self.prompt) | ((key - self.prompt) // self.branch == (query - self.prompt) // self.branch)
        return seen & (self._depth(query) - self._depth(key) < self.window) if self.window else seen

    def _depth(self, place: np.ndarray) -> np.ndarray:
        """How many tokens lie between the root and the tokens at these places."""
        if not self.branch:
            return place
        return np.where(place < self.prompt, place, self.prompt + (place - self.prompt) % self.branch)

    def computed(self) -> float:
        """The share of the matrix whose tiles the kernel computes."""
        tile = int(np.gcd(self.tokens, BLOCK))
        starts = range(0, self.tokens, tile)
        tiles = [self[slice(i, i + tile), slice(j, j + tile)].any() for i in starts for j in starts]
        return sum(tiles) / len(tiles)


def span(tokens: int, branches: tuple[int, int] | None) -> int:
    """The most tokens that one token of a row can see: the row, or its prompt and one continuation."""
    return tokens if branches is None else branches[0] + (tokens - branches[0]) // branches[1]


def reach(window: int, tokens: int, branches: tuple[int, int] | None) -> int:
    """A layer's window, or 0 (no limit) where no two tokens that see each other are so far apart."""
    return window if window < span(tokens, branches) else 0


def takes(visible: Visible) -> bool:
    """Whether the masks of a program's layers can be made before its data are known.

    A window that cuts a prompt with a continuation cannot: the distance between them depends on the prompt's length,
    of which only the padded one is known.
    """
    tokens, branches = visible.positions.shape[1], visible.branches
    return visible.causal and (
        branches is None or not any(reach(window, tokens, branches) for window in visible.windows)
    )


def splash_attention(
    q: Array,
    k: Array,
    v: Array,
    visible: Visible,
    *,
    scale: float,
    soft_cap: float | None = None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Array:
    """What `ops.attention.attention` gives, [B,T,H,n], for a question that `takes` accepts.

    Args:
      q: [B,T,H,h]; k: [B,T,K,h], rotary applied; v: [B,T,K,n]; the visible's positions grow by one within a segment.
      mesh: rows lie over its data axes, heads over its tensor axis.
      interpret: the kernel in plain JAX, for tests on a CPU.
    """
    tokens, value_dim = q.shape[1], v.shape[3]
    limits, masks = zip(*layer_masks(tokens, visible.windows, visible.branches).items())
    segment_ids = visible.segments
    if visible.branches is not None and visible.prompt_lengths is not None:
        place = jnp.arange(tokens)
        exists = (place < visible.prompt_lengths[:, None]) | (place >= visible.branches[0])
        segment_ids = exists.astype(jnp.int32)
    k, v = (jnp.repeat(x, copies, 2) if (copies := _copies(x.shape[2], mesh)) > 1 else x for x in (k, v))
    q, k, v = (named(_filled(x, masks[0].tokens).swapaxes(1, 2), QKV) for x in (q * jnp.asarray(scale, q.dtype), k, v))
    ids = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (0, masks[0].tokens - tokens)))
    calls = [partial(_on_devices, mask=mask, soft_cap=soft_cap, mesh=mesh, interpret=interpret) for mask in masks]
    if len(set(masks)) == 1:
        out = calls[0](q, k, v, ids)
    else:
        window = 0 if visible.window is None else visible.window
        out = jax.lax.switch(jnp.searchsorted(jnp.asarray(limits), window), calls, q, k, v, ids)
    return out.swapaxes(1, 2)[:, :tokens, :, :value_dim]


def layer_masks(tokens: int, windows: tuple[int, ...], branches: tuple[int, int] | None) -> dict[int, TreeMask]:
    """The mask of each different window of the layers, in rising order; rows are filled up to whole tiles."""
    prompt, branch = (0, 0) if branches is None else (branches[0], (tokens - branches[0]) // branches[1])
    padded = tokens + -tokens % LANES
    return {w: TreeMask(padded, reach(w, tokens, branches), prompt, branch) for w in sorted(set(windows)) or [0]}


def _filled(x: Array, tokens: int) -> Array:
    """[B,T,H,h] with zeros to whole tiles: tokens behind all that sees them, dimensions that add nothing to a score."""
    return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, -x.shape[3] % LANES)))


def _copies(heads: int, mesh: Mesh | None) -> int:
    """How often key-value heads are repeated so that every shard has whole ones."""
    return tensor_shards(mesh) // math.gcd(heads, tensor_shards(mesh))


def _on_devices(
    q: Array, k: Array, v: Array, ids: Array | None, *, mask: TreeMask, soft_cap: float | None, mesh: Mesh | None,
    interpret: bool,
) -> Array:  # fmt: skip
    """[B,H,T,n] by the kernel, on each device its rows and heads."""
    heads = q.shape[1] // tensor_shards(mesh)

    def on_device(q: Array, k: Array, v: Array, ids: Array | None) -> Array:
        kernel = _kernel(mask, heads, soft_cap, interpret)
        segments = None if ids is None else SegmentIds(ids, ids)
        return jax.vmap(kernel)(q, k, v, segments)

    if mesh is None:
        return on_device(q, k, v, ids)
    whole, rows = partition_spec(("batch", "heads")), partition_spec(("batch",))
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, whole, whole, rows), out_specs=whole, check_vma=False
    )(q, k, v, ids)  # fmt: skip


def _kernel(mask: TreeMask, heads: int, soft_cap: float | None, interpret: bool) -> Any:
    block = int(np.gcd(mask.tokens, BLOCK))
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )  # fmt: skip
    return make_splash_mha(
        MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        attn_logits_soft_cap=soft_cap, residual_checkpoint_name=ATTENDED, interpret=interpret,
    )  # fmt: skip
