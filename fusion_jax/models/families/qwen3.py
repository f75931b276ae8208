"""Qwen3: Llama's body with norms on the queries and keys of each head, and a sliding window on the upper layers if
asked for."""

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

DEFAULTS = Defaults(max_positions=32768, kv_heads=32, head_dim=128)
IGNORED: tuple[str, ...] = ()

tensors = llama_like_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    stack, biased = model.decoder[0], fields.flag("attention_bias", False)
    attention = replace(stack.attention, biases="qkvo" if biased else "", qk_norm=stack.norm)
    windows = upper_windows_of(fields, model.layers)
    return replace(model, decoder=(replace(stack, attention=attention, windows=windows),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack = config.decoder[0]
    own = {"attention_bias": bool(stack.attention.biases), "use_sliding_window": any(stack.windows)}
    return llama_like_to_hf(config, "Qwen3") | own | kinds_to_hf(stack)
