"""Attention of a layer: projections, norms of heads, rotary embedding; and what it keeps of tokens for decoding.

Only this file knows what a cache holds. Everything else (prefill, joining, growing, decoding) treats it as a pytree of
arrays [rows, ..., tokens, numbers], the tokens on the last axis but one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import Attention, Latent, Norm, Stack
from fusion_jax.models.layers import Linear, NormLayer, Tables
from fusion_jax.models.parameters import Specs
from fusion_jax.ops.kernels import Bias, ContextPart, Kernel, Visible, attend
from fusion_jax.ops.rotary import apply_rotary

Array = jax.Array


class KeysValues(NamedTuple):
    """What attention keeps of T tokens: keys after the rotary embedding and values, both [B,K,T,h]."""

    k: Any
    v: Any


class Latents(NamedTuple):
    """What latent attention keeps of T tokens: latents and, behind them, the rotated part of the keys that all heads
    share, [B,1,T,kv_rank + rope_dim]."""

    both: Any


Kept = KeysValues | Latents


@dataclass(frozen=True)
class CacheSpec:
    """One array of a cache: [rows, *before, tokens, last], and the logical axes of `before` and of `last`."""

    before: tuple[int, ...]
    last: int
    axes: tuple[str, ...]

    def shape(self, rows: int, tokens: int) -> tuple[int, ...]:
        return (rows, *self.before, tokens, self.last)

    @property
    def all_axes(self) -> tuple[str, ...]:
        return ("batch", *self.axes[:-1], "tokens", self.axes[-1])


def cache_specs(stack: Stack) -> Any:
    """What a layer of a stack keeps, as the pytree that it returns, of `CacheSpec`; None where it lacks attention."""
    attention = stack.attention
    if not stack.attends:
        return None
    if (latent := attention.latent) is not None:
        return Latents(CacheSpec((1,), latent.kv_rank + latent.rope_dim, ("latent", "latent")))
    one = CacheSpec((attention.kv_heads,), attention.head_dim, ("kv_heads", "head_dim"))
    return KeysValues(one, one)


def flops_of_pairs(attention: Attention) -> float:
    """FLOPs of one query and one key that it sees, in all heads: scores and weighted values."""
    return 2.0 * attention.heads * (attention.head_dim + attention.value_dim)


def flops_of_kept_pairs(attention: Attention) -> float:
    """The same over what is kept of the keys' tokens: latents are read as they are."""
    if (latent := attention.latent) is None:
        return flops_of_pairs(attention)
    return 2.0 * attention.heads * (2 * latent.kv_rank + latent.rope_dim)


class Context(NamedTuple):
    """Tokens that rows attend to besides their own.

    kept: what attention kept of them, arrays [C,...,P,last]; positions: int[C,P]; lengths: int[C], how many of the P
    exist. B rows share C = B / repeat entries: row b reads entry b // repeat. seen: bool[B,P], which of the P a row
    sees; None: all.
    """

    kept: Any
    positions: Array
    lengths: Array
    seen: Array | None = None

    def part(self, k: Array, v: Array) -> ContextPart:
        """The same as `attend` reads it."""
        return ContextPart(k, v, self.positions, self.lengths, self.seen)


class Encoded(NamedTuple):
    """An encoder's output: hidden states [C,S,D], of which `lengths` int[C] tokens exist.

    hidden: None while decoding, where the layers have kept what they read of it.
    """

    hidden: Any
    lengths: Array


class Held(NamedTuple):
    """What is kept for one layer. context: of each `Context`. cross: keys and values of an encoder's output."""

    context: tuple[Any, ...] = ()
    cross: KeysValues | None = None


class Crossed(NamedTuple):
    """What a layer with cross-attention keeps: of its own tokens, which grow, and of the encoder's, which stay."""

    own: Any
    cross: KeysValues


class Projections:
    """The linear parts of one attention, in the scope of the module that makes it."""

    def __init__(self, attention: Attention, specs: Specs, dtype: Any) -> None:
        self.attention, self.specs, self.dtype = attention, specs, dtype

    def linear(self, name: str, x: Array) -> Array:
        """A linear layer by its name."""
        return Linear(self.specs[name], self.dtype, name=name)(x)

    def heads(self, name: str, x: Array) -> Array:
        """[B,T,D] -> [B,T,heads,h], clipped and normed where the configuration says so."""
        y, attention = self.linear(name, x), self.attention
        y = y if attention.clip is None else jnp.clip(y, -attention.clip, attention.clip)
        heads = (*y.shape[:-1], -1, attention.head_dim)
        if attention.qk_norm is None or name not in "qk":
            return y.reshape(heads)
        y = y if attention.norms_all else y.reshape(heads)
        return self.normed(f"{name}_norm", attention.qk_norm, y).reshape(heads)

    def normed(self, name: str, norm: Norm, x: Array) -> Array:
        """A norm by its name."""
        return NormLayer(self.specs[name], norm, self.dtype, name=name)(x)

    def out(self, y: Array) -> Array:
        """[B,T,H,h] -> [B,T,D]."""
        return self.linear("o", y.reshape(*y.shape[:-2], -1))

    @property
    def scale(self) -> float:
        scale = self.attention.scale
        return self.attention.head_dim**-0.5 if scale is None else scale


