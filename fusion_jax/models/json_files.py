"""The JSON files of a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.json_files import read_json


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
    config: dict[str, Any] = read_json(folder / "config.json")
    return config
