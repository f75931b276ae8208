"""The decoder that the families share: a Linen module used purely functionally through `forward`.

Blocks run under `nn.scan` over stacked parameters, so that compile time does not grow with depth; what differs from
layer to layer (the attention window) is a scanned input. `forward` returns hidden states: the head is separate, so
that no caller needs the logits of all tokens.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.parameters import Specs, layer_specs, parameter_specs
from fusion_jax.ops.attention import ContextPart
from fusion_jax.ops.kernels import Kernel, Visible, attend
from fusion_jax.ops.remat import BLOCK_INPUT, GATED, RESIDUAL, Remat, named, remat_policy
from fusion_jax.ops.rotary import apply_rotary, rotary_tables
from fusion_jax.sharding import constrain

Array = jax.Array
Params = dict[str, Any]

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Norm(nn.Module):
    """RMS norm in float32."""

    specs: Specs
    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", self.specs["scale"].init, self.specs["scale"].shape)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide *= jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.config.norm_eps)
        if self.config.norm_unit_offset:
            return (wide * (1.0 + scale)).astype(self.dtype)
        return wide.astype(self.dtype) * scale.astype(self.dtype)


class Linear(nn.Module):
    """x @ kernel (+ bias) in the compute dtype."""

    specs: Specs
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.specs["kernel"].init, self.specs["kernel"].shape)
        # Two dimensions: the CPU compiler has a slow path for weight gradients that contract over two.
        out = (x.reshape(-1, x.shape[-1]) @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], -1)
        if "bias" in self.specs:
            bias = self.param("bias", self.specs["bias"].init, self.specs["bias"].shape)
            out += bias.astype(self.dtype)
        return out


class Block(nn.Module):
    """Attention and gated feed-forward, each behind a norm, each added to the residual stream."""

    config: DecoderConfig
    mesh: Mesh | None
    dtype: Any
    return_kv: bool = False
    branches: tuple[int, int] | None = None
    kernel: Kernel = "xla"

    @nn.compact
    def __call__(
        self,
        x: Array,
        window: Array,
        context_kv: tuple[tuple[Array, Array], ...],
        tables: tuple[Array, Array],
        positions: Array,
        segment_ids: Array | None,
        context: tuple[tuple[Array, Array], ...],
        prompt_lengths: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        c, specs = self.config, layer_specs(self.config)

        def linear(name: str) -> Linear:
            return Linear(specs[name], self.dtype, name=name)

        def norm(name: str) -> Norm:
            return Norm(specs[name], c, self.dtype, name=name)

        def split(y: Array, heads: int) -> Array:
            return y.reshape(*y.shape[:-1], heads, c.head_dim)

        x = named(x, BLOCK_INPUT)
        y = norm("attention_norm")(x)
        q = apply_rotary(split(linear("q")(y), c.num_heads), tables)
        k = apply_rotary(split(linear("k")(y), c.num_kv_heads), tables)
        v = split(linear("v")(y), c.num_kv_heads)
        visible = Visible(positions, segment_ids, c.windows, self.branches, prompt_lengths)
        y = attend(
            q, k, v, visible, window=window, scale=c.head_dim**-0.5 if c.query_scale is None else c.query_scale,
            soft_cap=c.attention_soft_cap, kernel=self.kernel, mesh=self.mesh,
            context=tuple(ContextPart(*kv, *where) for kv, where in zip(context_kv, context, strict=True)),
        )  # fmt: skip
        y = linear("o")(y.reshape(*x.shape[:-1], -1))
        x = named(x + (norm("attention_post_norm")(y) if c.post_norms else y), RESIDUAL)
        y = norm("mlp_norm")(x)
        gate, up = (named(linear(name)(y), GATED) for name in ("gate", "up"))
        y = _ACTIVATIONS[c.activation](gate) * up
        y = linear("down")(constrain(y, self.mesh, ("batch", "tokens", "mlp")))
        x = x + (norm("mlp_post_norm")(y) if c.post_norms else y)
        x = constrain(x, self.mesh, ("batch", "tokens", None))
        return x, (k, v) if self.return_kv else None


class Decoder(nn.Module):
    """Tokens to hidden states after the final norm; see `forward`."""

    config: DecoderConfig
    mesh: Mesh | None = None
    dtype: Any = jnp.float32
    remat: Remat = "none"
    return_kv: bool = False
    branches: tuple[int, int] | None = None
    kernel: Kernel = "xla"

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        segment_ids: Array | None,
        context: tuple[ContextPart, ...],
        prompt_lengths: Array | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        c, specs = self.config, parameter_specs(self.config)
        embed = Table(specs["embed"], name="embed")()
        x = embed.astype(self.dtype)[tokens]
        if c.embed_scale != 1.0:
            x *= jnp.asarray(c.embed_scale, self.dtype)
        x = constrain(x, self.mesh, ("batch", "tokens", None))
        tables = rotary_tables(positions, c.rope, c.head_dim, c.max_positions)
        block: Any = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=remat_policy(self.remat), prevent_cse=False)
        everywhere = nn.broadcast
        layers = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=c.num_layers,
            in_axes=(0, 0, everywhere, everywhere, everywhere, everywhere, everywhere),
        )(c, self.mesh, self.dtype, self.return_kv, self.branches, self.kernel, name="layers")  # fmt: skip
        windows = jnp.asarray(c.windows or (0,) * c.num_layers, jnp.int32)
        context_kv = tuple((p.k, p.v) for p in context)
        places = tuple((p.positions, p.lengths) for p in context)
        x, kv = layers(x, windows, context_kv, tables, positions, segment_ids, places, prompt_lengths)
        return Norm(specs["final_norm"], c, self.dtype, name="final_norm")(x), kv


class Table(nn.Module):
    """The embedding table, read whole."""

    specs: Specs

    @nn.compact
    def __call__(self) -> Array:
        return self.param("embedding", self.specs["embedding"].init, self.specs["embedding"].shape)


def forward(
    params: Params,
    config: DecoderConfig,
    tokens: Array,
    *,
    positions: Array | None = None,
    segment_ids: Array | None = None,
    context: tuple[ContextPart, ...] = (),
    branches: tuple[int, int] | None = None,
    prompt_lengths: Array | None = None,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    kernel: Kernel = "xla",
    return_kv: bool = False,
) -> Any:
    """Hidden states [B,T,D] after the final norm, in `dtype`.

    Args:
      params: nested dict as `parameters.parameter_specs` lays it out.
      tokens: int[B,T]. A token sees itself and those before it, of its own segment, within the layer's window.
      positions: int[B,T], absolute; default 0..T-1.
      segment_ids: int[B,T], 0 for padding. None is exact for right-padded rows of one segment: causality hides the
        padding.
      context: keys that all rows attend to besides their own, each part with k, v of shape [L,C,P,K,h].
      branches, prompt_lengths: (size, n) and int[B]: a row is a prompt of `size` tokens, of which prompt_lengths
        exist, and n continuations of equal width, each of which sees the prompt and itself. Give the positions.
      remat: what the backward pass keeps, see `ops.remat`.
      kernel: of attention: "splash" on TPU, where the sizes fit it (see `ops.splash.takes`), else "xla".

    Returns:
      hidden, or (hidden, (k, v)) with k, v [L,B,T,K,h] after rotary when `return_kv`.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    decoder = Decoder(config, mesh, dtype, remat, return_kv, branches, kernel)
    hidden, kv = decoder.apply({"params": params}, tokens, positions, segment_ids, context, prompt_lengths)
    return (hidden, kv) if return_kv else hidden


def padded_positions(tokens: Array, config: DecoderConfig) -> Array:
    """int[B,T], 0..T-1, of right-padded rows that the model can read. What lies beyond its positions is padding and
    stays at the last one, since `dynamic` rotary scaling goes by the greatest position that there is.
    """
    places = jnp.minimum(jnp.arange(tokens.shape[1], dtype=jnp.int32), config.max_positions - 1)
    return jnp.broadcast_to(places, tokens.shape)


def head_kernel(params: Params, config: DecoderConfig) -> Array:
    """The head [V,D]: the embedding where they are tied."""
    return params["embed"]["embedding"] if config.tied_head else params["head"]["kernel"]
