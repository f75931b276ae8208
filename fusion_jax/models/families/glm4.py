"""GLM-4 of 2025 (GLM-4-0414): its predecessor with a second norm behind attention and feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import glm
from fusion_jax.models.families.tensors import GATE_UP, HfTensor, Names, llama_like_tensors

IGNORED: tuple[str, ...] = ()
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_mlp_layernorm",
}


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = glm.from_hf(fields)
    return replace(model, decoder=(replace(model.decoder[0], residual="sandwich"),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    return glm.glm_to_hf(config, "Glm4")


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, Names(NORMS, fused=GATE_UP))
