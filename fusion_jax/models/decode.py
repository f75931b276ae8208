"""One more token on top of what attention kept: the model's own block, layer by layer.

The layers are unrolled: under a scan the caches would be stacked and copied at every token. A cache is a pytree of
arrays [R,...,N,last] (see `models.attention`): with the heads before the tokens every product of a step is a plain
batched matmul, 3 times faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fusion_jax.display import brief
from fusion_jax.models.attention import Encoded, Held, cache_specs
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


class LayerCache(NamedTuple):
    """What one layer keeps of the tokens behind the prompts.

    kept: arrays [R,...,N,last], complete but for the newest token; that one's are beside in `new`, [R,...,1,last], and
    written by the next step before it reads: written after the reads, the whole cache would be copied at every token.
    """

    kept: Kept
    new: Kept


def empty_caches(
    config: ModelConfig, rows: int, capacity: int, dtype: Any, mesh: Mesh | None = None
) -> tuple[LayerCache, ...]:
    """A cache a layer for `capacity` tokens of each row, split over the mesh by rows and heads; empty where a layer
    lacks attention."""

    def of(stack: Stack) -> LayerCache:
        specs = cache_specs(stack)
        kept = jax.tree.map(lambda s: constrain(jnp.zeros(s.shape(rows, capacity), dtype), mesh, s.all_axes), specs)
        return LayerCache(kept, jax.tree.map(lambda s: jnp.zeros(s.shape(rows, 1), dtype), specs))

    return tuple(one for stack in config.decoder for one in (of(stack),) * stack.layers)


def decode_step(
    params: DecodeParams,
    config: ModelConfig,
    token: Array,
    step: Array,
    lengths: Array,
    prompts: tuple[Kept, ...],
    caches: tuple[LayerCache, ...],
    *,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Array, tuple[LayerCache, ...]]:
    """Logits [R,V] that follow one more token of every row, and the caches with it.

    Args:
      token: int[R], the row's token number `step` (from 0) behind its prompt; steps come one after the other.
      lengths: int[C], of the prompts, or of the encoder's texts; R = C * S rows, row r continues prompt r // S.
      prompts: per layer, what attention kept of the prompts, arrays [C,...,P,last]; behind an encoder `Crossed`, of the
        decoder's first token and of the encoder's text.
      caches: from `empty_caches`, of a capacity N >= `step`, or from the step before.
    """
    encoded, owns = None, prompts
    if config.encoder:
        encoded, owns, lengths = Encoded(None, lengths), tuple(p.own for p in prompts), jnp.ones_like(lengths)
    rows, entries, size = token.shape[0], lengths.shape[0], _tokens(owns)
    starts = jnp.repeat(lengths, rows // entries)[:, None]
    positions = starts + step
    x = embedded(params.rest, config, "decoder", token[:, None], positions, None, dtype)
    places = (
        (jnp.broadcast_to(jnp.arange(size), (entries, size)), lengths),
        (starts + jnp.arange(_tokens([cache.kept for cache in caches])), jnp.full(rows, step)),
    )
    buckets = buckets_of(params.rest, "decoder")
    shared = {
        stack: Rows(tables_of(config, stack, positions), Visible(positions), places, encoded, buckets)
        for stack in config.decoder
    }
    after = []
    each = zip(_layers(config), params.layers, prompts, owns, caches, strict=True)
    for (stack, layer), weights, prompt, own, cache in each:
        if holds_int8(weights):  # a compiler would cast all layers before the loop over tokens and hold them through it
            x, weights = lax.optimization_barrier((x, weights))
        kept = jax.tree.map(lambda x, new: _written(x, new, step - 1), cache.kept, cache.new)
        block = Block(config, stack, mesh, dtype, keep=True)
        held = Held((own, kept), prompt.cross if stack.cross else None)
        x, new = block.apply({"params": weights}, x, layer, held, shared[stack])
        after.append(LayerCache(kept, new.own if stack.cross else new))
    hidden = finally_normed(params.rest, config, "decoder", x, dtype)
    return next_logits(hidden[:, 0], params.rest, config), tuple(after)


def _layers(config: ModelConfig) -> Iterator[tuple[Stack, LayerInputs]]:
    """Every layer of the decoder: its stack, and its own window and rotary tables."""
    for stack in config.decoder:
        windows = stack.windows or (0,) * stack.layers
        for window, rope in zip(windows, stack.ropes or (None,) * stack.layers, strict=True):
            yield stack, LayerInputs(window, rope)


def _tokens(kept: Sequence[Kept]) -> int:
    """For how many tokens the layers that keep something have room, all for as many; 1 where none does."""
    return next((one.shape[-2] for one in jax.tree.leaves(kept)), 1)


def _written(cache: Array, token: Array, at: Array) -> Array:
    """[R,...,N,last] with [R,...,1,last] at a place; the nothing before the first token goes to place 0, which nobody
    reads."""
    return lax.dynamic_update_slice_in_dim(cache, token, jnp.maximum(at, 0), cache.ndim - 2)
