"""How a recipe names a model: PATH, PATH@REVISION, {path, revision} or {model: {path, revision}}; with a LoRA adapter
PATH+ADAPTER or {model: PATH, lora: ADAPTER}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fusion_jax.merge.recipes.places import Place, mapping, shown

REVISION = re.compile(r"(.*[^/])@([^/@]+)")


WITH_ADAPTER = "+"


class ModelReference(NamedTuple):
    """A model's path, with an adapter's behind a +, and the revision that is asked for."""

    path: str
    revision: str | None = None


def read_model(raw: Any, place: Place) -> ModelReference:
    """A model as a recipe names it; an @ before the last slash belongs to the path.

    Raises:
      InputError: no path.
    """
    value, lora = raw, None
    if isinstance(value, Mapping) and ("model" in value or "lora" in value):
        outer = mapping(value, ("model", "lora"), place)
        lora = None if outer.get("lora") is None else read_model(outer["lora"], place / "lora").path
        value, place = outer.get("model"), place / "model"
    if isinstance(value, Mapping):
        reference = mapping(value, ("path", "revision"), place)
        path, revision = reference.get("path"), reference.get("revision")
    else:
        parts = REVISION.fullmatch(value) if isinstance(value, str) else None
        path, revision = parts.groups() if parts else (value, None)
    if not isinstance(path, str) or not path.strip():
        raise place.error(f"must be a model's path, not {shown(raw)}", "Give the path of a Hugging Face model folder")
    path = path if lora is None else f"{path}{WITH_ADAPTER}{lora}"
    if path.count(WITH_ADAPTER) > 1 or path.endswith(WITH_ADAPTER):
        raise place.error("names more than a model and an adapter", "Give MODEL+ADAPTER, both folders")
    return ModelReference(path, None if revision is None else str(revision))
