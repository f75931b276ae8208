"""A model made ready to continue texts, and texts read once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.display import brief
from fusion_jax.models.attention import Encoded
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decode import DecodeParams, Encoder, Kept, apart, decode_params
from fusion_jax.models.decoder import Params, encode, forward, padded_positions
from fusion_jax.models.parameters import place_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.sampling.sizes import chunks, read_together, read_width
from fusion_jax.sharding import data_ways, placed
from fusion_jax.slices import compiler_options

Array = jax.Array


class How(NamedTuple):
    """What is compiled into every program of a model."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None
    kernel: Kernel = "xla"
    options: tuple[tuple[str, str], ...] = ()


class Ready(NamedTuple):
    """A model that continues texts. params: its layers stacked, to read texts; apart: one by one, to go on."""

    how: How
    params: Params
    apart: DecodeParams

    def __repr__(self) -> str:
        return brief(self)


class Read(NamedTuple):
    """C texts that were read, of which lengths int[C] tokens exist; behind an encoder the decoder's.

    last: [C,D], the hidden states of their last tokens, from which the next ones are chosen. kept: per layer, what
    attention keeps of them, arrays [C,...,P,last]. encoder: of the encoder's texts.
    """

    lengths: Array
    last: Array
    kept: tuple[Kept, ...]
    encoder: Encoder | None = None


def ready(params: Params, config: ModelConfig, dtype: Any, mesh: Mesh | None = None) -> Ready:
    """The model laid out over the mesh; on a CPU it computes in float32 at least, whose compiler lacks products in half
    precision."""
    if jax.default_backend() == "cpu":
        dtype = jnp.promote_types(dtype, jnp.float32)
    options = compiler_options(jax.devices()[0].device_kind)
    kernel: Kernel = "splash" if jax.default_backend() == "tpu" else "xla"
    how = How(config, jnp.dtype(dtype), mesh, kernel, tuple(options.items()))
    params = place_params(params, config, mesh, None if mesh is None else how.dtype)
    return Ready(how, params, _prepare(params, config, how.dtype))


_prepare = functools.partial(jax.jit, static_argnums=(1, 2))(decode_params)


def compiled_for(function: Callable[..., Any], donate: str = "") -> Callable[..., jax.stages.Wrapped]:
    """Of a function of what is compiled in and of arrays: f(how, ...) gives the jitted function of the arrays.

    donate: the name of the argument that the function takes over, if there is one.
    """

    @functools.cache
    def compiled(how: How, *fixed: Any) -> jax.stages.Wrapped:
        return jax.jit(
            functools.partial(function, how, *fixed), compiler_options=dict(how.options) or None,
            donate_argnames=donate or None,
        )  # fmt: skip

    return compiled


@compiled_for
def prefill(how: How, params: Params, tokens: Array, lengths: Array) -> Read:
    """Texts int[g,P], of which lengths int[g] exist. An encoder reads them, and the decoder its first token."""
    config, compute = how.config, {"mesh": how.mesh, "dtype": how.dtype, "kernel": how.kernel}
    if config.encoder:
        return behind_encoder(how, params, encode(params, config, tokens, lengths, **compute))
    places = padded_positions(tokens, config, lengths)
    hidden, stacked = forward(params, config, tokens, positions=places, keep=True, **compute)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return Read(lengths, last, apart(stacked, config))


def behind_encoder(how: How, params: Params, encoded: Encoded) -> Read:
    """A decoder's first token, which sees what an encoder made of C texts."""
    config, lengths = how.config, encoded.lengths
    first = jnp.full((lengths.shape[0], 1), config.start, jnp.int32)
    hidden, stacked = forward(
        params, config, first, encoded=encoded, keep=True, mesh=how.mesh, dtype=how.dtype, kernel=how.kernel
    )
    kept = apart(stacked, config)
    encoder = Encoder(tuple(one.cross for one in kept), lengths)
    return Read(jnp.minimum(lengths, 1), hidden[:, 0], tuple(one.own for one in kept), encoder)


def read(model: Ready, texts: Sequence[Sequence[int]], size: int) -> Iterator[tuple[list[int], Read]]:
    """`prefill` of the texts, short ones first, in groups: the texts' numbers, and what was read of them.

    A group holds texts of one narrow width, and its size depends on that and on `size`, the largest, only, so that a
    text is computed alike whatever it is read with.
    """
    mesh = model.how.mesh
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for width, alike in itertools.groupby(order, lambda number: read_width(len(texts[number]))):
        group = read_together(width, size, data_ways(mesh))
        for some in chunks(list(alike), group):
            tokens, lengths = np.zeros((group, width), np.int32), np.zeros(group, np.int32)
            for row, number in enumerate(some):
                tokens[row, : len(texts[number])], lengths[row] = texts[number], len(texts[number])
            both = placed(tokens, mesh, ("batch", "tokens")), placed(lengths, mesh, ("batch",))
            yield some, prefill(model.how)(model.params, *both)
