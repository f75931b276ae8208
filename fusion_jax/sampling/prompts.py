"""Prompts read once: what each layer keeps of them, and the state that the first new token is chosen from."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.models.attention import Crossed
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decode import Kept, apart
from fusion_jax.models.decoder import Params, encode, forward, padded_positions
from fusion_jax.ops.kernels import Kernel
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.sizes import chunks, kept_width, read_together, read_width
from fusion_jax.sharding import data_ways, placed

Array = jax.Array


class How(NamedTuple):
    """What is compiled in."""

    config: ModelConfig
    sampler: Sampler
    samples: int
    dtype: Any
    mesh: Mesh | None
    kernel: Kernel = "xla"
    options: tuple[tuple[str, str], ...] = ()


def compiled_for(function: Callable[..., Any]) -> Callable[..., jax.stages.Wrapped]:
    """Of a function of what is compiled in and of arrays: f(how, ...) gives the jitted function of the arrays."""

    @functools.cache
    def compiled(how: How, *fixed: Any) -> jax.stages.Wrapped:
        return jax.jit(functools.partial(function, how, *fixed), compiler_options=dict(how.options) or None)

    return compiled


@compiled_for
def prefill(how: How, params: Params, tokens: Array, lengths: Array) -> tuple[tuple[Kept, ...], Array]:
    """What each layer's attention keeps of tokens int[g,P], arrays [g,...,P,last], and the last tokens' hidden states
    [g,D]. An encoder reads the tokens, and the decoder its first one."""
    config, compute = how.config, {"mesh": how.mesh, "dtype": how.dtype, "kernel": how.kernel}
    if config.encoder:
        encoded = encode(params, config, tokens, lengths, **compute)
        first = jnp.full((tokens.shape[0], 1), config.start, jnp.int32)
        hidden, kept = forward(params, config, first, encoded=encoded, keep=True, **compute)
        return apart(kept, config), hidden[:, 0]
    places = padded_positions(tokens, config, lengths)
    hidden, kept = forward(params, config, tokens, positions=places, keep=True, **compute)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return apart(kept, config), last


def read_prompts(
    how: How, params: Params, prompts: Sequence[Sequence[int]], size: int
) -> tuple[tuple[Kept, ...], Array]:
    """`prefill` of prompts sorted by length, padded to (size, the width for decoding).

    A group holds prompts of one narrow width, and its size depends on that only.
    """
    shards = data_ways(how.mesh)
    parts = []
    for width, alike in itertools.groupby(prompts, lambda prompt: read_width(len(prompt))):
        group = read_together(width, size, shards)
        for some in chunks(list(alike), group):
            tokens, lengths = np.zeros((group, width), np.int32), np.zeros(group, np.int32)
            for row, prompt in enumerate(some):
                tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
            both = placed(tokens, how.mesh, ("batch", "tokens")), placed(lengths, how.mesh, ("batch",))
            found = prefill(how)(params, *both)
            parts.append(jax.tree.map(lambda x, n=len(some): x[:n], found) if len(some) < group else found)
    return _joined(size, kept_width(len(prompts[-1])), parts)


def _joined(size: int, width: int, parts: Sequence[tuple[tuple[Kept, ...], Array]]) -> tuple[tuple[Kept, ...], Array]:
    """Groups one after the other: what is kept padded to [size,...,width,last], the hidden states to [size,D]."""

    def padded(x: Array, **sizes: int) -> Array:
        full = {0: sizes.get("rows", x.shape[0]), x.ndim - 2: sizes.get("tokens", x.shape[-2])}
        return jnp.pad(x, [(0, full.get(axis, n) - n) for axis, n in enumerate(x.shape)])

    def kept(width: int, *groups: Array) -> Array:
        return padded(jnp.concatenate([padded(x, tokens=width) for x in groups]), rows=size)

    def layer(*groups: Kept) -> Kept:
        if not isinstance(groups[0], Crossed):
            return jax.tree.map(functools.partial(kept, width), *groups)
        own = jax.tree.map(functools.partial(kept, 1), *(one.own for one in groups))
        return Crossed(own, jax.tree.map(functools.partial(kept, width), *(one.cross for one in groups)))

    last = jnp.concatenate([last for _, last in parts])
    layers = tuple(layer(*groups) for groups in zip(*(layers for layers, _ in parts), strict=True))
    return layers, jnp.pad(last, [(0, size - last.shape[0]), (0, 0)])
