"""The k most probable entries under a linear head, without ever holding the logits of all tokens.

What a teacher's forward pass keeps of its distribution: the entries, their log-probs, the normaliser.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS, chunk_logits, chunk_plan, split_head

Array = jax.Array


class TopK(NamedTuple):
    """ids: int32[...,k], by falling probability; logprobs: float[...,k]; logsumexp: float[...].

    Equal entries come by rising id when the vocabulary lies in one shard.
    """

    ids: Array
    logprobs: Array
    logsumexp: Array


def linear_topk(
    hidden: Array,
    kernel: Array,
    k: int,
    *,
    soft_cap: float | None = None,
    vocab_shards: int = 1,
    row_shards: int = 1,
    elements: int = CHUNK_ELEMENTS,
    chunk: int | None = None,
    vocab_limit: int | None = None,
) -> TopK:
    """The k largest of log softmax(cap(hidden @ kernel.T)) of each position.

    Args:
      hidden: [..., D]; kernel: [V, D]; soft_cap, vocab_shards, row_shards, elements, chunk: as in `linear_logprobs`.
      vocab_limit: entries from here on (of a head padded beyond its tokenizer) do not exist: they are neither listed
        nor counted in the normaliser.
    """
    shape, dim = hidden.shape[:-1], hidden.shape[-1]
    rows = hidden.reshape(-1, dim)
    vocab = min(kernel.shape[0], vocab_limit or kernel.shape[0])
    chunks = chunk_plan(kernel.shape[0], -(-rows.shape[0] // row_shards), vocab_shards, chunk, elements)
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)

    def body(carry: tuple[Array, Array, Array, Array], part: tuple[Array, Array]) -> tuple[tuple, None]:
        values, ids, peak, total = carry
        weights, numbers = part
        logits = chunk_logits(rows, weights, numbers, vocab, soft_cap).reshape(rows.shape[0], -1)
        new_peak = jnp.maximum(peak, logits.max(1))
        total = total * jnp.exp(peak - new_peak) + jnp.exp(logits - new_peak[:, None]).sum(1)
        found, places = lax.top_k(logits, min(k, logits.shape[1]))
        # Kept entries come first: their ids are lower within a shard, and `top_k` keeps the order of equals.
        values = jnp.concatenate([values, found], 1)
        ids = jnp.concatenate([ids, numbers.reshape(-1)[places]], 1)
        best, kept = lax.top_k(values, k)
        return (best, jnp.take_along_axis(ids, kept, 1), new_peak, total), None

    count = rows.shape[0]
    start = (
        jnp.full((count, k), -jnp.inf, dtype), jnp.zeros((count, k), jnp.int32),
        jnp.full(count, jnp.finfo(dtype).min, dtype), jnp.zeros(count, dtype),
    )  # fmt: skip
    (values, ids, peak, total), _ = lax.scan(body, start, split_head(kernel, vocab_shards, chunks))
    logsumexp = peak + jnp.log(total)
    return TopK(
        ids.reshape(*shape, k), (values - logsumexp[:, None]).reshape(*shape, k), logsumexp.reshape(shape)
    )  # fmt: skip
