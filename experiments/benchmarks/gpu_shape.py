"""The model and the batches that `gpu_ours` and `gpu_torch` are timed on, as numbers that both read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
BETA, ALPHA, WEIGHT, RATE, ENTRIES = 0.1, 0.3, 0.9, 1e-6, 10


@dataclass(frozen=True)
class Shape:
    """model: config.json's values. rows, tokens: of SFT and distillation; quads: WRPO examples of a prompt and three
    responses of `half` tokens each; prompts, prompt, new: how many prompts of how many tokens are continued by how many
    tokens; steps: that are timed."""

    model: dict[str, Any]
    rows: int
    tokens: int
    quads: int
    half: int
    prompts: int
    prompt: int
    new: int
    steps: int


# Llama-3.2-1B without the scaling of its rotary embedding, which costs nothing and is needed for long texts alone.
_LLAMA_1B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
}  # fmt: skip
_SMALL = _LLAMA_1B | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
FULL = Shape(_LLAMA_1B, rows=8, tokens=2048, quads=4, half=1024, prompts=64, prompt=128, new=128, steps=8)
SMALL = Shape(_SMALL, rows=2, tokens=32, quads=2, half=16, prompts=2, prompt=16, new=16, steps=2)


def texts(shape: Shape) -> np.ndarray:
    """int32[rows, tokens + 1], each token but the last predicting the next."""
    return _ids(shape, (shape.rows, shape.tokens + 1))


def quads(shape: Shape) -> np.ndarray:
    """int32[quads, 3, 2 half + 1]: the three responses of an example behind the prompt that they share. The prompt has
    half + 1 tokens, the last of which predicts the first of the response."""
    ids = _ids(shape, (shape.quads, 3, 2 * shape.half + 1))
    ids[:, :, : shape.half + 1] = ids[:, :1, : shape.half + 1]
    ids[:, :, shape.half + 1] = np.arange(3, 6)  # responses begin differently, so that no more is shared
    return ids


def prompts(shape: Shape) -> np.ndarray:
    """int32[prompts, prompt]."""
    return _ids(shape, (shape.prompts, shape.prompt))


def targets(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """A teacher's entries for each token of `texts`: ids int32 and probabilities float32, [rows, tokens, ENTRIES]."""
    rng = np.random.default_rng(1)
    size = (shape.rows, shape.tokens)
    ids = (rng.integers(0, shape.model["vocab_size"], (*size, 1)) + 31 * np.arange(ENTRIES)) % shape.model["vocab_size"]
    weights = rng.random((*size, ENTRIES), np.float32) + np.float32(0.1)
    return ids.astype(np.int32), weights / weights.sum(-1, keepdims=True)


def reference(shape: Shape) -> np.ndarray:
    """float32[quads, 3]: what responses have under a reference that knows nothing."""
    return np.full((shape.quads, 3), -shape.half * np.log(shape.model["vocab_size"]), np.float32)


def _ids(shape: Shape, size: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(6, shape.model["vocab_size"], size, np.int32)


def timed(once: Callable[[], float], steps: int) -> Row:
    """Seconds of `steps` calls after two to warm up, of which the first compiles. `once` returns when the device is
    done; its last value has to be finite."""
    started = time.perf_counter()
    first_value = once()
    first = time.perf_counter() - started
    once()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        value = once()
        seconds.append(time.perf_counter() - started)
    if not np.isfinite(value):
        raise ValueError(f"the result is {value}")
    return {
        "seconds": float(np.median(seconds)), "least": min(seconds), "most": max(seconds), "first": first,
        "value": first_value,
    }  # fmt: skip
