"""How probable the tokens of whole texts are: one forward pass each, without a session.

For texts that share nothing, and for those that fill a model to its last position: the last token of a text is asked
for and not read, so that a text may have one token more than the model has positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.models.decode import next_logits
from fusion_jax.models.decoder import Params, forward, head_kernel, padded_positions, soft_capped
from fusion_jax.ops.linear_topk import linear_topk
from fusion_jax.sampling.prompts import How, Ready, compiled_for
from fusion_jax.sampling.session import MOST_LOGITS, Scored, on_host
from fusion_jax.sampling.sizes import PACKED_TOKENS, chunks, packed_width, read_width
from fusion_jax.sharding import constrain, data_ways, padded_rows, placed, tensor_shards

Array = jax.Array


class Text(NamedTuple):
    """ids: the tokens of a text; start: the place of the first one that is scored, at least 1."""

    ids: Sequence[int]
    start: int


def text_scores(model: Ready, texts: Sequence[Text], *, most: int = PACKED_TOKENS) -> Iterator[tuple[int, Scored]]:
    """Log-probabilities of the tokens of each text from its start on, softmax in at least float32, with the text's
    number; short texts first.

    Args:
      model: a decoder.
      texts: each of at least two tokens, and at most one more than the model has positions.
      most: tokens of one forward pass, but for a text that is longer alone.
    """
    ways = data_ways(model.how.mesh)
    order = sorted(range(len(texts)), key=lambda number: len(texts[number].ids))
    for width, alike in itertools.groupby(order, lambda number: read_width(len(texts[number].ids) - 1)):
        # behind the width, so that a few long continuations do not widen all
        numbers = sorted(alike, key=lambda number: packed_width(len(texts[number].ids) - texts[number].start))
        rows = padded_rows(min(max(most // width, 1), 1 << (len(numbers) - 1).bit_length()), ways)
        for some in chunks(numbers, rows):
            yield from zip(some, _scored(model, [texts[number] for number in some], rows, width), strict=True)


def _scored(model: Ready, texts: Sequence[Text], rows: int, width: int) -> list[Scored]:
    asked = packed_width(max(len(text.ids) - text.start for text in texts))
    tokens, labels = np.zeros((rows, width), np.int32), np.zeros((rows, asked), np.int32)
    lengths, starts = np.zeros(rows, np.int32), np.ones(rows, np.int32)
    for row, (ids, start) in enumerate(texts):
        tokens[row, : len(ids) - 1], labels[row, : len(ids) - start] = ids[:-1], ids[start:]
        lengths[row], starts[row] = len(ids) - 1, start
    mesh = model.how.mesh
    by_token = (placed(one, mesh, ("batch", "tokens")) for one in (tokens, labels))
    by_row = (placed(one, mesh, ("batch",)) for one in (lengths, starts))
    logprobs, greedy = (on_host(one, mesh) for one in _read(model.how)(model.params, *by_token, *by_row))
    return [
        Scored(logprobs[row, : len(ids) - start], greedy[row, : len(ids) - start])
        for row, (ids, start) in enumerate(texts)
    ]


@compiled_for
def _read(how: How, params: Params, tokens: Array, labels: Array, lengths: Array, starts: Array) -> tuple[Array, Array]:
    """log p(label) [B,n] behind the tokens int[B,T], and whether nothing is more probable; label j stands at place
    starts + j."""
    config, mesh = how.config, how.mesh
    places = padded_positions(tokens, config, lengths)
    hidden = forward(params, config, tokens, positions=places, mesh=mesh, dtype=how.dtype, kernel=how.kernel)
    wanted = jnp.minimum(starts[:, None] - 1 + jnp.arange(labels.shape[1]), tokens.shape[1] - 1)
    states = jnp.take_along_axis(hidden, wanted[..., None], 1)
    if labels.size * config.vocab_size <= MOST_LOGITS:
        logits = next_logits(states.reshape(-1, states.shape[-1]), params, config).reshape(*labels.shape, -1)
        logits = constrain(logits, mesh, ("batch", "tokens", "vocab"))
        found = jnp.take_along_axis(logits, labels[..., None], 2)[..., 0] - jax.nn.logsumexp(logits, -1)
        return found, logits.argmax(-1) == labels
    kernel = head_kernel(params, config)
    shards = {"vocab_shards": tensor_shards(mesh), "row_shards": data_ways(mesh)}
    top = linear_topk(states, kernel, 1, soft_cap=config.head.soft_cap, **shards)
    own = jnp.einsum(
        "bnd,bnd->bn", states, kernel[labels].astype(states.dtype), preferred_element_type=top.logsumexp.dtype
    )
    return soft_capped(own, config) - top.logsumexp, top.ids[..., 0] == labels
