"""GLM-4 of 2024 (glm-4-9b-chat): Llama's body with a rotary embedding of neighbouring numbers in half of each head,
biases on queries, keys and values, gate and up in one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import (
    NO_PADDING,
    Defaults,
    llama_like_from_hf,
    llama_like_to_hf,
    max_positions_of,
)
from fusion_jax.models.families.rotary import rope_from_hf
from fusion_jax.models.families.tensors import GATE_UP, HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(max_positions=131072, kv_heads=2, head_dim=128, eps=1.5625e-7)
IGNORED: tuple[str, ...] = ()


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    rope = rope_from_hf(fields, max_positions_of(fields, DEFAULTS), share=0.5)
    model = llama_like_from_hf(fields, DEFAULTS, [rope])
    stack = model.decoder[0]
    biases = "qkv" if fields.flag("attention_bias", True) else ""
    attention = replace(stack.attention, biases=biases, rotary_pairs=True)
    return replace(model, decoder=(replace(stack, attention=attention),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    return glm_to_hf(config, "Glm")


def glm_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """As `llama_like_to_hf`; the share of a head that is rotated is always said, since its default is a half."""
    own = {"attention_bias": bool(config.decoder[0].attention.biases), **NO_PADDING}
    out = llama_like_to_hf(config, architecture) | own
    share = {"partial_rotary_factor": config.positions.ropes[0].share}
    return out | share | {"rope_parameters": out["rope_parameters"] | share}


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, Names(fused=GATE_UP))
