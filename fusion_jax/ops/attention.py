"""Attention in plain JAX, which answers every `Visible`: grouped heads, segments, windows, branches, soft cap, bias,
and keys shared between rows.

One softmax runs over several sets of keys without putting them side by side, so that keys which rows share are read
once for all of them. Queries go block by block, which leaves most of what causality hides uncomputed. The backward pass
keeps no weights: it computes them again from the log-sum-exp (FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.ops.biases import Bias
from fusion_jax.ops.remat import ATTENDED, QKV, named
from fusion_jax.ops.visible import ContextPart, Visible

Array = jax.Array
QUERY_BLOCKS, LEAST_BLOCK = 4, 32


class _Biased(NamedTuple):
    """What is added to the scores: the bias of the positions of queries int[B,T] and of keys int[C,S]. It is computed
    where the scores are, and kept for the backward pass as this."""

    bias: Bias
    queries: Array
    keys: Array


class _Keys(NamedTuple):
    """One set of keys as `_attend` wants it. k: [C,K,S,h]; v: [C,K,S,n]; mask: bool[C,1,repeat,1,T,S] up to
    broadcasting."""

    k: Array
    v: Array
    mask: Array
    biased: _Biased | None = None


def attention(
    q: Array,
    k: Array | None,
    v: Array | None,
    visible: Visible,
    *,
    scale: float,
    soft_cap: float | None = None,
    bias: Bias | None = None,
    context: tuple[ContextPart, ...] = (),
) -> Array:
    """Exact joint softmax attention over a row's own keys and the context parts.

    Args:
      q: [B,T,H,h]; k: [B,T,K,h] with H a multiple of K, rotary already applied; v: [B,T,K,n]. None: a row has no keys
        of its own and sees the context alone (cross-attention).
      bias: added to the scores behind the scale; not together with a soft cap.
      context: of rows without branches.

    Returns:
      [B,T,H,n] in the dtype of q; softmax in at least float32.
    """
    if bias is not None and soft_cap is not None:
        raise ValueError("attention has a bias or a soft cap, not both")
    one_text = functools.partial(_one_text, scale=scale, soft_cap=soft_cap, bias=bias)
    if visible.branches is None:
        return one_text(q, k, v, visible, context=context)
    if k is None or v is None or context:
        raise ValueError("rows that share a prompt have keys of their own and no others")
    return _branched(q, k, v, visible, one_text)


def _one_text(
    q: Array, k: Array | None, v: Array | None, visible: Visible, *, scale: float, soft_cap: float | None,
    bias: Bias | None, context: tuple[ContextPart, ...] = (),
) -> Array:  # fmt: skip
    rows, tokens, heads, dim = q.shape
    kv_heads = k.shape[2] if k is not None else context[0].k.shape[1]
    q = (q * jnp.asarray(scale, q.dtype)).reshape(rows, tokens, -1, heads // kv_heads, dim)
    q = named(q.transpose(0, 2, 3, 1, 4), QKV)
    if k is not None and v is not None:
        k, v = (named(jnp.swapaxes(x, 1, 2), QKV) for x in (k, v))
    blocks = []
    for start, end in _query_blocks(tokens, visible.causal and k is not None):
        places = visible.positions[:, start:end]
        keys = []
        if k is not None and v is not None:
            stop = end if visible.causal else tokens
            added = None if bias is None else _Biased(bias, places, visible.positions[:, :stop])
            keys.append(_Keys(k[:, :, :stop], v[:, :, :stop], _own_mask(visible, start, end, stop), added))
        for part in context:
            added = None if bias is None else _Biased(bias, places, part.positions)
            keys.append(_Keys(part.k, part.v, _context_mask(part, places, visible.window), added))
        blocks.append(_attend(q[:, :, :, start:end], tuple(keys), soft_cap))
    out = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, 3)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, tokens, heads, -1)


def _branched(q: Array, k: Array, v: Array, visible: Visible, one_text: Callable[..., Array]) -> Array:
    """Rows [prompt | continuation 1 | ... | continuation n]: each continuation sees the prompt and itself."""
    assert visible.branches is not None and visible.prompt_lengths is not None
    size, count = visible.branches
    rows = q.shape[0]

    def rest(x: Array) -> Array:
        return x[:, size:].reshape(rows * count, -1, *x.shape[2:])

    def text(positions: Array) -> Visible:
        return replace(visible, positions=positions, branches=None, prompt_lengths=None)

    places = visible.positions[:, :size]
    prompt = one_text(q[:, :size], k[:, :size], v[:, :size], text(places))
    kept_k, kept_v = (jnp.swapaxes(x[:, :size], 1, 2) for x in (k, v))
    shared = ContextPart(kept_k, kept_v, places, visible.prompt_lengths)
    continued = one_text(rest(q), rest(k), rest(v), text(rest(visible.positions)), context=(shared,))
    return jnp.concatenate([prompt, continued.reshape(rows, -1, *prompt.shape[2:])], 1)


def _query_blocks(tokens: int, causal: bool) -> list[tuple[int, int]]:
    """Ranges of queries; each is compared with the keys up to its end, which leaves out what causality hides."""
    count = max(min(QUERY_BLOCKS, tokens // LEAST_BLOCK), 1) if causal else 1
    bounds = [round(i * tokens / count) for i in range(count + 1)]
    return list(pairwise(bounds))


def _own_mask(visible: Visible, start: int, end: int, stop: int) -> Array:
    """bool[B or 1,1,1,1,t,stop]: what the queries start..end see of the first `stop` keys of their own row."""
    queries, keys = slice(start, end), slice(0, stop)
    if visible.causal:
        mask = (jnp.arange(start, end)[:, None] >= jnp.arange(stop)[None, :])[None]
    else:
        mask = jnp.ones((1, end - start, stop), bool)
    if visible.segments is not None:
        mask &= visible.segments[:, queries, None] == visible.segments[:, None, keys]
    if visible.window is not None:
        distance = visible.positions[:, queries, None] - visible.positions[:, None, keys]
        mask &= _near(distance if visible.causal else jnp.abs(distance), visible.window)
    return mask[:, None, None, None]


def _context_mask(part: ContextPart, positions: Array, window: Array | int | None) -> Array:
    """bool[C,1,repeat or 1,1,T or 1,P]: which entries of a part exist, are seen and are near enough."""
    entries, size = part.positions.shape
    mask = (jnp.arange(size) < part.lengths[:, None])[:, None, None, None, None]
    if part.seen is not None:
        mask &= part.seen.reshape(entries, 1, -1, 1, 1, size)
    if window is not None:
        distance = positions.reshape(entries, -1, positions.shape[1], 1) - part.positions[:, None, None, :]
        mask &= _near(distance, window)[:, None, :, None]
    return mask


def _added(biased: _Biased, kv_heads: int) -> Array:
    """float[C,K,repeat,G,T,S]."""
    queries, keys = biased.queries, biased.keys
    places = queries.reshape(keys.shape[0], -1, queries.shape[1], 1)
    found = biased.bias(places, keys[:, None, None, :])  # [H,C,repeat,T,S]
    return found.reshape(kv_heads, -1, *found.shape[1:]).transpose(2, 0, 3, 1, 4, 5)


def _near(distance: Array, window: Array | int) -> Array:
    return (distance < window) | (jnp.asarray(window) == 0)


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
    scores = scores if keys.biased is None else scores + _added(keys.biased, keys.k.shape[1])
    return jnp.where(keys.mask, scores, jnp.finfo(scores.dtype).min)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(q: Array, parts: tuple[_Keys, ...], soft_cap: float | None) -> Array:
    """Queries [B,K,G,T,h] over all keys of all parts under one softmax; every query sees one of them at least."""
    return _attend_forward(q, parts, soft_cap)[0]


def _attend_forward(q: Array, parts: tuple[_Keys, ...], soft_cap: float | None) -> tuple[Array, tuple[Any, ...]]:
    scores = [_scores(q, keys, soft_cap) for keys in parts]
    peak = functools.reduce(jnp.maximum, (_by_row(s.max(-1)) for s in scores))
    total, values = jnp.zeros_like(peak), jnp.zeros((*peak.shape, parts[0].v.shape[-1]), peak.dtype)
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
        d_parts.append(_Keys(d_k, d_v, None, _bias_gradient(keys, d_scores)))  # type: ignore[arg-type]
    return d_q.astype(q.dtype), tuple(d_parts)


def _bias_gradient(keys: _Keys, d_scores: Array) -> _Biased | None:
    if keys.biased is None:
        return None
    biased, kv_heads = keys.biased, keys.k.shape[1]
    added, pull = jax.vjp(lambda bias: _added(biased._replace(bias=bias), kv_heads), biased.bias)
    shared = [axis for axis, (one, all_of) in enumerate(zip(added.shape, d_scores.shape)) if one != all_of]
    summed = d_scores.sum(shared, keepdims=True).astype(added.dtype)
    return _Biased(pull(summed)[0], None, None)  # type: ignore[arg-type]


_attend.defvjp(_attend_forward, _attend_backward)
