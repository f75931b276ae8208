"""Attention of a layer: projections, norms of heads, rotary embedding; and what it keeps of tokens for decoding.

Only this file knows what a cache holds. Everything else (prefill, joining, growing, decoding) treats it as a pytree of
arrays [rows, ..., tokens, numbers], the tokens on the last axis but one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import Attention
from fusion_jax.models.layers import Linear, NormLayer
from fusion_jax.models.parameters import Specs
from fusion_jax.ops.kernels import Bias, ContextPart, Kernel, Visible, attend
from fusion_jax.ops.rotary import apply_rotary

Array = jax.Array


class KeysValues(NamedTuple):
    """What attention keeps of T tokens: keys after the rotary embedding and values, both [B,K,T,h]."""

    k: Any
    v: Any


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


def cache_specs(attention: Attention) -> Any:
    """What a layer keeps, as the pytree that it returns, of `CacheSpec`."""
    one = CacheSpec((attention.kv_heads,), attention.head_dim, ("kv_heads", "head_dim"))
    return KeysValues(one, one)


def flops_of_pairs(attention: Attention) -> float:
    """FLOPs of one query and one key that it sees, in all heads: scores and weighted values."""
    return 4.0 * attention.heads * attention.head_dim


class Context(NamedTuple):
    """Tokens that rows attend to besides their own.

    kept: what attention kept of them, arrays [C,...,P,last]; positions: int[C,P]; lengths: int[C], how many of the P
    exist. B rows share C = B / repeat entries: row b reads entry b // repeat.
    """

    kept: Any
    positions: Array
    lengths: Array


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

    def heads(self, name: str, x: Array) -> Array:
        """[B,T,D] -> [B,T,heads,h], normed where the configuration norms queries and keys."""
        y, attention = Linear(self.specs[name], self.dtype, name=name)(x), self.attention
        heads = (*y.shape[:-1], -1, attention.head_dim)
        if attention.qk_norm is None or name not in "qk":
            return y.reshape(heads)
        y = y if attention.norms_all else y.reshape(heads)
        y = NormLayer(self.specs[f"{name}_norm"], attention.qk_norm, self.dtype, name=f"{name}_norm")(y)
        return y.reshape(heads)

    def out(self, y: Array) -> Array:
        """[B,T,H,h] -> [B,T,D]."""
        return Linear(self.specs["o"], self.dtype, name="o")(y.reshape(*y.shape[:-2], -1))

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
) -> tuple[Array, KeysValues]:
    """A row over its own tokens and the context: [B,T,D], and what is to be kept of the row's tokens."""
    q, k, v = (parts.heads(name, x) for name in "qkv")
    if tables is not None:
        q, k = (apply_rotary(one, tables, parts.attention.rotary_pairs) for one in (q, k))
    y = attend(
        q, k, v, visible, scale=parts.scale, soft_cap=parts.attention.soft_cap, bias=bias, kernel=kernel, mesh=mesh,
        context=tuple(ContextPart(one.kept.k, one.kept.v, one.positions, one.lengths) for one in context),
    )  # fmt: skip
    return parts.out(y), KeysValues(*(jnp.swapaxes(one, 1, 2) for one in (k, v)))


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
