"""How a recipe names a model: PATH, PATH@REVISION, {path, revision} or {model: {path, revision}}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.merge.recipes.places import Place, mapping, shown

REVISION = re.compile(r"(.*[^/])@([^/@]+)")


class ModelReference(NamedTuple):
    """A model's path, and the revision that is asked for."""

    path: str
    revision: str | None = None


def read_model(raw: Any, place: Place) -> ModelReference:
    """A model as a recipe names it; an @ before the last slash belongs to the path.

    Raises:
      InputError: no path, or a LoRA adapter.
    """
    value = raw
    if isinstance(value, Mapping) and ("model" in value or "lora" in value):
        outer = mapping(value, ("model", "lora"), place)
        if outer.get("lora") is not None:
            raise _lora(place / "lora")
        value, place = outer.get("model"), place / "model"
    if isinstance(value, Mapping):
        reference = mapping(value, ("path", "revision"), place)
        path, revision = reference.get("path"), reference.get("revision")
    else:
        parts = REVISION.fullmatch(value) if isinstance(value, str) else None
        path, revision = parts.groups() if parts else (value, None)
    if not isinstance(path, str) or not path.strip():
        raise place.error(f"must be a model's path, not {shown(raw)}", "Give the path of a Hugging Face model folder")
    if "+" in path:
        raise _lora(place)
    return ModelReference(path, None if revision is None else str(revision))


def _lora(place: Place) -> InputError:
    return place.error("names a LoRA adapter, which is not read", "Merge the adapter into its model and name that")
