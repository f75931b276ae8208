"""The generator's passages, inside a compiled step: a context, an entity's tag and the entity, each passage read alone.

Sections 4 and 5 of MK-TOD's specification (arXiv 2310.08877). One reading of the passages serves all decoders: all
passages together (fusion in decoder), each passage alone, and a passage without entity.

Shapes: B turns, E entities of a turn, P passages (E, or one more), C, W and L tokens of a context, a tag and an entity,
S = C + W + L tokens of a passage, T tokens of a response, D width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.dialogue.meta import OTHER, RANKS, Meta, Thresholds
from fusion_jax.dialogue.retrieval import Retrieved
from fusion_jax.models.attention import Encoded
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, encoded_states, gathered
from fusion_jax.models.layers import Noise

Array = jax.Array
CONFIDENCES = ("high", "mid", "low")
CLASSES = (RANKS + 1) * len(CONFIDENCES) * 2


class Passages(NamedTuple):
    """Texts of the encoder: tokens int[B,P,S], of which some exist, bool[B,P,S]; entities: bool[B,P], the passages with
    an entity. Where a turn has none, the first passage is its context alone; further ones are empty."""

    tokens: Array
    exists: Array
    entities: Array


def class_number(meta: Meta) -> int:
    """The place of an entity's classes in a table of tags."""
    rank = RANKS if meta.rank == OTHER else meta.rank - 1
    return (rank * len(CONFIDENCES) + CONFIDENCES.index(meta.confidence)) * 2 + int(meta.old)


def tag_table(tags: Mapping[Meta, Sequence[int]]) -> np.ndarray:
    """int32[CLASSES,W], the tokens of every tag by `class_number`, padded with -1 to the longest; W is 0 where nothing
    is told. tags: of `meta.tag_ids`."""
    width = max(map(len, tags.values()))
    table = np.full((CLASSES, width), -1, np.int32)
    for meta, ids in tags.items():
        table[class_number(meta), : len(ids)] = ids
    return table


def classes(found: Retrieved, old: Array, thresholds: Thresholds = "table10") -> Array:
    """int[B,E], the `class_number` of every entity: its rank, its score, and whether the context names it.

    Args:
      old: bool[B,E]. Of a negative entity nothing is told: other, low, new.
    """
    scores, negative = jax.lax.stop_gradient(found.scores), found.negative
    rank = jnp.minimum(jnp.arange(scores.shape[1]), RANKS)
    if thresholds == "table10":
        level = jnp.where(scores >= 0.75, 0, jnp.where(scores >= 0.25, 1, 2))
    else:
        level = jnp.where(scores > 0.75, 0, jnp.where(scores > 0.4, 1, 2))
    rank, level = jnp.where(negative, RANKS, rank), jnp.where(negative, len(CONFIDENCES) - 1, level)
    return (rank * len(CONFIDENCES) + level) * 2 + (old & ~negative).astype(jnp.int32)


def passages(context: Array, tags: Array, entities: Array, there: Array, *, bare: bool) -> Passages:
    """Each entity behind the context and its tag.

    A part keeps its width, so that tokens stand at the same places of every passage; padding is masked.

    Args:
      context: int[B,C]; tags: int[B,E,W]; entities: int[B,E,L]; all padded with -1, the last two, together, cut on the
        right to L tokens. there: bool[B,E], the entities that exist.
      bare: whether a passage without entity comes behind the others.
    """
    decorated = jnp.concatenate([tags, entities[..., : max(entities.shape[-1] - tags.shape[-1], 0)]], -1)
    decorated = jnp.where(there[..., None], decorated, -1)
    if not decorated.shape[1] or bare:
        decorated = jnp.pad(decorated, ((0, 0), (0, 1), (0, 0)), constant_values=-1)
        there = jnp.pad(there, ((0, 0), (0, 1)))
    count = decorated.shape[1]
    with_text = there | (jnp.arange(count) == 0) | ((jnp.arange(count) == count - 1) & bare)
    said = jnp.where(with_text[..., None], context[:, None], -1)
    tokens = jnp.concatenate([said, decorated], -1)
    return Passages(jnp.maximum(tokens, 0), tokens >= 0, there)


def in_one(texts: Passages, context: int) -> Passages:
    """One passage of the first one's context and all entities, in the place of several (`context` tokens wide)."""

    def joined(x: Array) -> Array:
        return jnp.concatenate([x[:, 0, :context], x[:, :, context:].reshape(len(x), -1)], 1)[:, None]

    return Passages(joined(texts.tokens), joined(texts.exists), texts.entities.any(1, keepdims=True))


def read(params: Params, config: ModelConfig, texts: Passages, compute: Compute, noise: Noise | None = None) -> Array:
    """float[B,P,S,D], the encoder's states of every passage, each read alone."""
    shape = texts.tokens.shape
    hidden = encoded_states(
        params, config, texts.tokens.reshape(-1, shape[-1]), texts.exists.reshape(-1, shape[-1]), noise=noise,
        mesh=compute.mesh, dtype=compute.dtype, remat=compute.remat, kernel=compute.kernel,
    )  # fmt: skip
    return hidden.reshape(*shape, -1)


def together(hidden: Array, exists: Array) -> Encoded:
    """All passages of a turn as one text for a decoder (fusion in decoder), B entries."""
    return gathered(hidden.reshape(hidden.shape[0], -1, hidden.shape[-1]), exists.reshape(exists.shape[0], -1))


def apart(hidden: Array, exists: Array) -> Encoded:
    """Each passage as a text of its own, B P entries. An empty one keeps its first place, so that attention has
    something to read; what is read there does not count."""
    flat = exists.reshape(-1, exists.shape[-1])
    flat = flat.at[:, 0].set(flat[:, 0] | ~flat.any(-1))
    return gathered(hidden.reshape(flat.shape[0], flat.shape[1], -1), flat)
