"""Gemma-3, its text model: Gemma-2's body with norms on the queries and keys of each head in place of soft caps, five
layers with a window to one without, and a rotary base for each of the two kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import gemma
from fusion_jax.models.families.common import (
    FULL,
    SLIDING,
    layer_kinds,
    llama_like_from_hf,
    max_positions_of,
)
from fusion_jax.models.families.gemma import gemma_from_hf, gemma_tensors, gemma_to_hf
from fusion_jax.models.families.rotary import layered_rope_fields, layered_ropes_from_hf

DEFAULTS = replace(gemma.DEFAULTS, max_positions=131072)
IGNORED: tuple[str, ...] = ()

tensors = gemma_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts; where it does not list `layer_types`, every `sliding_window_pattern`-th layer
    sees all."""
    if fields.flag("use_bidirectional_attention", False):
        raise fields.wrong("use_bidirectional_attention", "an encoder is not supported", "Take the language model")
    ropes = layered_ropes_from_hf(fields, max_positions_of(fields, DEFAULTS), full=1e6, sliding=1e4)
    model = llama_like_from_hf(fields, DEFAULTS, ropes)
    every = fields.integer("sliding_window_pattern", 6, low=1)
    kinds = layer_kinds(fields, model.layers) or [SLIDING if i % every else FULL for i in range(1, model.layers + 1)]
    model = gemma_from_hf(model, fields, kinds, caps=(None, None))
    stack = model.decoder[0]
    attention = replace(stack.attention, qk_norm=stack.norm)
    stack = replace(stack, attention=attention, ropes=tuple(int(kind == SLIDING) for kind in kinds))
    return replace(model, decoder=(stack,))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    common = gemma_to_hf(config, "Gemma3Text" if config.head.labels else "Gemma3")
    kinds = [SLIDING if rope else FULL for rope in config.decoder[0].ropes]
    return common | layered_rope_fields(*config.positions.ropes) | {"layer_types": kinds}
