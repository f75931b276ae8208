"""Mistral: Llama's body with a sliding window on every layer; OpenChat and Starling share it."""

from __future__ import annotations

from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families.common import Defaults, common_from_hf, common_to_hf, llama_like_names, window_of

tensor_names = llama_like_names


DEFAULTS = Defaults(max_positions=32 * 4096, kv_heads=8)


def from_hf(fields: Fields) -> DecoderConfig:
    """config.json to `DecoderConfig`."""
    common, window = common_from_hf(fields, DEFAULTS), window_of(fields)
    return DecoderConfig(**common, windows=(window,) * common["num_layers"] if window else ())


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """`DecoderConfig` to config.json."""
    return common_to_hf(config, "Mistral") | {"sliding_window": config.windows[0] if config.windows else None}
