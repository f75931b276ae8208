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
from fusion_jax.models.families.rotary import POSITIONS, rope_from_hf
from fusion_jax.models.families.tensors import GATE_UP, HfTensor, Names, llama_like_tensors
from fusion_jax.ops.rotary import RopeKind

DEFAULTS = Defaults(max_positions=4096, eps=1e-5)
IGNORED: tuple[str, ...] = ()
FUSED = {"self_attn.qkv_proj": ("q", "k", "v"), **GATE_UP}


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts. The kinds "su" and "yarn" of older files are LongRoPE; the original length is
    that at the top level, as in transformers."""
    known: dict[str, RopeKind] = {"su": "longrope", "yarn": "longrope"}
    most = max_positions_of(fields, DEFAULTS)
    rope = rope_from_hf(fields, most, share=1.0, names=known)
    if rope.kind == "longrope":
        original = fields.integer("original_max_position_embeddings", 4096, low=2, high=POSITIONS)
        factor = rope.factor if _says_factor(fields) else most / original
        rope = replace(rope, original_max_positions=original, factor=factor)
    if rope.kind not in ("default", "longrope"):
        raise fields.wrong("rope_scaling", f"rotary scaling '{rope.kind}' is not Phi-3's", "Known: default, longrope")
    model = llama_like_from_hf(fields, DEFAULTS, [rope])
    window = fields.integer("sliding_window", None, low=0) or 0
    stack = model.decoder[0]
    return replace(model, decoder=(replace(stack, windows=(window,) * stack.layers if window else ()),))


def _says_factor(fields: Fields) -> bool:
    scaling = fields.values.get("rope_scaling") or fields.values.get("rope_parameters")
    return isinstance(scaling, dict) and "factor" in scaling


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    window = max(config.decoder[0].windows, default=0) or None
    original = {"original_max_position_embeddings": config.max_positions}  # of LongRoPE it stands in what follows
    return original | llama_like_to_hf(config, "Phi3") | {"sliding_window": window, **NO_PADDING}


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, Names(fused=FUSED))
