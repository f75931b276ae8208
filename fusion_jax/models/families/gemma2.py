"""Gemma-2: soft caps, alternating windows, norms before and after each part, scaled embeddings, tied head."""

from __future__ import annotations

from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.common import FULL, SLIDING, layer_kinds, llama_like_from_hf
from fusion_jax.models.families.gemma import DEFAULTS, gemma_from_hf, gemma_tensors, gemma_to_hf

IGNORED: tuple[str, ...] = ()

tensors = gemma_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts; even layers are windowed where the file does not list `layer_types`."""
    model = llama_like_from_hf(fields, DEFAULTS)
    kinds = layer_kinds(fields, model.layers) or [FULL if i % 2 else SLIDING for i in range(model.layers)]
    return gemma_from_hf(model, fields, kinds, caps=(50.0, 30.0))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    return gemma_to_hf(config, "Gemma2")
