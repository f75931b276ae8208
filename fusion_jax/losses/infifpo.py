"""InfiFPO (arXiv 2505.13878): a preference loss whose reference is fused from what several models make of a response.

Shapes: B examples, S responses of an example, the rejected one last, N sources. A value is a log-prob of a response
divided by the number of tokens in its scorer's own tokenisation or, without length normalisation, the log-prob itself.
The loss is then `dpo`, `ipo` or `wrpo` on the policy's values with the fused ones as reference.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Fusion = Literal["max_margin", "average", "confidence"]
Distance = Literal["prob", "logp"]


class Fused(NamedTuple):
    """A fused reference. values: float[B,S]; weights, clipped: float[B,S,N], of each source, whose products sum to
    `values`; changed: bool[B,S,N], where clipping changed the value of a source."""

    values: Array
    weights: Array
    clipped: Array
    changed: Array


def fused_reference(
    initial: Array,
    sources: Array,
    *,
    fusion: Fusion = "max_margin",
    clip: bool = True,
    distance: Distance = "prob",
    beside: Array | None = None,
    eps: float = 1e-6,
) -> Fused:
    """sum_i g_i c_i, weights g that sum to 1 (Eq. 13), c_i the sources' values, clipped (Eq. 11).

    Clipping takes the larger of a source's and the initial model's value for preferred responses and the smaller one
    for the rejected response, so that no source makes the margin less than the initial model's. No gradient passes.

    Args:
      initial: float[B,S], values under the model that training starts from. sources: float[B,S,N], NaN where a source
        has none for an example; it then counts as if it were not there. Every example has the value of one source.
      fusion: the source whose value lies farthest from the initial model's, the first of equals ("max_margin", Eq. 12);
        all alike ("average", Eq. 23); in proportion to 1 / (eps - c) ("confidence", Eq. 24 and 25).
      distance: of probabilities or of log-probs; the latter for values that are not length-normalised.
      beside: float[B,S], the values that distances are taken to, where these are not the initial model's.

    >>> initial = jnp.asarray([[-0.5, -1.0]])
    >>> fused = fused_reference(initial, jnp.asarray([[[-0.25, -0.75], [-0.5, -2.0]]]))
    >>> print(fused.values, fused.weights[0, 1])
    [[-0.25 -2.  ]] [0. 1.]
    """
    initial, sources = jax.lax.stop_gradient((initial, sources))
    beside = initial if beside is None else jax.lax.stop_gradient(beside)
    there = ~jnp.isnan(sources)
    clipped = sources = jnp.where(there, sources, initial[..., None])
    if clip:
        better, worse = jnp.maximum(sources, initial[..., None]), jnp.minimum(sources, initial[..., None])
        rejected = jnp.arange(sources.shape[1]) == sources.shape[1] - 1
        clipped = jnp.where(rejected[:, None], worse, better)
    if fusion == "max_margin":
        form = jnp.exp if distance == "prob" else jnp.asarray
        distances = jnp.abs(form(clipped) - form(beside)[..., None])
        chosen = jnp.argmax(jnp.where(there, distances, -1.0), -1)
        weights = jax.nn.one_hot(chosen, sources.shape[-1], dtype=sources.dtype)
    elif fusion == "confidence":
        confidence = there / (eps - clipped)
        weights = confidence / confidence.sum(-1, keepdims=True)
    else:
        weights = there / there.sum(-1, keepdims=True).astype(clipped.dtype)
    return Fused((weights * clipped).sum(-1), weights, clipped, clipped != sources)
