"""Next-token choice: greedy, or repetition penalty, temperature, top-k, top-p, min-p and a draw.

The randomness of a row depends on nothing but its own key.

No step sorts the vocabulary: the nucleus is found by bisection on the bits of the probabilities, and a token is drawn
by first drawing a block of the vocabulary and then a token of that block, which needs few random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from fusion_jax.errors import InputError

Array = jax.Array

_BLOCK = 128
_PROBABILITY_BITS = 30  # float32 in [0, 1] as an integer is below 2**30, and in the same order


@dataclass(frozen=True)
class Sampler:
    """temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are no limit. The penalty comes
    first, then the temperature, top-k, top-p and min-p, as in `transformers`.

    Raises:
      InputError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, value, good, cure in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "Give 0 (greedy) or more"),
            ("top_p", self.top_p, 0 <= self.top_p <= 1, "Give a share between 0 and 1 (1: no limit)"),
            ("top_k", self.top_k, self.top_k >= 0, "Give 0 (no limit) or more"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "Give a share between 0 (no limit) and 1"),
            (
                "repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"),
                "Give more than 0 (1: none)",
            ),
        ):
            if not good:
                raise InputError(f"{value} is out of range", field=name, cure=cure)

    @property
    def penalises(self) -> bool:
        """Whether the choice depends on which tokens are there already."""
        return self.repetition_penalty != 1.0


GREEDY = Sampler()


def nucleus(weights: Array, share: float) -> Array:
    """bool[R,V]: the smallest set of the heaviest entries whose sum reaches `share` of the row's, at least one.

    Of equal entries at the border those with the lowest index are taken.

    Args:
      weights: float32[R,V], in [0, 1], unnormalised.
    """
    bits = lax.bitcast_convert_type(weights, jnp.int32)
    target = jnp.maximum(share * weights.sum(-1), jnp.finfo(jnp.float32).tiny)

    def lift(i: Array, border: Array) -> Array:
        higher = border | (jnp.int32(1) << (_PROBABILITY_BITS - 1 - i))
        mass = jnp.where(bits >= higher[:, None], weights, 0).sum(-1)
        return jnp.where(mass >= target, higher, border)

    border = lax.fori_loop(0, _PROBABILITY_BITS, lift, jnp.zeros(weights.shape[0], jnp.int32))[:, None]
    above, tied = bits > border, bits == border
    lacking = target - jnp.where(above, weights, 0).sum(-1)
    each = lax.bitcast_convert_type(border[:, 0], jnp.float32)
    needed = jnp.maximum(jnp.ceil(lacking / jnp.maximum(each, jnp.finfo(jnp.float32).tiny)), 1)[:, None]

    def first_of_tied(_: None) -> Array:
        return above | (tied & (jnp.cumsum(tied, -1) <= needed))

    return lax.cond((tied.sum(-1) > needed[:, 0]).any(), first_of_tied, lambda _: above | tied, None)


def penalised(logits: Array, seen: Array, penalty: float) -> Array:
    """Logits [R,V] of tokens that are there already, `seen` bool[R,V]: divided by the penalty where they are positive,
    multiplied by it where they are negative (CTRL, arXiv 1909.05858, as `transformers` has it)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def restrict(logits: Array, sampler: Sampler) -> Array:
    """Logits [R,V] divided by the (positive) temperature, float32, with what top-k, top-p and min-p exclude at -inf.

    Top-k keeps what equals the k-th largest; top-p keeps the smallest set of most likely tokens whose probability
    reaches p, at least one; min-p (arXiv 2407.01082) keeps what is at least min_p times as likely as the most likely.
    """
    logits = logits.astype(jnp.float32) / sampler.temperature
    if 0 < sampler.top_k < logits.shape[-1]:
        least = lax.top_k(logits, sampler.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampler.top_p < 1.0:
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        logits = jnp.where(nucleus(weights, sampler.top_p), logits, -jnp.inf)
    if sampler.min_p > 0.0:
        share = jnp.exp(logits - logits.max(-1, keepdims=True))
        logits = jnp.where(share < sampler.min_p, -jnp.inf, logits)
    return logits


def draw(logits: Array, keys: Array) -> Array:
    """int32[R]: a token a row from softmax(logits [R,V]) with a key a row.

    Exact: P(token) = P(block) P(token | block).
    """
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // _BLOCK)
    padded = jnp.pad(logits, ((0, 0), (0, blocks * _BLOCK - vocabulary)), constant_values=-jnp.inf)
    padded = padded.reshape(rows, blocks, _BLOCK)
    mass = jnp.exp(padded - logits.max(-1)[:, None, None]).sum(-1)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (blocks + _BLOCK,)))(keys)
    block = (jnp.log(mass) + noise[:, :blocks]).argmax(-1)
    inside = jnp.take_along_axis(padded, block[:, None, None], 1)[:, 0]
    return (block * _BLOCK + (inside + noise[:, blocks:]).argmax(-1)).astype(jnp.int32)


def choose(logits: Array, keys: Array, sampler: Sampler) -> Array:
    """int32[R]: one token a row from logits [R,V]; `keys`, a key a row, are not used when greedy."""
    if sampler.temperature == 0.0:
        return logits.argmax(-1).astype(jnp.int32)
    return draw(restrict(logits, sampler), keys)
