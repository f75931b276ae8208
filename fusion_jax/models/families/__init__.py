"""One file a family: how a Hugging Face config.json and its tensor names map to the shared decoder.

A new family is a module with `from_hf`, `to_hf` and `tensor_names`, listed in `FAMILIES` under its model_type.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families import gemma2, llama, mistral, qwen2
from fusion_jax.models.families.common import HfTensor

FAMILIES: dict[str, ModuleType] = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "gemma2": gemma2}


def family_of(model_type: str) -> ModuleType:
    """The module of a model_type; InputError names the known ones."""
    if model_type not in FAMILIES:
        raise InputError(
            f"model_type '{model_type}' is not supported", field="model_type", cure=f"Known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def config_from_hf(values: dict[str, Any]) -> DecoderConfig:
    """config.json to the decoder's configuration."""
    return family_of(values.get("model_type", "")).from_hf(values)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The decoder's configuration as a config.json."""
    return family_of(config.model_type).to_hf(config)


def tensor_names(config: DecoderConfig) -> list[HfTensor]:
    """Every tensor of the Hugging Face files and the parameter it belongs to."""
    return family_of(config.model_type).tensor_names(config)
