"""Llama 1, 2, 3, 3.1, 3.2 and what shares its body: Vicuna, Yi, SOLAR."""

from __future__ import annotations

from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families.common import Defaults, common_from_hf, common_to_hf, llama_like_names

tensor_names = llama_like_names


DEFAULTS = Defaults(max_positions=2048)


def from_hf(fields: Fields) -> DecoderConfig:
    """config.json to `DecoderConfig`."""
    bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    return DecoderConfig(**common_from_hf(fields, DEFAULTS), qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """`DecoderConfig` to config.json."""
    return common_to_hf(config, "Llama") | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
