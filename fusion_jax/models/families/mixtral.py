"""Mixtral: Mistral's body with routed experts in every layer, two of eight for a token, weighted by the softmax over
the chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import (
    Defaults,
    experts_from_hf,
    llama_like_from_hf,
    llama_like_to_hf,
    max_positions_of,
)
from fusion_jax.models.families.rotary import rope_from_hf
from fusion_jax.models.families.tensors import PARTS, HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(max_positions=131072, kv_heads=8, eps=1e-5)
IGNORED: tuple[str, ...] = ()
_MOE = "block_sparse_moe"
NAMES_OF_TENSORS = Names(
    parts={**PARTS, "router": f"{_MOE}.gate"},
    experts={"gate": f"{_MOE}.experts.{{}}.w1", "up": f"{_MOE}.experts.{{}}.w3", "down": f"{_MOE}.experts.{{}}.w2"},
)


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    rope = rope_from_hf(fields, max_positions_of(fields, DEFAULTS), theta=1e6)
    model = llama_like_from_hf(fields, DEFAULTS, [rope])
    experts = experts_from_hf(fields, "num_local_experts", absent=8, chosen=2)
    if experts is None:
        raise fields.wrong("num_local_experts", "is 0", "Take model_type mistral for a model without experts")
    stack, window = model.decoder[0], fields.integer("sliding_window", None, low=0) or 0
    mlp = replace(stack.mlp, experts=replace(experts, normalised=True))
    return replace(model, decoder=(replace(stack, mlp=mlp, windows=(window,) * stack.layers if window else ()),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack, experts = config.decoder[0], config.decoder[0].mlp.experts
    assert experts is not None
    own = {
        "num_local_experts": experts.count, "num_experts_per_tok": experts.chosen,
        "sliding_window": max(stack.windows, default=0) or None,
    }  # fmt: skip
    return llama_like_to_hf(config, "Mixtral") | own


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, NAMES_OF_TENSORS)
