"""Log-probabilities of labels under a linear head, without ever holding the logits of all tokens.

Every loss of this code base that touches the vocabulary goes through `linear_logprobs`. The vocabulary is cut
into chunks; the forward pass keeps a running log-sum-exp and the label's logit, the backward pass computes each
chunk's logits again and writes that chunk's head gradient once. Memory beyond inputs and gradients is
O(N * chunk) instead of O(N * V); the price is one extra matmul in four.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
CHUNK_ELEMENTS = 1 << 22  # logits that a device holds at once (16 MiB in float32): what suits a CPU
CHUNK_ELEMENTS_ACCELERATOR = 1 << 25
FEW = 16  # labels of a position that are compared, which fuses with what else is done to the logits; more are gathered


def linear_logprobs(
    hidden: Array,
    kernel: Array,
    labels: Array,
    *,
    soft_cap: float | None = None,
    vocab_shards: int = 1,
    row_shards: int = 1,
    elements: int = CHUNK_ELEMENTS,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """log softmax(cap(hidden @ kernel.T))[label] and its normaliser.

    Args:
      hidden: [..., D] states that predict the labels, any float dtype.
      kernel: [V, D] head, cast to the dtype of `hidden`; logits are accumulated in at least float32.
      labels: int[...] in [0, V), or int[..., K] for the log-probs of K entries of each position.
      soft_cap: Gemma-2's c * tanh(logits / c).
      vocab_shards: in how many parts the mesh splits V; every chunk takes an equal slice of each part, so that no
        part of the head moves between devices.
      row_shards: in how many parts the mesh splits the positions.
      elements: logits that a device holds at once, about; larger suits accelerators.
      chunk: vocabulary entries at once, instead of what `elements` gives.

    Returns:
      (logprobs in the shape of `labels`, logsumexp[...]), float32 (float64 for float64 input); both are
      differentiable.
    """
    shape, dim = hidden.shape[:-1], hidden.shape[-1]
    count = max(math.prod(shape), 1)
    chunks = chunk_plan(kernel.shape[0], -(-count // row_shards), vocab_shards, chunk, elements)
    if labels.size == 0:
        empty = jnp.zeros(shape, accumulator(hidden.dtype))
        return jnp.zeros(labels.shape, empty.dtype), empty
    entries = labels.reshape(count, -1)
    logprobs, logsumexp = _logprobs(hidden.reshape(-1, dim), kernel, entries, soft_cap, vocab_shards, chunks)
    return logprobs.reshape(labels.shape), logsumexp.reshape(shape)


def chunk_plan(vocab: int, rows: int, shards: int, chunk: int | None, elements: int = CHUNK_ELEMENTS) -> int:
    """Into how many chunks a vocabulary is cut for `rows` positions on a device at once."""
    per_shard = -(-vocab // shards)
    wanted = max(elements // max(rows, 1), 256) if chunk is None else -(-chunk // shards)
    return _chunk_count(per_shard, max(min(wanted, per_shard), 1))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """What logits and sums of them are held in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _chunk_count(size: int, wanted: int) -> int:
    """Number of chunks of about `wanted` entries: one that divides `size` if there is one close by."""
    least = -(-size // wanted)
    return next((n for n in range(least, min(2 * least, size) + 1) if size % n == 0), least)


def split_head(kernel: Array, shards: int, chunks: int) -> tuple[Array, Array]:
    """[V, D] -> chunked [chunks, shards, Vc, D] and the vocabulary ids [chunks, shards, Vc] of its rows."""
    vocab, dim = kernel.shape
    per_chunk = -(-vocab // (shards * chunks))
    padded = per_chunk * shards * chunks
    if padded != vocab:
        kernel = jnp.pad(kernel, ((0, padded - vocab), (0, 0)))
    ids = jnp.arange(padded, dtype=jnp.int32).reshape(shards, chunks, per_chunk)
    return kernel.reshape(shards, chunks, per_chunk, dim).swapaxes(0, 1), ids.swapaxes(0, 1)


def join_head(chunked: Array, vocab: int) -> Array:
    """The inverse of `split_head` for gradients."""
    return chunked.swapaxes(0, 1).reshape(-1, chunked.shape[-1])[:vocab]


def chunk_logits(hidden: Array, part: Array, ids: Array, vocab: int, cap: float | None) -> Array:
    """Logits [N, shards, Vc] of one chunk; entries that only pad the vocabulary are -inf."""
    logits = jnp.einsum(
        "nd,svd->nsv", hidden, part.astype(hidden.dtype), preferred_element_type=accumulator(hidden.dtype)
    )
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    return jnp.where(ids < vocab, logits, -jnp.inf)


def grown(peak: Array, logits: Array) -> tuple[Array, Array, Array]:
    """The running maxima [N] with a chunk's logits [N, shards, Vc] counted in, what sums relative to the old maxima are
    multiplied by [N], and exp(logits - maxima)."""
    new_peak = jnp.maximum(peak, logits.max((1, 2)))
    return new_peak, jnp.exp(peak - new_peak), jnp.exp(logits - new_peak[:, None, None])


def through_head(
    d_logits: Array, logits: Array, hidden: Array, part: Array, ids: Array, vocab: int, cap: float | None
) -> tuple[Array, Array]:
    """The gradients of a chunk's logits handed back: what they add to the states' [N, D], and the part's own."""
    dtype = d_logits.dtype
    if cap is not None:
        d_logits *= 1.0 - (jnp.where(ids < vocab, logits, 0.0) / cap) ** 2
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum("nsv,svd->nd", d_logits, part.astype(hidden.dtype), preferred_element_type=dtype)
    d_part = jnp.einsum("nsv,nd->svd", d_logits, hidden, preferred_element_type=dtype)
    return d_hidden, d_part.astype(part.dtype)


def _inside(labels: Array, ids: Array) -> tuple[Array, Array]:
    """Where labels [N, K] lie in a chunk: places [N, shards, K], Vc for those that lie elsewhere, and which do not."""
    places = labels[:, None, :] - ids[:, 0][None, :, None]
    inside = (places >= 0) & (places < ids.shape[1])
    return jnp.where(inside, places, ids.shape[1]), inside


def _each(labels: Array, ids: Array) -> Iterator[Array]:
    """For each column of labels [N, K], where in a chunk it lies: bool[N, shards, Vc]."""
    return (ids == labels[:, k, None, None] for k in range(labels.shape[1]))


def picked(logits: Array, labels: Array, ids: Array) -> Array:
    """The chunk's logits of the labels, 0 for those outside it: [N, K]."""
    if labels.shape[1] <= FEW:
        return jnp.stack([jnp.where(at, logits, 0.0).sum((1, 2)) for at in _each(labels, ids)], 1)
    places, inside = _inside(labels, ids)
    found = jnp.take_along_axis(logits, jnp.minimum(places, ids.shape[1] - 1), 2)
    return jnp.where(inside, found, 0.0).sum(1)


def spread(d_logits: Array, values: Array, labels: Array, ids: Array) -> Array:
    """`d_logits` [N, shards, Vc] with the labels' values [N, K] added at their places."""
    if labels.shape[1] <= FEW:
        added = (jnp.where(at, values[:, k, None, None], 0.0) for k, at in enumerate(_each(labels, ids)))
        return sum(added, start=d_logits)
    places, _ = _inside(labels, ids)
    add = jax.vmap(jax.vmap(lambda row, at, value: row.at[at].add(value, mode="drop"), (0, 0, None)))
    return add(d_logits, places, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _logprobs(
    hidden: Array, kernel: Array, labels: Array, cap: float | None, shards: int, chunks: int
) -> tuple[Array, Array]:
    return _forward(hidden, kernel, labels, cap, shards, chunks)[0]


def _forward(
    hidden: Array, kernel: Array, labels: Array, cap: float | None, shards: int, chunks: int
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
    vocab, dtype = kernel.shape[0], accumulator(hidden.dtype)

    def body(carry: tuple[Array, Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple, None]:
        peak, total, label_logit = carry
        part, ids = chunk
        logits = chunk_logits(hidden, part, ids, vocab, cap)
        peak, decay, masses = grown(peak, logits)
        total = total * decay + masses.sum((1, 2))
        label_logit += picked(logits, labels, ids)
        return (peak, total, label_logit), None

    rows = labels.shape[0]
    start = (jnp.full(rows, jnp.finfo(dtype).min, dtype), jnp.zeros(rows, dtype), jnp.zeros(labels.shape, dtype))
    (peak, total, label_logit), _ = lax.scan(body, start, split_head(kernel, shards, chunks))
    logsumexp = peak + jnp.log(total)
    return (label_logit - logsumexp[:, None], logsumexp), (hidden, kernel, labels, logsumexp)


def _backward(
    cap: float | None,
    shards: int,
    chunks: int,
    saved: tuple[Array, Array, Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, None]:
    hidden, kernel, labels, logsumexp = saved
    g_logprob, g_logsumexp = cotangents
    vocab, dtype = kernel.shape[0], logsumexp.dtype
    g_probs = g_logsumexp - g_logprob.sum(1)

    def body(d_hidden: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        part, ids = chunk
        logits = chunk_logits(hidden, part, ids, vocab, cap)
        probs = jnp.exp(logits - logsumexp[:, None, None])
        d_logits = spread(g_probs[:, None, None] * probs, g_logprob, labels, ids)
        added, d_part = through_head(d_logits, logits, hidden, part, ids, vocab, cap)
        return d_hidden + added, d_part

    d_hidden, d_chunks = lax.scan(body, jnp.zeros(hidden.shape, dtype), split_head(kernel, shards, chunks))
    return d_hidden.astype(hidden.dtype), join_head(d_chunks, vocab), None


_logprobs.defvjp(_forward, _backward)
