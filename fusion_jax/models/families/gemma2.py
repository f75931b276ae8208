"""Gemma-2: soft caps, alternating windows, norms before and after each part, scaled embeddings, tied head."""

from __future__ import annotations

import math
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families.common import (
    Defaults,
    HfTensor,
    common_from_hf,
    common_to_hf,
    default_of,
    layer_kinds,
    llama_like_names,
    window_of,
)

NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


DEFAULTS = Defaults(
    max_positions=8192, kv_heads=4, head_dim=256, tied=True, activation_field="hidden_activation",
    activation="gelu_pytorch_tanh",
)  # fmt: skip


def from_hf(fields: Fields) -> DecoderConfig:
    """config.json to `DecoderConfig`; even layers are windowed where the file does not list `layer_types`."""
    common, window = common_from_hf(fields, DEFAULTS), window_of(fields)
    layers, bias = common["num_layers"], fields.flag("attention_bias", False)
    kinds = layer_kinds(fields, layers) or ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    return DecoderConfig(
        **common,
        qkv_bias=bias,
        out_bias=bias,
        windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
        query_scale=fields.number("query_pre_attn_scalar", 256, above=0, high=1e9) ** -0.5,
        attention_soft_cap=_cap(fields, "attn_logit_softcapping", 50.0),
        final_soft_cap=_cap(fields, "final_logit_softcapping", 30.0),
        post_norms=True,
        norm_unit_offset=True,
        embed_scale=math.sqrt(common["hidden_size"]),
    )


def _cap(fields: Fields, name: str, absent: float) -> float | None:
    """A soft cap; null is none."""
    cap: float | None = fields.number(name, default_of(fields, name, absent), above=0, high=1e9)
    return cap


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """`DecoderConfig` to config.json."""
    windows = config.windows or (0,) * config.num_layers
    scale = config.query_scale if config.query_scale is not None else config.head_dim**-0.5
    return common_to_hf(config, "Gemma2") | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        "sliding_window": max(windows) or None,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
        "attention_bias": config.qkv_bias,
    }


def _whole(value: float) -> float | int:
    """An integer where the value is one up to rounding (config files give integers)."""
    return round(value) if abs(value - round(value)) < 1e-6 * value else value


def tensor_names(config: DecoderConfig) -> list[HfTensor]:
    """Tensor names; four norms a layer."""
    return llama_like_names(config, NORMS)
