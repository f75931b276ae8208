"""Attention behind one contract: causal, grouped heads, segments, windows, soft cap, and keys shared between rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class ContextPart(NamedTuple):
    """Keys and values that rows attend to besides their own: a prompt's cache, or tokens generated before.

    k, v: [C,P,K,h] (with a leading layer axis L outside the layers); positions: int[C,P]; lengths: int[C], how many
    of the P entries exist. B rows share C = B / repeat entries: row b reads entry b // repeat.
    """

    k: Array
    v: Array
    positions: Array
    lengths: Array


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    positions: Array,
    segment_ids: Array | None,
    window: Array | int,
    scale: float,
    soft_cap: float | None = None,
    context: tuple[ContextPart, ...] = (),
) -> Array:
    """Exact joint softmax attention over a row's own keys (causal) and the context parts.

    Args:
      q: [B,T,H,h]; k, v: [B,T,K,h] with H a multiple of K, rotary already applied.
      positions: int[B,T], absolute; windows are measured on them.
      segment_ids: int[B,T], tokens see only their own segment; None: one segment a row.
      window: how many keys a query sees, itself included; 0 (which may be traced) is no limit.

    Returns:
      [B,T,H,h] in the dtype of q; softmax in at least float32.
    """
    rows, tokens, heads, dim = q.shape
    groups = heads // k.shape[2]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(rows, tokens, -1, groups, dim) * jnp.asarray(scale, q.dtype)
    parts = [_context_scores(grouped, part, positions, window, dtype) for part in context]
    own = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=dtype)
    visible = _own_mask(positions, segment_ids, window)
    scores, masks = [s for s, _ in parts] + [own], [m for _, m in parts] + [visible]
    if soft_cap is not None:
        scores = [soft_cap * jnp.tanh(s / soft_cap) for s in scores]
    scores = [jnp.where(m, s, jnp.finfo(dtype).min) for s, m in zip(scores, masks, strict=True)]
    weights = jax.nn.softmax(jnp.concatenate(scores, -1) if parts else scores[0], -1).astype(q.dtype)
    own_weights = weights[..., weights.shape[-1] - tokens :]
    out = jnp.einsum("bkgts,bskh->btkgh", own_weights, v, preferred_element_type=dtype)
    start = 0
    for part in context:
        size = part.k.shape[1]
        out += _context_values(weights[..., start : start + size], part, dtype)
        start += size
    return out.reshape(q.shape).astype(q.dtype)


def _own_mask(positions: Array, segment_ids: Array | None, window: Array | int) -> Array:
    """bool[B or 1,1,1,T,T]: what each token sees of its own row."""
    tokens = positions.shape[-1]
    index = jnp.arange(tokens)
    mask = (index[:, None] >= index[None, :])[None]
    if segment_ids is not None:
        mask &= segment_ids[:, :, None] == segment_ids[:, None, :]
    if not (isinstance(window, int) and window == 0):
        distance = positions[:, :, None] - positions[:, None, :]
        mask &= (distance < window) | (jnp.asarray(window) == 0)
    return mask[:, None, None]


def _context_scores(
    grouped: Array, part: ContextPart, positions: Array, window: Array | int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Scores [B,K,G,T,P] of one part and which of them exist."""
    rows, tokens, kv_heads, groups, _ = grouped.shape
    entries, size = part.positions.shape
    q = grouped.reshape(entries, -1, *grouped.shape[1:])
    scores = jnp.einsum("crtkgh,cpkh->crkgtp", q, part.k, preferred_element_type=dtype)
    exists = jnp.arange(size) < part.lengths[:, None]
    distance = positions.reshape(entries, -1, tokens, 1) - part.positions[:, None, None, :]
    mask = exists[:, None, None] & ((distance < window) | (jnp.asarray(window) == 0))
    return scores.reshape(rows, kv_heads, groups, tokens, size), mask.reshape(rows, 1, 1, tokens, size)


def _context_values(weights: Array, part: ContextPart, dtype: jnp.dtype) -> Array:
    rows, kv_heads, groups, tokens, size = weights.shape
    shared = weights.reshape(part.k.shape[0], -1, kv_heads, groups, tokens, size)
    out = jnp.einsum("crkgtp,cpkh->crtkgh", shared, part.v, preferred_element_type=dtype)
    return out.reshape(rows, tokens, kv_heads, groups, -1)
