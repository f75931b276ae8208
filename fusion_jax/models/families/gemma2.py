"""Gemma-2: soft caps, alternating windows, norms before and after each part, scaled embeddings, tied head."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Embed, ModelConfig
from fusion_jax.models.families.common import (
    FULL,
    SLIDING,
    Defaults,
    kinds_to_hf,
    layer_kinds,
    llama_like_from_hf,
    llama_like_to_hf,
    score_scalar_of,
    score_scalar_to_hf,
    soft_cap_of,
    window_of,
    windows_of,
)
from fusion_jax.models.families.tensors import GEMMA_NORMS, HfTensor, llama_like_tensors

DEFAULTS = Defaults(
    max_positions=8192, kv_heads=4, head_dim=256, tied=True, activation_field="hidden_activation",
    activation="gelu_pytorch_tanh",
)  # fmt: skip
IGNORED: tuple[str, ...] = ()


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts; even layers are windowed where the file does not list `layer_types`."""
    model = llama_like_from_hf(fields, DEFAULTS)
    stack, norm = model.decoder[0], replace(model.final_norm, unit_offset=True)
    kinds = layer_kinds(fields, model.layers) or [FULL if i % 2 else SLIDING for i in range(model.layers)]
    attention = replace(
        stack.attention,
        biases="qkvo" if fields.flag("attention_bias", False) else "",
        scale=score_scalar_of(fields, 256),
        soft_cap=soft_cap_of(fields, "attn_logit_softcapping", 50.0),
    )
    windows = windows_of(kinds, window_of(fields))
    return replace(
        model,
        decoder=(replace(stack, attention=attention, norm=norm, residual="sandwich", windows=windows),),
        embed=Embed(math.sqrt(model.width)),
        final_norm=norm,
        head=replace(model.head, soft_cap=soft_cap_of(fields, "final_logit_softcapping", 30.0)),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack = config.decoder[0]
    return (
        llama_like_to_hf(config, "Gemma2")
        | kinds_to_hf(stack)
        | {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": score_scalar_to_hf(stack.attention),
            "attn_logit_softcapping": stack.attention.soft_cap,
            "final_logit_softcapping": config.head.soft_cap,
            "attention_bias": bool(stack.attention.biases),
        }
    )


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors; four norms a layer."""
    return llama_like_tensors(config, GEMMA_NORMS)
