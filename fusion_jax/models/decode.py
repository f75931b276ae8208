"""One more token on top of cached keys and values: the decoder's own block, layer by layer.

The layers are unrolled: under a scan the caches would be stacked and copied at every token. Caches are [R,K,N,h]: with
the heads before the tokens every product of a step is a plain batched matmul, 3 times faster on a CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fusion_jax.display import brief
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.decoder import Block, Norm, Params, head_kernel
from fusion_jax.models.parameters import parameter_specs
from fusion_jax.ops.rotary import rotary_tables

Array = jax.Array
KeysValues = tuple[Array, Array]


class DecodeParams(NamedTuple):
    """Parameters as decoding reads them. layers: one nested dict a layer; rest: everything but the layers."""

    layers: tuple[Params, ...]
    rest: Params

    def __repr__(self) -> str:
        return brief(self)


def decode_params(params: Params, config: DecoderConfig, dtype: Any) -> DecodeParams:
    """The layers taken apart, their matrices cast to the compute dtype once instead of at every token."""

    def leaf(path: tuple[Any, ...], x: Array) -> Array:
        return x if path[-1].key == "scale" else x.astype(dtype)

    layers = jax.tree_util.tree_map_with_path(leaf, params["layers"])
    taken = tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.num_layers))
    return DecodeParams(taken, {name: value for name, value in params.items() if name != "layers"})


def next_logits(hidden: Array, params: Params, config: DecoderConfig) -> Array:
    """Logits [R,V] of hidden states [R,D], at least float32. `params` may lack the layers."""
    kernel = head_kernel(params, config).astype(hidden.dtype)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    out = jnp.einsum("rd,vd->rv", hidden, kernel, preferred_element_type=wide)
    cap = config.final_soft_cap
    return out if cap is None else cap * jnp.tanh(out / cap)


class LayerCache(NamedTuple):
    """Keys and values of one layer behind the prompts.

    k, v: [R,K,N,h], complete but for the newest token; that one's are kept beside, new_k, new_v [R,1,K,h], and written
    by the next step before it reads: written after the reads, the whole cache would be copied at every token.
    """

    k: Array
    v: Array
    new_k: Array
    new_v: Array


def empty_caches(config: DecoderConfig, rows: int, capacity: int, dtype: Any) -> tuple[LayerCache, ...]:
    """A cache a layer for `capacity` tokens of each row."""
    kept = jnp.zeros((rows, config.num_kv_heads, capacity, config.head_dim), dtype)
    new = jnp.zeros((rows, 1, config.num_kv_heads, config.head_dim), dtype)
    return (LayerCache(kept, kept, new, new),) * config.num_layers


def decode_step(
    params: DecodeParams,
    config: DecoderConfig,
    token: Array,
    step: Array,
    lengths: Array,
    prompts: tuple[KeysValues, ...],
    caches: tuple[LayerCache, ...],
    *,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Array, tuple[LayerCache, ...]]:
    """Logits [R,V] that follow one more token of every row, and the caches with it.

    Args:
      token: int[R], the row's token number `step` (from 0) behind its prompt; steps come one after the other.
      lengths: int[C], of the prompts; R = C * S rows, row r continues prompt r // S.
      prompts: per layer, keys and values [C,K,P,h] of the prompts, after rotary.
      caches: from `empty_caches`, of a capacity N >= `step`, or from the step before.
    """
    rows, (entries, size) = token.shape[0], prompts[0][0].shape[::2]
    starts = jnp.repeat(lengths, rows // entries)[:, None]
    positions = starts + step
    x = params.rest["embed"]["embedding"][token[:, None]].astype(dtype)
    if config.embed_scale != 1.0:
        x *= jnp.asarray(config.embed_scale, dtype)
    tables = rotary_tables(positions, config.rope, config.head_dim, config.max_positions)
    places = (
        (jnp.broadcast_to(jnp.arange(size), (entries, size)), lengths),
        (starts + jnp.arange(caches[0].k.shape[2]), jnp.full(rows, step)),
    )
    block, after = Block(config, mesh, dtype, True), []
    windows = config.windows or (0,) * config.num_layers
    for layer, prompt, cache, window in zip(params.layers, prompts, caches, windows, strict=True):
        k, v = _written(cache.k, cache.new_k, step - 1), _written(cache.v, cache.new_v, step - 1)
        seen = tuple((_swapped(k), _swapped(v)) for k, v in (prompt, (k, v)))
        x, (new_k, new_v) = block.apply({"params": layer}, x, window, seen, tables, positions, None, places)
        after.append(LayerCache(k, v, new_k, new_v))
    norm = Norm(parameter_specs(config)["final_norm"], config, dtype)
    hidden = norm.apply({"params": params.rest["final_norm"]}, x)
    return next_logits(hidden[:, 0], params.rest, config), tuple(after)


def _swapped(x: Array) -> Array:
    return jnp.swapaxes(x, 1, 2)


def _written(cache: Array, token: Array, at: Array) -> Array:
    """[R,K,N,h] with [R,1,K,h] at a place; the nothing before the first token goes to place 0, which nobody reads."""
    return lax.dynamic_update_slice_in_dim(cache, _swapped(token), jnp.maximum(at, 0), 2)
