"""Qwen2 and Qwen2.5: Llama's body with biases on q, k and v, and a sliding window on the upper layers if asked for."""

from __future__ import annotations

from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families.common import (
    Defaults,
    common_from_hf,
    common_to_hf,
    layer_kinds,
    llama_like_names,
    window_of,
)

tensor_names = llama_like_names


DEFAULTS = Defaults(max_positions=32768, kv_heads=32)


def from_hf(fields: Fields) -> DecoderConfig:
    """config.json to `DecoderConfig`; windows from `layer_types`, or from `max_window_layers` in older files."""
    common = common_from_hf(fields, DEFAULTS)
    layers = common["num_layers"]
    window = window_of(fields) if fields.flag("use_sliding_window", False) else 0
    first = fields.integer("max_window_layers", 28)
    kinds = layer_kinds(fields, layers) or [
        "sliding_attention" if i >= first else "full_attention" for i in range(layers)
    ]
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return DecoderConfig(**common, qkv_bias=True, windows=windows if any(windows) else ())


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """`DecoderConfig` to config.json."""
    windows = config.windows or (0,) * config.num_layers
    return common_to_hf(config, "Qwen2") | {
        "use_sliding_window": any(windows),
        "sliding_window": max(windows) or None,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
    }
