"""Greedy writing of encoder-decoders that may copy from the text they read (`Head.copying`).

Every token is found by a pass over all tokens so far: no cache is kept, as the gate needs where the last layer looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import bucket_list
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, encode, head_kernel, looking
from fusion_jax.models.parameters import place_params
from fusion_jax.ops.copying import copied_logits, copy_gate
from fusion_jax.sampling.ids import Completion
from fusion_jax.sampling.session import on_host
from fusion_jax.sharding import data_ways, padded_rows, placed

Array = jax.Array


def write_copying(
    params: Params, config: ModelConfig, texts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: int,
    batch_size: int, mesh: Mesh | None = None, dtype: jnp.dtype = jnp.float32,
) -> list[Completion]:  # fmt: skip
    """One continuation of each text, in their order.

    Args:
      texts: token ids that the encoder reads. stop: the token that ends a continuation, which is left out of it.
      batch_size: texts at once, at least; more where the devices need it.
    """
    rows, out = padded_rows(batch_size, data_ways(mesh)), dict[int, Completion]()
    params = place_params(params, config, mesh, dtype)
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    width = bucket_list(max_new_tokens)[-1]
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        size = bucket_list(max(len(texts[number]) for number in chosen))[-1]
        read, lengths = np.zeros((rows, size), np.int32), np.ones(rows, np.int32)
        for row, number in enumerate(chosen):
            read[row, : len(texts[number])], lengths[row] = texts[number], len(texts[number])
        source, counts = placed(read, mesh, ("batch", None)), placed(lengths, mesh, ("batch",))
        written = _written(params, source, counts, config, width, max_new_tokens, stop, dtype, mesh)
        found, logprobs = (on_host(x, mesh) for x in written)
        for row, number in enumerate(chosen):
            ids = found[row, :max_new_tokens].tolist()
            ended = stop in ids
            out[number] = Completion(ids[: ids.index(stop)] if ended else ids, ended, float(logprobs[row]))
    return [out[number] for number in range(len(texts))]


@partial(jax.jit, static_argnums=(3, 4, 5, 6, 7, 8))
def _written(
    params: Params, source: Array, lengths: Array, config: ModelConfig, width: int, limit: int, stop: int,
    dtype: jnp.dtype, mesh: Mesh | None,
) -> tuple[Array, Array]:  # fmt: skip
    """Tokens int[B,width] behind the decoder's first one, `stop` from the end on, and the sums of their log-probs."""
    encoded = encode(params, config, source, lengths, dtype=dtype, mesh=mesh)
    exists = jnp.arange(source.shape[1]) < lengths[:, None]

    def go_on(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        step, tokens, sums, ended = carry
        hidden, attention = looking(params, config, tokens[:, :-1], encoded, dtype=dtype, mesh=mesh)
        gate = copy_gate(attention, encoded.hidden, hidden, params["copy"]["kernel"], params["copy"]["bias"][0])
        here, looks, opened = (jnp.take(x, step, 1) for x in (hidden, attention, gate))
        logits = here.astype(jnp.float32) @ head_kernel(params, config).astype(jnp.float32).T
        logits = copied_logits(logits, opened, looks, source, exists)
        found = jnp.where(ended, stop, logits.argmax(-1).astype(jnp.int32))
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), found[:, None], 1)[:, 0]
        tokens = tokens.at[:, step + 1].set(found)
        return step + 1, tokens, sums + jnp.where(ended, 0.0, logprobs), ended | (found == stop)

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        return (carry[0] < limit) & ~carry[3].all()

    count = source.shape[0]
    tokens = jnp.full((count, width + 1), stop, jnp.int32).at[:, 0].set(config.start)
    start = (jnp.int32(0), tokens, jnp.zeros(count, jnp.float32), jnp.zeros(count, bool))
    _, tokens, sums, _ = jax.lax.while_loop(unfinished, go_on, start)
    return tokens[:, 1:], sums

