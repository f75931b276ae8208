"""Weights of sources and responses from their rewards (FuseRL, section B of its specification).

Shapes: K sources, J samples of each. Everything is computed once, on the host, when the records are made.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Select = Literal["top_k", "best_per_source"]


def softmax(rewards: np.ndarray, temperature: float) -> np.ndarray:
    """float64[...], exp(r / t) divided by its sum over the last axis; 0 where a reward is -inf."""
    scaled = np.asarray(rewards, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def selected(rewards: np.ndarray, texts: list[list[str]], *, select: Select = "top_k", count: int = 4) -> list[int]:
    """Places source * J + sample of the responses that FuseSFT learns from.

    The best `count` of all sources, or the best of each source. Of equal texts the first stays; ties go to the smaller
    place; fewer are taken where fewer exist.
    """
    flat, samples = np.asarray(rewards, np.float64).ravel(), np.shape(rewards)[1]
    words = [text for row in texts for text in row]
    if select == "best_per_source":
        found = [k * samples + int(np.argmax(row)) for k, row in enumerate(np.asarray(rewards))]
    else:
        found = np.argsort(-flat, kind="stable").tolist()
    seen: dict[str, int] = {}
    for place in found:
        seen.setdefault(words[place], place)
    kept = list(seen.values())
    return kept if select == "best_per_source" else kept[:count]


def source_weights(rewards: np.ndarray, temperature: float, *, min_gap: float = 0.0) -> np.ndarray:
    """float64[K], softmax of each source's best reward.

    A source whose best and worst sample lie within `min_gap` has weight 0; all have it where no source is left.
    """
    rewards = np.asarray(rewards, np.float64)
    apart = rewards.max(-1) - rewards.min(-1) > min_gap
    if not apart.any():
        return np.zeros(len(rewards))
    return softmax(np.where(apart, rewards.max(-1), -np.inf), temperature)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """float64[...,J], each sample's reward less the mean of the others'; they sum to 0."""
    rewards = np.asarray(rewards, np.float64)
    count = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdims=True)) * count / (count - 1)
