"""Mistral: Llama's body with a sliding window on every layer; OpenChat and Starling share it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import (
    SLIDING,
    Defaults,
    llama_like_from_hf,
    llama_like_to_hf,
    window_of,
    windows_of,
)
from fusion_jax.models.families.tensors import llama_like_tensors

DEFAULTS = Defaults(max_positions=32 * 4096, kv_heads=8)
IGNORED: tuple[str, ...] = ()

tensors = llama_like_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    windows = windows_of([SLIDING] * model.layers, window_of(fields))
    return replace(model, decoder=(replace(model.decoder[0], windows=windows),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    windows = config.decoder[0].windows
    return llama_like_to_hf(config, "Mistral") | {"sliding_window": windows[0] if windows else None}
