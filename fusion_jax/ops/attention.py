"""Attention behind one contract: causal, grouped heads, segments, windows, soft cap, and keys shared between rows.

One softmax runs over several sets of keys without putting them side by side, so that keys which rows share are read
once for all of them. Queries go block by block, which leaves most of what causality hides uncomputed. The backward pass
keeps no weights: it computes them again from the log-sum-exp (FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.ops.remat import ATTENDED, QKV, named

Array = jax.Array
QUERY_BLOCKS, LEAST_BLOCK = 4, 32


class ContextPart(NamedTuple):
    """Keys and values that rows attend to besides their own: a prompt's cache, or tokens generated before.

    k, v: [C,P,K,h] (with a leading layer axis L outside the layers); positions: int[C,P]; lengths: int[C], how many
    of the P entries exist. B rows share C = B / repeat entries: row b reads entry b // repeat.
    """

    k: Array
    v: Array
    positions: Array
    lengths: Array


class _Keys(NamedTuple):
    """One set of keys as `_attend` wants it. k, v: [C,K,S,h]; mask: bool[C,1,repeat,1,T,S] up to broadcasting."""

    k: Array
    v: Array
    mask: Array


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
    q = (q * jnp.asarray(scale, q.dtype)).reshape(rows, tokens, -1, groups, dim)
    q = named(q.transpose(0, 2, 3, 1, 4), QKV)
    k, v = (named(jnp.swapaxes(x, 1, 2), QKV) for x in (k, v))
    shared = [(p, jnp.swapaxes(p.k, 1, 2), jnp.swapaxes(p.v, 1, 2)) for p in context]
    blocks = []
    for start, end in _query_blocks(tokens):
        own = _Keys(k[:, :, :end], v[:, :, :end], _own_mask(positions, segment_ids, window, start, end))
        others = (_Keys(keys, values, _context_mask(p, positions[:, start:end], window)) for p, keys, values in shared)
        blocks.append(_attend(q[:, :, :, start:end], (own, *others), soft_cap))
    out = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, 3)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, tokens, heads, dim)


def branched_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    branches: tuple[int, int],
    prompt_lengths: Array,
    positions: Array,
    window: Array | int,
    scale: float,
    soft_cap: float | None = None,
) -> Array:
    """Rows [prompt | continuation 1 | ... | continuation n]: each continuation sees the prompt and itself.

    Args:
      q, k, v: as in `attention`, with T = size + n * rest for branches = (size, n).
      prompt_lengths: int[B], how many of the `size` prompt tokens exist.
    """
    size, count = branches
    rows = q.shape[0]

    def rest(x: Array) -> Array:
        return x[:, size:].reshape(rows * count, -1, *x.shape[2:])

    prompt = attention(
        q[:, :size], k[:, :size], v[:, :size], positions=positions[:, :size], segment_ids=None,
        window=window, scale=scale, soft_cap=soft_cap,
    )  # fmt: skip
    continued = attention(
        rest(q), rest(k), rest(v), positions=rest(positions), segment_ids=None,
        window=window, scale=scale, soft_cap=soft_cap,
        context=(ContextPart(k[:, :size], v[:, :size], positions[:, :size], prompt_lengths),),
    )  # fmt: skip
    return jnp.concatenate([prompt, continued.reshape(rows, -1, *q.shape[2:])], 1)


def _query_blocks(tokens: int) -> list[tuple[int, int]]:
    """Ranges of queries; each is compared with the keys up to its end, which leaves out what causality hides."""
    count = max(min(QUERY_BLOCKS, tokens // LEAST_BLOCK), 1)
    bounds = [round(i * tokens / count) for i in range(count + 1)]
    return list(pairwise(bounds))


def _own_mask(positions: Array, segment_ids: Array | None, window: Array | int, start: int, end: int) -> Array:
    """bool[B or 1,1,1,1,t,end]: what the queries start..end see of their own row."""
    queries, keys = slice(start, end), slice(0, end)
    mask = (jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :])[None]
    if segment_ids is not None:
        mask &= segment_ids[:, queries, None] == segment_ids[:, None, keys]
    if not _unlimited(window):
        distance = positions[:, queries, None] - positions[:, None, keys]
        mask &= (distance < window) | (jnp.asarray(window) == 0)
    return mask[:, None, None, None]


def _context_mask(part: ContextPart, positions: Array, window: Array | int) -> Array:
    """bool[C,1,repeat or 1,1,T or 1,P]: which entries of a part exist and are near enough."""
    entries, size = part.positions.shape
    mask = (jnp.arange(size) < part.lengths[:, None])[:, None, None, None, None]
    if not _unlimited(window):
        distance = positions.reshape(entries, -1, positions.shape[1], 1) - part.positions[:, None, None, :]
        mask &= ((distance < window) | (jnp.asarray(window) == 0))[:, None, :, None]
    return mask


def _unlimited(window: Array | int) -> bool:
    return isinstance(window, int) and window == 0


def _stacked(x: Array, entries: int) -> Array:
    """[B,K,G,T,...] -> [C,K,repeat,G,T,...]: the rows of an entry side by side, for one matmul an entry and head."""
    return jnp.swapaxes(x.reshape(entries, -1, *x.shape[1:]), 1, 2)


def _by_row(x: Array) -> Array:
    """The inverse of `_stacked`."""
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(-1, *x.shape[2:])


def _dot(pattern: str, a: Array, b: Array) -> Array:
    return jnp.einsum(pattern, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _flat(x: Array) -> Array:
    """[C,K,repeat,G,T,last] -> [C,K,N,last]."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _scores(q: Array, keys: _Keys, soft_cap: float | None) -> Array:
    """[C,K,repeat,G,T,S], in at least float32."""
    stacked = _stacked(q, keys.k.shape[0])
    scores = _dot("ckqh,cksh->ckqs", _flat(stacked), keys.k).reshape(*stacked.shape[:-1], -1)
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(keys.mask, scores, jnp.finfo(scores.dtype).min)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(q: Array, parts: tuple[_Keys, ...], soft_cap: float | None) -> Array:
    """Queries [B,K,G,T,h] over all keys of all parts under one softmax; every query sees one of them at least."""
    return _attend_forward(q, parts, soft_cap)[0]


