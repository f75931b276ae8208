"""The tensors of a model wherever it is kept: a Hugging Face folder, a GGUF file, an adapter (PEFT) on one of them."""

from __future__ import annotations

from pathlib import Path

from fusion_jax.models.gguf_header import is_gguf
from fusion_jax.models.gguf_model import hf_entries
from fusion_jax.models.peft_folder import adapted, base_of, is_peft, open_peft
from fusion_jax.models.safetensors_io import TensorEntry, open_folder


def root_of(path: Path) -> Path:
    """The folder or GGUF file that holds a model's own weights: of an adapter, that of its base."""
    return root_of(base_of(path)) if is_peft(path) else path


def stored_tensors(path: Path, adapter: Path | None = None) -> dict[str, TensorEntry]:
    """Every tensor under its Hugging Face name; those that an adapter names with it. No number is read.

    Args:
      adapter: a PEFT folder on top of `path`, which `path` itself may be, too.

    Raises:
      InputError: see `open_folder`, `hf_entries`, `open_peft` and `adapted`.
    """
    if adapter is not None:
        return adapted(stored_tensors(path), open_peft(adapter))
    if is_peft(path):
        return stored_tensors(base_of(path), path)
    return dict(hf_entries(path)) if is_gguf(path) else open_folder(path)
