"""OLMo-2: Llama's body with norms behind attention and feed-forward instead of before them, and on the queries and keys
of all heads together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import NO_PADDING, Defaults, llama_like_from_hf, llama_like_to_hf
from fusion_jax.models.families.tensors import HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(max_positions=2048, eps=1e-5)
IGNORED: tuple[str, ...] = ()
NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    stack, biased = model.decoder[0], fields.flag("attention_bias", False)
    attention = replace(stack.attention, biases="qkvo" if biased else "", qk_norm=stack.norm, norms_all=True)
    return replace(model, decoder=(replace(stack, attention=attention, residual="after"),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    own = {"attention_bias": bool(config.decoder[0].attention.biases), **NO_PADDING}
    return llama_like_to_hf(config, "Olmo2") | own


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, Names(NORMS))
