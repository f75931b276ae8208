"""Qwen2 and Qwen2.5: Llama's body with biases on q, k and v, and a sliding window on the upper layers if asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import (
    Defaults,
    kinds_to_hf,
    llama_like_from_hf,
    llama_like_to_hf,
    upper_windows_of,
)
from fusion_jax.models.families.tensors import llama_like_tensors

DEFAULTS = Defaults(max_positions=32768, kv_heads=32)
IGNORED: tuple[str, ...] = ()

tensors = llama_like_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    attention = replace(model.decoder[0].attention, biases="qkv")
    windows = upper_windows_of(fields, model.layers)
    return replace(model, decoder=(replace(model.decoder[0], attention=attention, windows=windows),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack = config.decoder[0]
    return llama_like_to_hf(config, "Qwen2") | {"use_sliding_window": any(stack.windows)} | kinds_to_hf(stack)
