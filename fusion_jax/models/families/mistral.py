"""Mistral: Llama's body with a sliding window on every layer; OpenChat and Starling share it."""

from __future__ import annotations

from typing import Any

from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families.common import common_from_hf, common_to_hf, llama_like_names

tensor_names = llama_like_names


def from_hf(values: dict[str, Any]) -> DecoderConfig:
    """config.json to `DecoderConfig`."""
    common = common_from_hf(values)
    window = int(values.get("sliding_window") or 0)
    return DecoderConfig(**common, windows=(window,) * common["num_layers"] if window else ())


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """`DecoderConfig` to config.json."""
    return common_to_hf(config, "Mistral") | {"sliding_window": config.windows[0] if config.windows else None}
