"""The copy mechanism over a source text: a gate between what the vocabulary's head says and where the decoder looks.

With gate g, logits z = hidden @ kernel.T and attention a over source ids x, entry v of the vocabulary has the logit
g z_v + (1 - g) u_v, u_v the sum of a_i over the places with x_i = v, before the usual softmax. The copied part is a
probability and so at most 1 - g; Alirector (arXiv 2402.04601) has it as a baseline, and it is kept as published.
Shapes: B examples, T tokens, S source tokens, D and E widths, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS, accumulator, linear_logprobs

Array = jax.Array


def copy_gate(attention: Array, encoded: Array, states: Array, weight: Array, bias: Array) -> Array:
    """g = sigmoid(weight . [context; state] + bias), context the encoder's states under the attention; [B,T].

    Args:
      attention: [B,T,S], of the last layer's cross-attention the mean over heads; encoded: [B,S,E]; states: [B,T,D].
      weight: [E+D]; bias: scalar.
    """
    dtype = accumulator(states.dtype)
    context = jnp.einsum("bts,bse->bte", attention, encoded, preferred_element_type=dtype)
    joined = jnp.concatenate([context, states.astype(dtype)], -1)
    return jax.nn.sigmoid(joined @ weight.astype(dtype) + bias)


def copied_logprobs(
    hidden: Array,
    kernel: Array,
    gate: Array,
    attention: Array,
    sources: Array,
    exists: Array,
    labels: Array,
    *,
    vocab_shards: int = 1,
    row_shards: int = 1,
    elements: int = CHUNK_ELEMENTS,
    chunk: int | None = None,
) -> Array:
    """log softmax(g z + (1 - g) u)[label] without an array [B,T,V].

    Only entries that the source has are changed. With q = softmax(g z), the normaliser grows by the factor
    1 + sum over these entries of q_v (exp((1 - g) u_v) - 1), whose terms are at least 0. Their logits are products of
    the states with rows of the head: 2 B T S D FLOPs.

    Args:
      hidden: [B,T,D]; kernel: [V,D], a head without a soft cap. gate: [B,T].
      attention: [B,T,S]; sources: int[B,S] in [0, V); exists: bool[B,S], false for padding.
      labels: int[B,T]. The rest as in `linear_logprobs`.

    Returns:
      [B,T], float32 (float64 for float64 states); differentiable by hidden, kernel, gate and attention.
    """
    dtype = accumulator(hidden.dtype)
    gate, attention = gate.astype(dtype)[..., None], attention.astype(dtype)
    scaled = (gate * hidden).astype(hidden.dtype)
    logprobs, logsumexp = linear_logprobs(
        scaled, kernel, labels, vocab_shards=vocab_shards, row_shards=row_shards, elements=elements, chunk=chunk
    )
    of_sources = kernel[sources].astype(hidden.dtype)
    logits = jnp.einsum("btd,bsd->bts", scaled, of_sources, preferred_element_type=dtype)
    same = (sources[:, :, None] == sources[:, None, :]) & exists[:, :, None]
    repeated = (same & jnp.tri(sources.shape[1], k=-1, dtype=bool).T).any(1)  # an earlier place has the id
    copied = (1.0 - gate) * jnp.einsum("bts,bsr->btr", attention, same.astype(dtype), precision="highest")
    grown = jnp.exp(logits - logsumexp[..., None]) * jnp.expm1(copied)
    grown = jnp.where((exists & ~repeated)[:, None, :], grown, 0.0).sum(-1)
    here = (sources[:, None, :] == labels[..., None]) & exists[:, None, :]
    of_label = (1.0 - gate[..., 0]) * jnp.where(here, attention, 0.0).sum(-1)
    return logprobs + of_label - jnp.log1p(grown)


def copied_logits(logits: Array, gate: Array, attention: Array, sources: Array, exists: Array) -> Array:
    """g z + (1 - g) u of logits z [...,V] that are there, as in decoding: [...,V].

    Args:
      gate: [...]; attention: [...,S]; sources: int[...,S]; exists: bool[...,S].
    """
    dtype = accumulator(logits.dtype)
    width = sources.shape[-1]
    rows = logits.reshape(-1, logits.shape[-1])
    kept = jnp.where(exists, attention, 0.0).astype(dtype).reshape(-1, width)
    places = jnp.broadcast_to(sources, attention.shape).reshape(-1, width)
    scores = jnp.zeros(rows.shape, dtype).at[jnp.arange(rows.shape[0])[:, None], places].add(kept)
    gate = gate.astype(dtype)[..., None]
    return gate * logits + (1.0 - gate) * scores.reshape(logits.shape)
