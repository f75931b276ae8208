"""The JSON files of a Hugging Face model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; InputError where it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not JSON ({error})", file=path, cure="Download or copy the file again") from None
    if not isinstance(value, dict):
        raise InputError("is not a JSON object", file=path, cure="Download or copy the file again")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
      InputError: no such folder or file, or it is not a JSON object.
    """
    if not folder.is_dir():
        zoo = str(folder).startswith("zoo:")
        cure = f"fusion_jax.zoo.model_path('{folder}') is the folder" if zoo else "Give a Hugging Face model folder"
        raise InputError("there is no such folder", file=folder, cure=cure)
    if not (folder / "config.json").exists():
        raise InputError("holds no config.json", file=folder, cure="Give the path of a Hugging Face model folder")
    return read_json_object(folder / "config.json")
