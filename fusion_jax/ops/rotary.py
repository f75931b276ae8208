"""Rotary position embedding with the scalings that the families use. Angles are float32 whatever the compute dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base and, where the family scales it, the rule (`rope_parameters` of the files).

    share: of a head's numbers that are rotated, the first ones.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1. longrope; None: see `_longrope`
    share: float = 1.0
    mscale: float = 0.0  # yarn, both given: the factor is the ratio of 0.1 m ln(factor) + 1 for the two m
    mscale_all_dim: float = 0.0
    short_factors: tuple[float, ...] = ()  # longrope: divisors of the frequencies, one of each,
    long_factors: tuple[float, ...] = ()  # and those of texts beyond the original length

    def rotated(self, head_dim: int) -> int:
        """How many numbers of a head are rotated."""
        return int(head_dim * self.share)


def rotary_tables(positions: Array, rope: Rope, head_dim: int, max_positions: int) -> tuple[Array, Array]:
    """(cos, sin) float32[B,T,r/2] for absolute positions int[B,T], r the numbers of a head that are rotated."""
    head_dim, factor = rope.rotated(head_dim), 1.0
    if rope.kind == "dynamic":
        length = jnp.maximum(positions.max() + 1, max_positions).astype(jnp.float32)
        grown = rope.factor * length / max_positions - (rope.factor - 1)
        base = rope.theta * grown ** (head_dim / (head_dim - 2))
        frequencies = 1.0 / base ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    elif rope.kind == "longrope":
        frequencies, factor = _longrope(positions, rope, head_dim)
    else:
        values, factor = _frequencies(rope, head_dim, max_positions)
        frequencies = jnp.asarray(values, jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def _frequencies(rope: Rope, head_dim: int, max_positions: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies float32[h/2] and the factor that the tables are multiplied by."""
    plain = (1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(np.float32)
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(plain, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, head_dim, max_positions)
    return plain, 1.0


def _llama3(plain: np.ndarray, rope: Rope) -> np.ndarray:
    """Long wavelengths are slowed down by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    wavelengths = 2 * math.pi / plain
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = np.clip((rope.original_max_positions / wavelengths - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * plain / rope.factor + smooth * plain).astype(np.float32)


def llama3_divisors(rope: Rope, rotated: int) -> np.ndarray:
    """What Llama 3.1's scaling divides the plain frequencies of so many rotated numbers by, float32[r/2]."""
    plain = (1.0 / rope.theta ** (np.arange(0, rotated, 2, dtype=np.float32) / rotated)).astype(np.float32)
    return plain / _llama3(plain, rope)


def _yarn(rope: Rope, head_dim: int, max_positions: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolate dimensions that turn fewer than beta_slow times in the original length."""
    original = rope.original_max_positions or max_positions

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = max(math.floor(dimension(rope.beta_fast)), 0), min(math.ceil(dimension(rope.beta_slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 1e-3), 0, 1)
    plain = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    both = rope.mscale and rope.mscale_all_dim
    default = mscale(rope, rope.mscale) / mscale(rope, rope.mscale_all_dim) if both else mscale(rope, 1.0)
    factor = rope.attention_factor if rope.attention_factor is not None else default
    return (plain / rope.factor * ramp + plain * (1 - ramp)).astype(np.float32), factor


def mscale(rope: Rope, weight: float) -> float:
    """What yarn multiplies by for longer texts."""
    return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0


def _longrope(positions: Array, rope: Rope, head_dim: int) -> tuple[Array, float]:
    """LongRoPE (arXiv 2402.13753): the frequencies are divided by factors of their own, other ones in rows with a
    position beyond the original length (transformers decides for all rows of a batch)."""
    plain = rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    short, long = (1.0 / (np.asarray(each, np.float32) * plain) for each in (rope.short_factors, rope.long_factors))
    grown = rope.factor > 1
    default = math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_positions)) if grown else 1.0
    factor = rope.attention_factor if rope.attention_factor is not None else default
    beyond = positions.max(-1)[..., None, None] >= rope.original_max_positions
    return jnp.where(beyond, jnp.asarray(long, jnp.float32), jnp.asarray(short, jnp.float32)), factor


def apply_rotary(x: Array, tables: tuple[Array, Array], pairs: bool = False) -> Array:
    """Rotate the first r numbers of the heads of [B,T,H,h] by (cos, sin) [B,T,r/2].

    Args:
      pairs: whether the two coordinates of a rotation are neighbours; else they are the two halves of the r numbers.
    """
    cos, sin = (t[:, :, None].astype(x.dtype) for t in tables)
    rotated = 2 * cos.shape[-1]
    turned, rest = x[..., :rotated], x[..., rotated:]
    if pairs:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = jnp.split(turned, 2, -1)
    both = first * cos - second * sin, second * cos + first * sin
    turned = jnp.stack(both, -1).reshape(turned.shape) if pairs else jnp.concatenate(both, -1)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned
