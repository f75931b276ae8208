"""The smallest parts of a model: norms, linear layers, the embedding's table, the feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.config import Activation, Mlp, ModelConfig, Norm, Side
from fusion_jax.models.parameters import LORA, ParamSpec, Specs
from fusion_jax.ops.dropout import dropout, source_dropout
from fusion_jax.ops.int8 import times
from fusion_jax.ops.remat import GATED, named
from fusion_jax.sharding import constrain

Array = jax.Array

FIRST_TAG: dict[Side, int] = {"decoder": 0, "encoder": 1 << 20}  # of a side's dropout: its embedding's
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """What a training pass drops numbers by: int32[B], a key of each row (`ops.dropout`), and how many of them.

    rate: behind the embedding and each part of a layer. source_rate: of an encoder's tokens, whole; normal: by normal
    instead of uniform noise, as published for Alirector.
    """

    keys: Array
    rate: float = field(default=0.0, metadata={"static": True})
    source_rate: float = field(default=0.0, metadata={"static": True})
    normal: bool = field(default=False, metadata={"static": True})

    def dropped(self, x: Array, tag: Array | int) -> Array:
        """x [B,...] with some numbers dropped; tag: tells the places of a model apart."""
        return dropout(x, self.keys, tag, self.rate)


class NormLayer(nn.Module):
    """RMS norm or layer norm over the last axis, its statistics in float32."""

    specs: Specs
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        own = {name: self.param(name, spec.init, spec.shape) for name, spec in self.specs.items()}
        return normed(x, own, self.norm, self.dtype)


def normed(x: Array, params: Mapping[str, Array], norm: Norm, dtype: Any) -> Array:
    """A norm of these parameters, its statistics in float32."""
    wide, scale = x.astype(jnp.promote_types(x.dtype, jnp.float32)), params["scale"]
    if norm.kind == "layer":
        wide -= wide.mean(-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + norm.eps)
    if norm.unit_offset:
        out = (wide * (1.0 + scale)).astype(dtype)
    else:
        out = wide.astype(dtype) * scale.astype(dtype)
    return out + params["bias"].astype(dtype) if "bias" in params else out


class Linear(nn.Module):
    """x @ kernel (+ bias) in the compute dtype, plus x @ A @ B where an adapter stands beside the kernel; a kernel may
    be an `Int8`."""

    specs: Specs
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.specs["kernel"].init, self.specs["kernel"].shape)
        # Two dimensions: the CPU compiler has a slow path for weight gradients that contract over two.
        flat = x.reshape(-1, x.shape[-1])
        out = times(flat, kernel, self.dtype)
        if self.has_variable("params", LORA[0]):
            a, b = (self.get_variable("params", name).astype(self.dtype) for name in LORA)
            out += (flat @ a) @ b
        out = out.reshape(*x.shape[:-1], -1)
        if "bias" in self.specs:
            bias = self.param("bias", self.specs["bias"].init, self.specs["bias"].shape)
            out += bias.astype(self.dtype)
        return out


class Tables(nn.Module):
    """Parameters that are read whole: a nested dict as the specs lay it out."""

    specs: Specs

    @nn.compact
    def __call__(self) -> Any:
        return {
            name: self.param(name, spec.init, spec.shape) if isinstance(spec, ParamSpec) else Tables(spec, name=name)()
            for name, spec in self.specs.items()
        }


def embedded(
    tables: Mapping[str, Any], config: ModelConfig, side: Side, tokens: Array, positions: Array, types: Array | None,
    dtype: Any, noise: Noise | None = None,
) -> Array:  # fmt: skip
    """[B,T,D], tokens as the first layer reads them.

    Args:
      tables: parameters, among them "embed" and what the side adds. types: int[B,T], of the tokens; None: all 0.
    """
    embed, added = config.embed, tables.get(f"{side}_embed", {})
    x = tables["embed"]["embedding"].astype(dtype)[tokens]
    if noise is not None and side == "encoder":
        x = source_dropout(x, noise.keys, noise.source_rate, normal_noise=noise.normal)
    x = x if embed.scale == 1.0 else x * jnp.asarray(embed.scale, dtype)
    if "types" in added:
        x += added["types"].astype(dtype)[jnp.zeros_like(tokens) if types is None else types]
    if "positions" in added:
        x += added["positions"].astype(dtype)[positions + config.positions.offset]
    if embed.norm is not None:
        x = normed(x, added["norm"], embed.norm, dtype)
    return x if noise is None else noise.dropped(x, FIRST_TAG[side])


def feed_forward(mlp: Mlp, specs: Specs, x: Array, dtype: Any, mesh: Mesh | None, prefix: str = "") -> Array:
    """[B,T,D] -> [B,T,D], its linear layers in the scope of the module that calls it, by their names with a prefix."""

    def linear(name: str, y: Array) -> Array:
        return Linear(specs[prefix + name], dtype, name=prefix + name)(y)

    activation = ACTIVATIONS[mlp.activation]
    if mlp.gated:
        gate, up = (named(linear(name, x), GATED) for name in ("gate", "up"))
        y = activation(gate) * up
    else:
        y = activation(named(linear("up", x), GATED))
    return linear("down", constrain(y, mesh, ("batch", "tokens", "mlp")))
