"""One file a family: how a Hugging Face config.json and its tensor names map to the shared decoder.

A new family is a module with `from_hf` (of `Fields`), `to_hf` and `tensor_names`, listed in `FAMILIES` under its
model_type.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax

from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families import gemma2, llama, mistral, qwen2
from fusion_jax.models.families.common import HfTensor
from fusion_jax.models.parameters import ParamSpec, parameter_specs

LARGEST = 10 * 10**12  # bytes

FAMILIES: dict[str, ModuleType] = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "gemma2": gemma2}


def family_of(model_type: str) -> ModuleType:
    """The module of a model_type; InputError names the known ones."""
    return _family(Fields({"model_type": model_type}))


def _family(values: Fields) -> ModuleType:
    name = values.text("model_type", "")
    if name not in FAMILIES:
        problem = f"model_type {quoted(name)} is not supported"
        raise values.wrong("model_type", problem, f"Known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def config_from_hf(values: Mapping[str, Any], file: str | os.PathLike[str] | None = None) -> DecoderConfig:
    """config.json to the decoder's configuration. `auto_map` and code beside it are not looked at.

    Args:
      file: where the values stand, for messages.

    Raises:
      InputError: a field that is missing, of another type, out of range or not supported, fields that do not go
        together, or more than `LARGEST` bytes of weights in float32; names the field.
    """
    fields = Fields(values, file)
    config: DecoderConfig = _family(fields).from_hf(fields)
    specs = jax.tree.leaves(parameter_specs(config), is_leaf=lambda spec: isinstance(spec, ParamSpec))
    size = 4 * sum(math.prod(spec.shape) for spec in specs)
    if size > LARGEST:
        problem = f"implies {size / 1e12:.0f} TB of float32 weights"
        raise InputError(problem, file=file, cure="Restore the model's own config.json")
    return config


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The decoder's configuration as a config.json."""
    return family_of(config.model_type).to_hf(config)


def tensor_names(config: DecoderConfig) -> list[HfTensor]:
    """Every tensor of the Hugging Face files and the parameter it belongs to."""
    return family_of(config.model_type).tensor_names(config)
