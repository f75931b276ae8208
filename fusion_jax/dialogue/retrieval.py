"""Which entities a turn gets, inside a compiled step: vectors of texts, the best entities, and the worst one.

Sections 3.1, 3.2 and 3.4 of MK-TOD's specification (arXiv 2310.08877). Shapes: B turns, N candidates of a turn or
entities of a knowledge base, K entities that are retrieved, E of them with the negative one, D numbers of a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, encoded_states, projected
from fusion_jax.models.layers import Noise
from fusion_jax.sharding import constrain

Array = jax.Array
AT_ONCE = 256
"""Entities of a large knowledge base that are read at once."""


class Picked(NamedTuple):
    """What is chosen of scores [B,N], by rank, the negative last.

    places: int[B,E], among the N; exists: bool[B,E], false where a turn has fewer entities; negative: bool[E].
    """

    places: Array
    exists: Array
    negative: Array


class Retrieved(NamedTuple):
    """The entities of turns by rank, the negative last.

    entities: int[B,E], places in the knowledge base; exists: bool[B,E]; scores: float32[B,E], cosines, with gradient
    where the retriever learns; negative: bool[E].
    """

    entities: Array
    exists: Array
    scores: Array
    negative: Array


def vectors(params: Params, config: ModelConfig, tokens: Array, compute: Compute, noise: Noise | None = None) -> Array:
    """float32[B,D] of length 1, of texts int[B,L] that are padded with -1. `config.head.projected` is D."""
    exists = tokens >= 0
    hidden = encoded_states(
        params, config, jnp.maximum(tokens, 0), exists, noise=noise, mesh=compute.mesh, dtype=compute.dtype,
        remat=compute.remat, kernel=compute.kernel,
    )  # fmt: skip
    return projected(params, config, hidden)


def index(params: Params, config: ModelConfig, tokens: Array, compute: Compute, at_once: int = AT_ONCE) -> Array:
    """float32[N,D], the vectors of all entities int[N,L], `at_once` at once; a large one lies over the devices."""
    count, width = tokens.shape
    if count <= at_once:
        return vectors(params, config, tokens, compute)
    parts = -(-count // at_once)
    whole = jnp.pad(tokens, ((0, parts * at_once - count), (0, 0)), constant_values=0)
    found = jax.lax.map(lambda some: vectors(params, config, some, compute), whole.reshape(parts, at_once, width))
    return constrain(found.reshape(parts * at_once, -1)[:count], compute.mesh, ("batch", None))


def pick(scores: Array, there: Array, k: int, *, negative: bool) -> Picked:
    """The k highest scores, float[B,N], in descending order and, besides, the lowest of the others; equal scores by
    their place. A turn with k entities or fewer has no negative one.

    Args:
      there: bool[B,N], which candidates exist.

    >>> found = pick(jnp.asarray([[0.1, 0.9, 0.3, 0.5]]), jnp.ones((1, 4), bool), 2, negative=True)
    >>> print(found.places, found.exists)
    [[1 3 0]] [[ True  True  True]]
    """
    size = scores.shape[1]
    k = min(k, size)
    ranked, places = jax.lax.top_k(jnp.where(there, scores, -jnp.inf), k)
    exists = jnp.take_along_axis(there, places, 1)
    if not negative or k == size:
        return Picked(places, exists, jnp.zeros(k, bool))
    chosen = (places[..., None] == jnp.arange(size)).any(1)
    others = there & ~chosen
    worst = jnp.argmin(jnp.where(others, scores, jnp.inf), 1)
    places = jnp.concatenate([places, worst[:, None].astype(places.dtype)], 1)
    return Picked(places, jnp.concatenate([exists, others.any(1)[:, None]], 1), jnp.arange(k + 1) == k)


def among_own(query: Array, candidates: Array, own: Array, k: int, *, negative: bool) -> Retrieved:
    """The entities of a turn among a few of its own, whose vectors were made with gradient.

    Args:
      query: float[B,D]; candidates: float[B,N,D]; own: int[B,N], their places in the knowledge base, -1 for none.
    """
    scores = jnp.einsum("bd,bnd->bn", query, candidates, precision="highest")
    found = pick(jax.lax.stop_gradient(scores), own >= 0, k, negative=negative)
    kept, entities = (jnp.take_along_axis(x, found.places, 1) for x in (scores, own))
    return Retrieved(jnp.maximum(entities, 0), found.exists, jnp.where(found.exists, kept, 0.0), found.negative)


def among_all(query: Array, table: Array, there: Array, k: int, *, negative: bool) -> Picked:
    """The entities of a turn in a whole knowledge base by an index float[N,D], which may be older than the query.

    Args:
      there: bool[N], which entities exist; the arrays of an empty knowledge base have one that does not.
    """
    scores = jnp.einsum("bd,nd->bn", jax.lax.stop_gradient(query), table, precision="highest")
    return pick(scores, jnp.broadcast_to(there, scores.shape), k, negative=negative)
