"""More tokens on top of what attention kept of others: the model's own block, layer by layer.

The layers are unrolled: under a scan what is kept would be stacked and copied at every token. It is a pytree of arrays
[R,...,N,last] (see `models.attention`): with the heads before the tokens every product of a step is a plain batched
matmul, 3 times faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fusion_jax.display import brief
from fusion_jax.models.attention import Encoded, Held, KeysValues, cache_specs
from fusion_jax.models.blocks import Block, LayerInputs, Rows, tables_of
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.decoder import Params, buckets_of, finally_normed, head_kernel, soft_capped, stacks_of
from fusion_jax.models.layers import embedded
from fusion_jax.ops.int8 import Int8, holds_int8, is_int8
from fusion_jax.ops.kernels import Visible
from fusion_jax.sharding import constrain

Array = jax.Array
Kept = Any  # a pytree of the attention's own making, of one layer


class DecodeParams(NamedTuple):
    """Parameters as decoding reads them. layers: one nested dict a layer; rest: everything but the layers."""

    layers: tuple[Params, ...]
    rest: Params

    def __repr__(self) -> str:
        return brief(self)


def decode_params(params: Params, config: ModelConfig, dtype: Any) -> DecodeParams:
    """The layers taken apart, their matrices cast to the compute dtype once instead of at every token; kernels in int8
    stay so."""

    def leaf(path: tuple[Any, ...], x: Array | Int8) -> Array | Int8:
        return x if path[-1].key == "scale" or isinstance(x, Int8) else x.astype(dtype)

    stacked = tuple(params[name] for name in stacks_of(config, "decoder"))
    layers = apart(jax.tree_util.tree_map_with_path(leaf, stacked, is_leaf=is_int8), config)
    return DecodeParams(layers, {name: value for name, value in params.items() if name not in config.stacks})


def apart(stacked: tuple[Any, ...], config: ModelConfig) -> tuple[Any, ...]:
    """One pytree a layer, of one a decoder stack with a leading axis L."""
    return tuple(
        jax.tree.map(lambda x, i=i: x[i], tree)
        for tree, stack in zip(stacked, config.decoder, strict=True)
        for i in range(stack.layers)
    )


def next_logits(hidden: Array, params: Params, config: ModelConfig) -> Array:
    """Logits [R,V] of hidden states [R,D], at least float32. `params` may lack the layers."""
    kernel = head_kernel(params, config).astype(hidden.dtype)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    with jax.named_scope("head"):
        return soft_capped(jnp.einsum("rd,vd->rv", hidden, kernel, preferred_element_type=wide), config)


class Behind(NamedTuple):
    """Tokens that rows have behind them. B rows share C = B / repeat entries: row b reads entry b // repeat.

    kept: per layer, what attention keeps of the tokens, arrays [C,...,P,last]; positions: int[C,P]; lengths: int[C],
    how many of the P exist; seen: bool[B,P], which of the P a row sees, None: all.
    """

    kept: tuple[Kept, ...]
    positions: Array
    lengths: Array
    seen: Array | None = None


class Encoder(NamedTuple):
    """What decoding reads of an encoder's texts. cross: a layer's keys and values; lengths: int[C], of the texts."""

    cross: tuple[KeysValues, ...]
    lengths: Array


def nothing_kept(config: ModelConfig, rows: int, tokens: int, dtype: Any, mesh: Mesh | None = None) -> tuple[Kept, ...]:
    """Room for so many tokens of each row in every layer, split over the mesh by rows and heads; None where a layer
    lacks attention."""

    def of(stack: Stack) -> Kept:
        specs = cache_specs(stack)
        return jax.tree.map(lambda s: constrain(jnp.zeros(s.shape(rows, tokens), dtype), mesh, s.all_axes), specs)

    return tuple(of(stack) for stack in config.decoder for _ in range(stack.layers))


def read_on(
    params: DecodeParams,
    config: ModelConfig,
    tokens: Array,
    positions: Array,
    behind: tuple[Behind, ...],
    *,
    segments: Array | None = None,
    encoder: Encoder | None = None,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Array, tuple[Kept, ...]]:
    """Tokens behind others: their hidden states [B,Q,D] after the final norm, and what each layer keeps of them, arrays
    [B,...,Q,last].

    Args:
      tokens, positions: int[B,Q]. A token sees those behind it and, of its own row, itself and those before it.
      segments: int[B,Q]; a token sees of its own row those of its segment only. Positions grow by one within each.
    """
    x = embedded(params.rest, config, "decoder", tokens, positions, None, dtype)
    places = tuple(one[1:] for one in behind)
    encoded = None if encoder is None else Encoded(None, encoder.lengths)
    buckets, visible = buckets_of(params.rest, "decoder"), Visible(positions, segments)
    shared = {
        stack: Rows(tables_of(config, stack, positions), visible, places, encoded, buckets) for stack in config.decoder
    }
    kept = []
    for number, ((stack, layer), weights) in enumerate(zip(_layers(config), params.layers, strict=True)):
        if holds_int8(weights):  # a compiler would cast all layers before the loop over tokens and hold them through it
            x, weights = lax.optimization_barrier((x, weights))
        block = Block(config, stack, mesh, dtype, keep=True)
        cross = None if encoder is None or not stack.cross else encoder.cross[number]
        held = Held(tuple(one.kept[number] for one in behind), cross)
        x, new = block.apply({"params": weights}, x, layer, held, shared[stack])
        kept.append(new.own if stack.cross else new)
    return finally_normed(params.rest, config, "decoder", x, dtype), tuple(kept)


def _layers(config: ModelConfig) -> Iterator[tuple[Stack, LayerInputs]]:
    """Every layer of the decoder: its stack, and its own window and rotary tables."""
    for stack in config.decoder:
        windows = stack.windows or (0,) * stack.layers
        for window, rope in zip(windows, stack.ropes or (None,) * stack.layers, strict=True):
            yield stack, LayerInputs(window, rope)
