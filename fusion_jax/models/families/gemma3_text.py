"""Gemma-3, its text model: Gemma-2's body with norms on the queries and keys of each head in place of soft caps, five
layers with a window to one without, and a rotary base for each of the two kinds."""

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
    max_positions_of,
    score_scalar_of,
    score_scalar_to_hf,
    soft_cap_of,
    window_of,
    windows_of,
)
from fusion_jax.models.families.rotary import layered_rope_fields, layered_ropes_from_hf
from fusion_jax.models.families.tensors import GEMMA_NORMS, HfTensor, llama_like_tensors

DEFAULTS = Defaults(
    max_positions=131072, kv_heads=4, head_dim=256, tied=True, activation_field="hidden_activation",
    activation="gelu_pytorch_tanh",
)  # fmt: skip
IGNORED: tuple[str, ...] = ()


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts; where it does not list `layer_types`, every `sliding_window_pattern`-th layer
    sees all."""
    ropes = layered_ropes_from_hf(fields, max_positions_of(fields, DEFAULTS), full=1e6, sliding=1e4)
    model = llama_like_from_hf(fields, DEFAULTS, ropes)
    if fields.flag("use_bidirectional_attention", False):
        raise fields.wrong("use_bidirectional_attention", "an encoder is not supported", "Take the language model")
    stack, norm = model.decoder[0], replace(model.final_norm, unit_offset=True)
    every = fields.integer("sliding_window_pattern", 6, low=1)
    kinds = layer_kinds(fields, model.layers) or [SLIDING if i % every else FULL for i in range(1, model.layers + 1)]
    attention = replace(
        stack.attention,
        biases="qkvo" if fields.flag("attention_bias", False) else "",
        scale=score_scalar_of(fields, 256),
        soft_cap=soft_cap_of(fields, "attn_logit_softcapping", None),
        qk_norm=norm,
    )
    stack = replace(
        stack,
        attention=attention,
        norm=norm,
        residual="sandwich",
        windows=windows_of(kinds, window_of(fields)),
        ropes=tuple(int(kind == SLIDING) for kind in kinds),
    )
    head = replace(model.head, soft_cap=soft_cap_of(fields, "final_logit_softcapping", None))
    return replace(model, decoder=(stack,), embed=Embed(math.sqrt(model.width)), final_norm=norm, head=head)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack = config.decoder[0]
    own = {
        "layer_types": [SLIDING if rope else FULL for rope in stack.ropes],
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": score_scalar_to_hf(stack.attention),
        "attn_logit_softcapping": stack.attention.soft_cap,
        "final_logit_softcapping": config.head.soft_cap,
        "attention_bias": bool(stack.attention.biases),
    }
    common = llama_like_to_hf(config, "Gemma3Text" if config.head.labels else "Gemma3")
    return common | layered_rope_fields(*config.positions.ropes) | kinds_to_hf(stack) | own


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors; four norms a layer."""
    return llama_like_tensors(config, GEMMA_NORMS)
