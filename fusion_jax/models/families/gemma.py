"""The first Gemma: Llama's body with norms that multiply by 1 + scale, scaled embeddings and a tied head.

And what the later Gemmas have besides: norms before and after each part, a scale of scores of their own, soft caps,
windows on layers of one kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Embed, ModelConfig
from fusion_jax.models.families.common import (
    Defaults,
    default_of,
    kinds_to_hf,
    llama_like_from_hf,
    llama_like_to_hf,
    window_of,
    windows_of,
)
from fusion_jax.models.families.tensors import HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(
    max_positions=8192, kv_heads=4, head_dim=256, tied=True, activation_field="hidden_activation",
    activation="gelu_pytorch_tanh",
)  # fmt: skip
FIRST = replace(DEFAULTS, kv_heads=16, activation_field="hidden_act")
IGNORED: tuple[str, ...] = ()
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


tensors = llama_like_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json of the first Gemma to the model's parts; its "gelu" is the approximation by tanh, as in
    transformers."""
    if fields.flag("use_bidirectional_attention", False):
        raise fields.wrong("use_bidirectional_attention", "an encoder is not supported", "Take the language model")
    if fields.text("hidden_act", "gelu") == "gelu":
        fields = replace(fields, values={**fields.values, "hidden_act": "gelu_pytorch_tanh"})
    model = llama_like_from_hf(fields, FIRST)
    stack = model.decoder[0]
    norm = replace(stack.norm, unit_offset=True)
    attention = replace(stack.attention, biases="qkvo" if fields.flag("attention_bias", False) else "")
    stack = replace(stack, attention=attention, norm=norm)
    return replace(model, decoder=(stack,), embed=Embed(math.sqrt(model.width)), final_norm=norm)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    return llama_like_to_hf(config, "Gemma") | {"attention_bias": bool(config.decoder[0].attention.biases)}


def gemma_from_hf(
    model: ModelConfig, fields: Fields, kinds: Sequence[str], caps: tuple[float | None, float | None]
) -> ModelConfig:
    """A Llama-like model with what the Gemmas have besides.

    Args:
      kinds: of attention, layer by layer. caps: of scores and of logits, where the file leaves them out.
    """
    stack = model.decoder[0]
    norm = replace(stack.norm, unit_offset=True)
    attention = replace(
        stack.attention,
        biases="qkvo" if fields.flag("attention_bias", False) else "",
        scale=fields.number("query_pre_attn_scalar", 256, above=0, high=1e9) ** -0.5,
        soft_cap=_cap(fields, "attn_logit_softcapping", caps[0]),
    )
    windows = windows_of(kinds, window_of(fields))
    stack = replace(stack, attention=attention, norm=norm, residual="sandwich", windows=windows)
    head = replace(model.head, soft_cap=_cap(fields, "final_logit_softcapping", caps[1]))
    return replace(model, decoder=(stack,), embed=Embed(math.sqrt(model.width)), final_norm=norm, head=head)


def _cap(fields: Fields, name: str, absent: float | None) -> float | None:
    """A soft cap; null is none."""
    cap: float | None = fields.number(name, default_of(fields, name, absent), above=0, high=1e9)
    return cap


def gemma_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The parts to config.json."""
    stack = config.decoder[0]
    scale = stack.attention.head_dim**-0.5 if stack.attention.scale is None else stack.attention.scale
    own = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": stack.attention.soft_cap,
        "final_logit_softcapping": config.head.soft_cap,
        "attention_bias": bool(stack.attention.biases),
    }
    return llama_like_to_hf(config, architecture) | kinds_to_hf(stack) | own


def _whole(value: float) -> float | int:
    """An integer where the value is one up to rounding (config files give integers)."""
    return round(value) if abs(value - round(value)) < 1e-6 * value else value


def gemma_tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors; four norms a layer."""
    return llama_like_tensors(config, Names(NORMS))
