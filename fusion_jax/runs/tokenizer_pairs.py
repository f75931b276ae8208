"""Tokenizers that are named on a command line, and the texts on which they are compared."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_jax.align.coverage import NamedTokenizer
from fusion_jax.align.views import view_of
from fusion_jax.data.loaders import load_groups
from fusion_jax.data.raw_tokenizers import SUFFIXES, load_raw_tokenizer
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import corpus


def named_tokenizer(name: str, option: str) -> NamedTokenizer:
    """The tokenizer of a folder, of a model of the zoo, or of a vocabulary file."""
    is_file = name.endswith(SUFFIXES)
    tokenizer = load_raw_tokenizer(name) if is_file else tokenizer_of(model_path(name, option), option)
    return NamedTokenizer(tokenizer, view_of(tokenizer), name)


def groups_of(files: Sequence[str]) -> dict[str, list[str]]:
    """Texts by language or file; the zoo's texts where no file is given."""
    return load_groups(files) if files else {"zoo": corpus(seed=1, count=30)}
