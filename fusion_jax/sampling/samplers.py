"""Next-token choice: greedy, temperature, top-k, top-p. The randomness of a row depends on nothing but its own key."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclass(frozen=True)
class Sampler:
    """temperature 0 is greedy; top_k 0 and top_p 1 are no limit. Top-k is applied before top-p, both after
    the temperature, as in `transformers`."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


def restrict(logits: Array, sampler: Sampler) -> Array:
    """Logits [R,V] divided by the temperature, with what top-k and top-p exclude at -inf.

    Top-p keeps the smallest set of most likely tokens whose probability reaches p, at least one.
    """
    logits = logits.astype(jnp.float32) / sampler.temperature
    if 0 < sampler.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampler.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampler.top_p < 1.0:
        ordered = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probs, -1) - probs
        kept = jnp.where(before < sampler.top_p, ordered, jnp.inf).at[:, 0].set(ordered[:, 0])
        logits = jnp.where(logits < kept.min(-1, keepdims=True), -jnp.inf, logits)
    return logits


def choose(logits: Array, keys: Array, sampler: Sampler) -> Array:
    """int32[R]: one token a row from logits [R,V] with a key a row."""
    if sampler.temperature == 0.0:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, restrict(logits, sampler)).astype(jnp.int32)
