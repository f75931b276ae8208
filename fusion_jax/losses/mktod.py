"""MK-TOD (arXiv 2310.08877): a retriever of entities learns from the responses that a generator makes of them.

Sections 3.3 and 6 of the specification. Shapes: B turns, E entities of a turn by rank, T tokens of a response, D width
of the retriever's vectors. All results are in at least float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.losses.reductions import Mean, weighted

Array = jax.Array
Level = Literal["sequence", "token"]
LEAST = -1e4  # what a token's log-prob is held above
NEVER = -1e30  # the log-prob of an entity that is not there; finite, so that differences are


class Marginal(NamedTuple):
    """loss: the marginal likelihood, over tokens. prior, posterior: float[B,E], q and w, 0 where there is no entity;
    entropy: of w, in nats, over the turns that have entities."""

    loss: Mean
    prior: Array
    posterior: Array
    entropy: Mean


def in_batch_contrastive(
    contexts: Array,
    entities: Array,
    ids: Array,
    weights: Array,
    *,
    tau: float = 0.05,
    mask_duplicates: bool = True,
) -> tuple[Mean, dict[str, Mean]]:
    """-log [exp(s_ii / tau) / sum_j exp(s_ij / tau)], s_ij = c_i . e_j: each turn's own entity among the batch's.

    Args:
      contexts, entities: float[B,D], of turns and of their positive entities; ids: int[B], the entities' numbers.
      weights: float[B], 0 for a turn that only fills the batch: neither it nor its entity counts.
      mask_duplicates: other turns' columns of the same entity are left out: they are not negatives.

    Returns:
      (loss, metrics), means over turns; `accuracy`: how often the turn's own entity scores highest, ties for it.

    >>> ids, vectors = jnp.asarray([4, 4, 9]), jnp.eye(3)[jnp.asarray([0, 0, 1])]
    >>> for masked in (True, False):
    ...     loss, _ = in_batch_contrastive(vectors, vectors, ids, jnp.ones(3), mask_duplicates=masked)
    ...     print(f"{loss.total / loss.weight:.3f}")
    0.000
    0.462
    """
    wide = jnp.promote_types(contexts.dtype, jnp.float32)
    scores = jnp.einsum("id,jd->ij", contexts.astype(wide), entities.astype(wide), precision="highest") / tau
    own = jnp.eye(ids.shape[0], dtype=bool)
    kept = own | (weights > 0)[None, :]
    if mask_duplicates:
        kept &= own | (ids[:, None] != ids[None, :])
    scores = jnp.where(kept, scores, NEVER)
    positive = jnp.diagonal(scores)
    right = (positive >= scores.max(1)).astype(wide)
    return weighted(jax.nn.logsumexp(scores, 1) - positive, weights), {"accuracy": weighted(right, weights)}


def marginal_likelihood(
    scores: Array,
    logprobs: Array,
    mask: Array,
    exists: Array,
    *,
    tau: float = 1.0,
    level: Level = "sequence",
    stop_grad_theta: bool = False,
) -> Marginal:
    """-log sum_i q_i p(r | c, e_i), q = softmax(scores / tau), of n tokens; divided by n so that it is on the scale of
    a cross-entropy.

    "sequence": p(r | c, e_i) is the product over tokens; the gradient by a score is (q_i - w_i) / (n tau) with the
    posterior w_i = q_i p_i / sum_j q_j p_j. "token": -(1/n) sum_t log sum_i q_i p_it, as in EMDR2 (arXiv 2106.05346).

    Args:
      scores: float[B,E], the retriever's; logprobs: float[B,E,T], of the response's tokens given each entity alone.
        They are held above -1e4.
      mask: [B,T], 1 where a token is scored; exists: bool[B,E]. A turn without entities adds 0.
      stop_grad_theta: no gradient to `logprobs`, the generator's.

    >>> logprobs = jnp.asarray([[[-0.1, -0.3], [-0.7, -0.9], [-2.0, -1.5]]])
    >>> scores, every = jnp.asarray([[2.0, 1.0, 0.0]]), jnp.ones((1, 3), bool)
    >>> found = marginal_likelihood(scores, logprobs, jnp.ones((1, 2)), every)
    >>> print(f"{found.loss.total / found.loss.weight:.4f}", *(f"{w:.3f}" for w in found.posterior[0]))
    0.3485 0.895 0.099 0.005
    """
    wide = jnp.promote_types(logprobs.dtype, jnp.float32)
    prior = jax.nn.log_softmax(jnp.where(exists, scores.astype(wide) / tau, NEVER), -1)
    each = _scored(logprobs, mask, exists, wide)
    if stop_grad_theta:
        each = jax.lax.stop_gradient(each)
    joint = prior + each.sum(-1)
    if level == "sequence":
        values = -jax.nn.logsumexp(joint, -1)
    else:
        values = -jnp.where(mask > 0, jax.nn.logsumexp(prior[..., None] + each, 1), 0.0).sum(-1)
    there, tokens = exists.any(-1), (mask > 0).sum(-1).astype(wide)
    loss = Mean(jnp.where(there & (tokens > 0), values, 0.0).sum(), tokens.sum())
    posterior = jax.lax.stop_gradient(jax.nn.softmax(joint, -1))
    entropy = -jax.scipy.special.xlogy(posterior, posterior).sum(-1)
    q, w = (jnp.where(exists, x, 0.0) for x in (jax.lax.stop_gradient(jnp.exp(prior)), posterior))
    return Marginal(loss, q, w, weighted(entropy, (there & (tokens > 0)).astype(wide)))


def entity_contrast(
    logprobs: Array,
    without: Array,
    mask: Array,
    retrieved: Array,
    weights: Array,
    *,
    size: int = 3,
    margin: float = 0.01,
) -> Mean:
    """sum over the `size` entities of highest rank of max(0, d - d_i + margin): each should help, compared with none.

    d_i and d are the response's mean log-probs of a token with entity i and without any.

    Args:
      logprobs: float[B,E,T], by rank; without: float[B,T], both held above -1e4; mask: [B,T], 1 where scored.
      retrieved: bool[B,E], false for a negative and for entities that are not there.
      weights: float[B], of turns; one without entities or tokens adds 0.

    Returns:
      A mean over turns.

    >>> logprobs, without = jnp.asarray([[[-0.5, -0.5], [-2.0, -1.0]]]), jnp.asarray([[-1.0, -1.0]])
    >>> print(entity_contrast(logprobs, without, jnp.ones((1, 2)), jnp.ones((1, 2), bool), jnp.ones(1), size=2).total)
    0.51
    """
    wide = jnp.promote_types(logprobs.dtype, jnp.float32)
    n = jnp.maximum((mask > 0).sum(-1, keepdims=True), 1).astype(wide)
    top = retrieved[:, :size] & (mask > 0).any(-1, keepdims=True)
    with_each = _scored(logprobs[:, :size], mask, top, wide).sum(-1) / n
    with_none = _scored(without[:, None], mask, top.any(-1, keepdims=True), wide).sum(-1) / n
    lost = jax.nn.relu(with_none - with_each + margin)
    return weighted(jnp.where(top, lost, 0.0).sum(-1), weights)


def _scored(logprobs: Array, mask: Array, exists: Array, dtype: jnp.dtype) -> Array:
    """Log-probs [B,E,T] held above `LEAST`; 0 where the token [B,T] is not scored or the entity [B,E] is not there."""
    kept = (mask > 0)[:, None] & exists[..., None]
    return jnp.where(kept, jnp.maximum(logprobs.astype(dtype), LEAST), 0.0)
