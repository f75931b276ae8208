"""Tensors that checkpoints hold twice or under older names; whether a checkpoint's head is its embedding: the stored
tensors say so, before config.json does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.models.safetensors_io import TensorEntry

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS_BYTES = 16 << 20  # compared at once


def usual_tensors(entries: Mapping[str, TensorEntry], family: Any) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint by the names that the family gives them, without copies and without zeros.

    Args:
      family: may have `usual_name(name, names)` for names of older files, COPIES (a tensor -> the one that it must
        equal) and ZEROS (tensors that must hold zeros).

    Raises:
      InputError: a copy that differs, a tensor of zeros that holds other numbers, two tensors of one name; names it.
    """
    usual = getattr(family, "usual_name", None)
    found: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        known = name if usual is None else usual(name, entries.keys())
        if known in found:
            raise InputError(f"is {known} a second time", file=entry.file, field=name, cure="Keep one of the two")
        found[known] = entry
    for copy, original in getattr(family, "COPIES", {}).items():
        if copy not in found:
            continue
        entry = found.pop(copy)
        if not same(found.setdefault(original, entry), entry):
            cure = f"Remove one of the two; this architecture reads {original}"
            raise InputError(f"differs from {original}", file=entry.file, field=copy, cure=cure)
    for zeros in getattr(family, "ZEROS", ()):
        if zeros in found and (entry := found.pop(zeros)).mapped().any():
            cure = "Such a model is not supported"
            raise InputError("holds numbers other than zero", file=entry.file, field=zeros, cure=cure)
    return found


def with_head(
    entries: Mapping[str, TensorEntry], tied: bool, *, embedding: str = EMBEDDING, head: str = HEAD
) -> tuple[dict[str, TensorEntry], bool]:
    """The tensors of a checkpoint with one head or none, and whether the head is the embedding; as in transformers 5.

    Where config.json ties them: a stored head that equals the embedding is left out; one that differs stays, and
    nothing is tied; a head without an embedding is the embedding, too.

    Args:
      tied: what config.json says. embedding, head: the names of the two.
    """
    found = dict(entries)
    if not tied or head not in found:
        return found, tied
    if embedding not in found:
        found[embedding] = found.pop(head)
        return found, True
    if not same(found[embedding], found[head]):
        return found, False
    del found[head]
    return found, True


def same(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors hold the same numbers; read in parts, up to the first that differs."""
    if one.shape != other.shape:
        return False
    if 0 in one.shape or not one.shape:
        return bool(np.array_equal(one.mapped(), other.mapped()))
    step = max(1, ROWS_BYTES * one.shape[0] // max(one.nbytes, 1))
    first, second = one.mapped(), other.mapped()
    return all(np.array_equal(first[at : at + step], second[at : at + step]) for at in range(0, one.shape[0], step))
