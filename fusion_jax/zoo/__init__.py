"""The miniature zoo: tasks with verifiable answers, three source models and a target, all made by this repository.

`zoo:NAME` stands for a shipped model wherever a model folder is asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from fusion_jax.errors import InputError
from fusion_jax.paths import as_path

MODELS = Path(__file__).parent / "models"


def model_path(name: str | os.PathLike[str], option: str | None = None) -> Path:
    """The folder of a model, given for `option`: `zoo:NAME` is a shipped one, anything else is a path."""
    text = os.fspath(name)
    if not text.startswith("zoo:"):
        return as_path(text)
    folder = MODELS / text.removeprefix("zoo:")
    if not folder.is_dir():
        known = sorted(p.name for p in MODELS.iterdir() if p.is_dir()) if MODELS.is_dir() else []
        problem = f"the zoo has no model '{folder.name}'"
        raise InputError(problem, file=text, field=option, cure=f"Known: {', '.join(known)}")
    return folder
