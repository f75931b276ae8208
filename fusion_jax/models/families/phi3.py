"""Phi-3, Phi-3.5 and Phi-4 (mini and 14B): Llama's body with queries, keys and values in one tensor, gate and up in
another, LongRoPE, and in Phi-4-mini a rotary embedding of three quarters of each head."""

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

DEFAULTS = Defaults(max_positions=4096, eps=1e-5)
IGNORED: tuple[str, ...] = ()
FUSED = {"self_attn.qkv_proj": ("q", "k", "v"), **GATE_UP}


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts. The kinds "su" and "yarn" of older files are LongRoPE."""
    known = {"su": "longrope", "yarn": "longrope"}
    rope = rope_from_hf(fields, max_positions_of(fields, DEFAULTS), share=1.0, names=known)  # type: ignore[arg-type]
    if rope.kind not in ("default", "longrope"):
        raise fields.wrong("rope_scaling", f"rotary scaling '{rope.kind}' is not Phi-3's", "Known: default, longrope")
    model = llama_like_from_hf(fields, DEFAULTS, [rope])
    window = fields.integer("sliding_window", None, low=0) or 0
    stack = model.decoder[0]
    return replace(model, decoder=(replace(stack, windows=(window,) * stack.layers if window else ()),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack, rope = config.decoder[0], config.positions.ropes[0]
    own = {"sliding_window": max(stack.windows, default=0) or None, **NO_PADDING}
    original = rope.original_max_positions or config.max_positions
    return llama_like_to_hf(config, "Phi3") | own | {"original_max_position_embeddings": original}


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, Names(fused=FUSED))
