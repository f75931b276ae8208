"""One layer: attention and feed-forward around the residual stream, as its `Stack` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.attention import Context, CrossAttention, Crossed, Encoded, Held, Projections, self_attention
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.experts import ROUTING, routed
from fusion_jax.models.layers import Noise, NormLayer, feed_forward
from fusion_jax.models.parameters import layer_specs
from fusion_jax.ops.biases import Alibi, Bucketed
from fusion_jax.ops.kernels import Bias, Kernel, Visible
from fusion_jax.ops.remat import BLOCK_INPUT, RESIDUAL, named
from fusion_jax.ops.rotary import rotary_tables
from fusion_jax.sharding import constrain

Array = jax.Array


PARTS = ("attention", "cross", "mlp")  # of a layer, each with dropout of its own


class LayerInputs(NamedTuple):
    """What differs from layer to layer: int[L] for a stack, one number inside a layer.

    window: one of the stack's `windows`. rope: which rotary tables; None: all layers have the same. tag: of what its
    dropout is drawn; None: there is none.
    """

    window: Any
    rope: Any = None
    tag: Any = None


class Rows(NamedTuple):
    """What all layers of a stack read alike.

    tables: cos and sin [B,T,r/2], with a leading axis where layers choose; None without rotary embedding. places:
    everything of each context but the kept arrays, which come layer by layer. buckets: float[buckets,H], the learned
    bias of the scores. counted: bool[B,T], the tokens that routers count in the collection `experts.ROUTING`; None:
    nothing is counted. noise: of dropout, for layers with a tag.
    """

    tables: tuple[Array, Array] | None
    visible: Visible
    places: tuple[tuple[Array, Array, Array | None], ...] = ()
    encoded: Encoded | None = None
    buckets: Array | None = None
    counted: Array | None = None
    noise: Noise | None = None


def layer_inputs(stack: Stack) -> LayerInputs:
    """Those of a stack's layers as the configuration has them, int[L]."""
    windows = jnp.asarray(stack.windows or (0,) * stack.layers, jnp.int32)
    return LayerInputs(windows, jnp.asarray(stack.ropes, jnp.int32) if stack.ropes else None)


def tables_of(config: ModelConfig, stack: Stack, positions: Array) -> tuple[Array, Array] | None:
    """cos and sin float32[B,T,r/2] of tokens at positions int[B,T]; [ropes,B,T,r/2] where the layers choose; None
    without rotary embedding."""
    if config.positions.kind != "rotary":
        return None
    made = [
        rotary_tables(positions, rope, stack.attention.rotary_dim, config.max_positions)
        for rope in (config.positions.ropes if stack.ropes else config.positions.ropes[:1])
    ]
    if not stack.ropes:
        return made[0]
    cos, sin = (jnp.stack(one) for one in zip(*made, strict=True))
    return cos, sin


def bias_of(config: ModelConfig, stack: Stack, buckets: Array | None) -> Bias | None:
    """What is added to the scores of a stack's own attention by distance; buckets: float[buckets,H]."""
    positions = config.positions
    if positions.kind == "alibi":
        return Alibi(stack.attention.heads)
    if positions.kind == "buckets" and buckets is not None:
        return Bucketed(buckets, positions.distance, stack.causal)
    return None


class Block(nn.Module):
    """A layer of a stack. keep: also return what attention keeps of the row's tokens for decoding."""

    config: ModelConfig
    stack: Stack
    mesh: Mesh | None
    dtype: Any
    kernel: Kernel = "xla"
    keep: bool = False

    @nn.compact
    def __call__(self, x: Array, layer: LayerInputs, held: Held, rows: Rows) -> tuple[Array, Any]:
        stack, specs = self.stack, layer_specs(self.config, self.stack)
        visible = rows.visible.of_layer(layer.window, stack.windows, stack.causal)
        tables = rows.tables if layer.rope is None else jax.tree.map(lambda x: x[layer.rope], rows.tables)
        bias = bias_of(self.config, stack, rows.buckets)
        context = tuple(Context(one, *where) for one, where in zip(held.context, rows.places, strict=True))
        found: list[Any] = []

        def attention(y: Array) -> Array:
            with jax.named_scope("attention"):
                parts = Projections(stack.attention, specs, self.dtype)
                y, new = self_attention(parts, y, tables, visible, context, self.kernel, self.mesh, bias)
            found.append(new)
            return y

        def cross(y: Array) -> Array:
            if rows.encoded is None:
                raise ValueError("layers with cross-attention need an encoder's output")
            part = CrossAttention(stack.attention, specs["cross"], self.dtype, self.mesh, name="cross")
            y, new = part(y, rows.encoded, held.cross, visible)
            found.append(new)
            return y

        def mlp(y: Array) -> Array:
            with jax.named_scope("feed_forward"):
                if stack.mlp.experts is None:
                    return feed_forward(stack.mlp, specs, y, self.dtype, self.mesh)
                y, routing = routed(stack.mlp, specs, y, self.dtype, self.mesh, rows.counted)
            if routing is not None:
                self.sow(ROUTING, "sums", routing, reduce_fn=lambda _, new: new, init_fn=lambda: None)
            return y

        def dropped(name: str, part: Callable[[Array], Array]) -> Callable[[Array], Array]:
            if rows.noise is None:
                return part
            noise, tag = rows.noise, layer.tag + PARTS.index(name)
            return lambda y: noise.dropped(part(y), tag)

        plain: dict[str, Callable[[Array], Array]] = {"attention": attention, "cross": cross, "mlp": mlp}
        parts = {name: dropped(name, part) for name, part in plain.items()}
        x = named(x, BLOCK_INPUT)
        if stack.residual in ("parallel", "parallel_norms"):
            x = self._beside(x, parts["attention"], parts["mlp"])
        else:
            x = x if "attention" in stack.lacks else named(self._added("attention", x, parts["attention"]), RESIDUAL)
            x = self._added("cross", x, parts["cross"]) if stack.cross else x
            x = x if "mlp" in stack.lacks else self._added("mlp", x, parts["mlp"])
        x = constrain(x, self.mesh, ("batch", "tokens", None))
        if not self.keep:
            return x, None
        return x, Crossed(*found) if stack.cross else next(iter(found), None)

    @nn.nowrap
    def _norm(self, name: str, x: Array) -> Array:
        specs = layer_specs(self.config, self.stack)[name]
        with jax.named_scope("norm"):
            return NormLayer(specs, self.stack.norm, self.dtype, name=name)(x)

    @nn.nowrap
    def _beside(self, x: Array, attention: Callable[[Array], Array], mlp: Callable[[Array], Array]) -> Array:
        """The residual stream with both parts of it added, which read the same norm or one each."""
        lacks, out = self.stack.lacks, x
        shared = self.stack.residual == "parallel" and len(lacks) < 2
        y = self._norm("attention_norm", x) if shared or "attention" not in lacks else x
        if "attention" not in lacks:
            out = out + attention(y)
        if "mlp" not in lacks:
            out = out + mlp(y if shared else self._norm("mlp_norm", x))
        return out

    @nn.nowrap
    def _added(self, name: str, x: Array, part: Callable[[Array], Array]) -> Array:
        """The residual stream with one part added, the norms where the stack has them."""
        match self.stack.residual:
            case "post":
                return self._norm(f"{name}_norm", x + part(x))
            case "after":
                return x + self._norm(f"{name}_norm", part(x))
            case "sandwich":
                y = part(self._norm(f"{name}_norm", x))
                return x + self._norm(f"{name}_post_norm", y)
            case _:
                return x + part(self._norm(f"{name}_norm", x))
