"""fusion_jax: fuse the strengths of several language models into one compact model.

import fusion_jax as fj
model = fj.load("path/to/huggingface/folder")
fj.generate(model, ["What is 12 + 30?"], max_new_tokens=16)
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - where it was copied rather than installed, nothing else asks
    raise ImportError(f"fusion_jax needs Python 3.11 or newer; this is Python {sys.version.split()[0]}.")

if TYPE_CHECKING:
    from fusion_jax import align, losses, merge
    from fusion_jax.cool.answers import fuse_generate
    from fusion_jax.errors import InputError
    from fusion_jax.models.folder import Model, encode, load, logits, save
    from fusion_jax.sampling.generate import generate

__all__ = [
    "InputError", "Model", "align", "encode", "fuse_generate", "generate", "load", "logits", "losses", "merge", "save",
]  # fmt: skip

# Ports are in JAX: transformers need not say at each start that PyTorch is not there.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Rooms are entered when they are asked for: a merge needs none of transformers' two seconds of imports.
_ROOMS = {
    "InputError": "errors", "Model": "models.folder", "load": "models.folder", "logits": "models.folder",
    "save": "models.folder", "encode": "models.folder", "generate": "sampling.generate",
    "fuse_generate": "cool.answers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"fusion_jax.{_ROOMS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"fusion_jax.{name}")
    raise AttributeError(f"module 'fusion_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
