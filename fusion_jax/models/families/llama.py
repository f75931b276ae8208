"""Llama 1, 2, 3, 3.1, 3.2 and what shares its body: Vicuna, Yi, SOLAR."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import Defaults, llama_like_from_hf, llama_like_to_hf
from fusion_jax.models.families.tensors import llama_like_tensors

DEFAULTS = Defaults(max_positions=2048)
IGNORED: tuple[str, ...] = ()

tensors = llama_like_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    stack = model.decoder[0]
    attention = replace(stack.attention, biases="qkvo" if fields.flag("attention_bias", False) else "")
    mlp = replace(stack.mlp, bias=fields.flag("mlp_bias", False))
    return replace(model, decoder=(replace(stack, attention=attention, mlp=mlp),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack = config.decoder[0]
    biases = {"attention_bias": bool(stack.attention.biases), "mlp_bias": stack.mlp.bias}
    return llama_like_to_hf(config, "Llama") | biases