def self_attention(
    parts: Projections,
    x: Array,
    tables: tuple[Array, Array] | None,
    visible: Visible,
    context: tuple[Context, ...],
    kernel: Kernel,
    mesh: Mesh | None,
    bias: Bias | None = None,
) -> tuple[Array, Kept]:
    """A row over its own tokens and the context: [B,T,D], and what is to be kept of the row's tokens."""
    if parts.attention.latent is not None:
        return _latent_attention(parts, parts.attention.latent, x, tables, visible, context, kernel, mesh)
    q, k, v = (parts.heads(name, x) for name in "qkv")
    if tables is not None:
        q, k = (apply_rotary(one, tables, parts.attention.rotary_pairs) for one in (q, k))
    y = attend(
        q, k, v, visible, scale=parts.scale, soft_cap=parts.attention.soft_cap, bias=bias, kernel=kernel, mesh=mesh,
        context=tuple(one.part(one.kept.k, one.kept.v) for one in context),
    )  # fmt: skip
    return parts.out(y), KeysValues(*(jnp.swapaxes(one, 1, 2) for one in (k, v)))


def _latent_attention(
    parts: Projections, latent: Latent, x: Array, tables: tuple[Array, Array] | None, visible: Visible,
    context: tuple[Context, ...], kernel: Kernel, mesh: Mesh | None,
) -> tuple[Array, Latents]:  # fmt: skip
    """`self_attention` by way of latents: keys and values of every head are made where a row sees itself alone. With a
    context the latents stand for both, one head for all queries, which are taken to them instead."""
    heads, pairs = parts.attention.heads, parts.attention.rotary_pairs
    q = parts.linear("q", x) if latent.q_rank is None else parts.linear("q_up", _normed_down(parts, latent, x))
    q, q_rope = jnp.split(q.reshape(*x.shape[:-1], heads, -1), [latent.nope_dim], -1)
    c, k_rope = jnp.split(parts.linear("kv_down", x), [latent.kv_rank], -1)
    c, k_rope = parts.normed("kv_down_norm", latent.norm, c), k_rope[..., None, :]
    if tables is not None:
        q_rope, k_rope = (apply_rotary(one, tables, pairs) for one in (q_rope, k_rope))
    kept = jnp.concatenate([c[..., None, :], k_rope], -1)  # [B,T,1,kv_rank + rope_dim]
    up = Tables(parts.specs["kv_up"], name="kv_up")()["kernel"].astype(parts.dtype).reshape(latent.kv_rank, heads, -1)
    over = partial(attend, visible=visible, scale=parts.scale, soft_cap=parts.attention.soft_cap, mesh=mesh)
    if context:
        to_keys, to_values = jnp.split(up, [latent.nope_dim], -1)
        q = jnp.concatenate([jnp.einsum("bthn,chn->bthc", q, to_keys), q_rope], -1)
        seen = tuple(one.part(one.kept.both, one.kept.both) for one in context)
        y = over(q, kept, kept, context=seen)[..., : latent.kv_rank]
        y = jnp.einsum("bthc,chv->bthv", y, to_values)
    else:
        made = (c.reshape(-1, latent.kv_rank) @ up.reshape(latent.kv_rank, -1)).reshape(*x.shape[:-1], heads, -1)
        k, v = jnp.split(made, [latent.nope_dim], -1)
        k = jnp.concatenate([k, jnp.broadcast_to(k_rope, q_rope.shape)], -1)
        y = over(jnp.concatenate([q, q_rope], -1), k, v, kernel=kernel)
    return parts.out(y), Latents(jnp.swapaxes(kept, 1, 2))


def _normed_down(parts: Projections, latent: Latent, x: Array) -> Array:
    return parts.normed("q_down_norm", latent.norm, parts.linear("q_down", x))


class CrossAttention(nn.Module):
    """A row over an encoder's output, without positions: [B,T,D], and keys and values of that output.

    `kept` are those where they were computed before.
    """

    attention: Attention
    specs: Specs
    dtype: Any
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self, x: Array, encoded: Encoded, kept: KeysValues | None, visible: Visible
    ) -> tuple[Array, KeysValues]:
        parts = Projections(self.attention, self.specs, self.dtype)
        if kept is None:
            kept = KeysValues(*(jnp.swapaxes(parts.heads(name, encoded.hidden), 1, 2) for name in ("k", "v")))
        places = jnp.broadcast_to(jnp.arange(kept.k.shape[2]), (kept.k.shape[0], kept.k.shape[2]))
        everything = Visible(visible.positions)
        y = attend(
            parts.heads("q", x), None, None, everything, scale=parts.scale, soft_cap=self.attention.soft_cap,
            context=(ContextPart(kept.k, kept.v, places, encoded.lengths),), mesh=self.mesh,
        )  # fmt: skip
        return parts.out(y), kept