def _attend_forward(q: Array, parts: tuple[_Keys, ...], soft_cap: float | None) -> tuple[Array, tuple[Any, ...]]:
    scores = [_scores(q, keys, soft_cap) for keys in parts]
    peak = functools.reduce(jnp.maximum, (_by_row(s.max(-1)) for s in scores))
    total, values = jnp.zeros_like(peak), jnp.zeros((*peak.shape, q.shape[-1]), peak.dtype)
    for keys, s in zip(parts, scores, strict=True):
        weights = jnp.exp(s - _stacked(peak, s.shape[0])[..., None])
        total += _by_row(weights.sum(-1))
        part = _dot("ckqs,cksh->ckqh", _flat(weights.astype(q.dtype)), keys.v)
        values += _by_row(part.reshape(*weights.shape[:-1], -1))
    out = named((values / total[..., None]).astype(q.dtype), ATTENDED)
    logsumexp = named(peak + jnp.log(total), ATTENDED)
    return out, (q, parts, out, logsumexp)


def _attend_backward(
    soft_cap: float | None, saved: tuple[Any, ...], gradient: Array
) -> tuple[Array, tuple[_Keys, ...]]:
    q, parts, out, logsumexp = saved
    wide = logsumexp.dtype
    delta = (gradient.astype(wide) * out.astype(wide)).sum(-1)
    d_q, d_parts = jnp.zeros(q.shape, wide), []
    for keys in parts:
        entries = keys.k.shape[0]
        scores = _scores(q, keys, soft_cap)
        weights = jnp.exp(scores - _stacked(logsumexp, entries)[..., None])
        flat_q, flat_g = _flat(_stacked(q, entries)), _flat(_stacked(gradient, entries))
        d_weights = _dot("ckqh,cksh->ckqs", flat_g, keys.v).reshape(weights.shape)
        d_scores = weights * (d_weights - _stacked(delta, entries)[..., None])
        if soft_cap is not None:
            d_scores *= 1.0 - jnp.where(keys.mask, scores / soft_cap, 0.0) ** 2
        flat_d = _flat(d_scores.astype(q.dtype))
        d_q += _by_row(_dot("ckqs,cksh->ckqh", flat_d, keys.k).reshape(*weights.shape[:-1], -1))
        d_k = _dot("ckqs,ckqh->cksh", flat_d, flat_q).astype(keys.k.dtype)
        d_v = _dot("ckqs,ckqh->cksh", _flat(weights.astype(q.dtype)), flat_g).astype(keys.v.dtype)
        d_parts.append(_Keys(d_k, d_v, None))  # type: ignore[arg-type]
    return d_q.astype(q.dtype), tuple(d_parts)


_attend.defvjp(_attend_forward, _attend_backward)
