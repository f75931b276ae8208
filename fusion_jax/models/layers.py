"""The smallest parts of a model: norms, linear layers, the embedding's table, the feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import Activation, Embed, Mlp, Norm
from fusion_jax.models.parameters import Specs
from fusion_jax.ops.remat import GATED, named
from fusion_jax.sharding import constrain

Array = jax.Array

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class NormLayer(nn.Module):
    """RMS norm or layer norm over the last axis, its statistics in float32."""

    specs: Specs
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", self.specs["scale"].init, self.specs["scale"].shape)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.norm.kind == "layer":
            wide -= wide.mean(-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.norm.eps)
        if self.norm.unit_offset:
            out = (wide * (1.0 + scale)).astype(self.dtype)
        else:
            out = wide.astype(self.dtype) * scale.astype(self.dtype)
        if "bias" in self.specs:
            out += self.param("bias", self.specs["bias"].init, self.specs["bias"].shape).astype(self.dtype)
        return out


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


class Table(nn.Module):
    """The embedding table, read whole."""

    specs: Specs

    @nn.compact
    def __call__(self) -> Array:
        return self.param("embedding", self.specs["embedding"].init, self.specs["embedding"].shape)


def embedded(rows: Array, embed: Embed) -> Array:
    """Rows of the table as the first layer reads them."""
    return rows if embed.scale == 1.0 else rows * jnp.asarray(embed.scale, rows.dtype)


def feed_forward(mlp: Mlp, specs: Specs, x: Array, dtype: Any, mesh: Mesh | None) -> Array:
    """[B,T,D] -> [B,T,D], its linear layers in the scope of the module that calls it."""

    def linear(name: str, y: Array) -> Array:
        return Linear(specs[name], dtype, name=name)(y)

    activation = ACTIVATIONS[mlp.activation]
    if mlp.gated:
        gate, up = (named(linear(name, x), GATED) for name in ("gate", "up"))
        y = activation(gate) * up
    else:
        y = activation(named(linear("up", x), GATED))
    return linear("down", constrain(y, mesh, ("batch", "tokens", "mlp")))
