"""What weights are known by, a hash of their content, and what configurations are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.sharding import fetched


def fingerprint(params: Params) -> str:
    """A hash of every weight's path, shape and content."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(f"{value.shape}{value.dtype}".encode())
        for block in _blocks(value):
            digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


LATER = (", norms_all=False", ", rotary_pairs=False", ", share=1.0", ", short_factors=()", ", long_factors=()")
"""Fields that configurations did not have from the start, with the values that change nothing."""


def described(config: ModelConfig) -> str:
    """A configuration as a text that tells it from every other one, and that of an older one does not change with what
    newer ones may have besides."""
    text = repr(config)
    for field in LATER:
        text = text.replace(field, "")
    return text


def _blocks(value: jax.Array) -> Iterator[np.ndarray]:
    """The content in order: whole, or, where other hosts hold a part of it, in blocks that a device can hold."""
    if value.is_fully_addressable or not isinstance(value.sharding, NamedSharding):
        yield np.asarray(value)
        return
    size = max(2**27 * len(value) // value.nbytes, 1)
    for start in range(0, len(value), size):
        yield fetched(value, start, min(size, len(value) - start))
