"""What weights are known by, a hash of their content, and what configurations are."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

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


LATER = {
    "ModelConfig": ("start", "companion"),
    "Positions": ("kind", "offset", "buckets", "distance"),
    "Embed": ("norm", "types"),
    "Head": ("scale", "pooled", "normalised", "projected", "copying"),
    "Stack": ("lacks",),
    "Attention": ("norms_all", "rotary_pairs", "latent", "clip"),
    "Mlp": ("experts",),
    "Rope": ("share", "short_factors", "long_factors", "mscale", "mscale_all_dim"),
}
"""Fields that configurations did not have from the start; their defaults change nothing."""


def described(part: Any) -> str:
    """A configuration, or a part of one, as a text that tells it from every other one, and that of an older one does
    not change with what newer ones may have besides."""
    if isinstance(part, tuple):
        return f"({', '.join(map(described, part))}{',' if len(part) == 1 else ''})"
    if not dataclasses.is_dataclass(part):
        return repr(part)
    later = LATER.get(type(part).__name__, ())
    shown = {
        one.name: getattr(part, one.name)
        for one in dataclasses.fields(part)
        if one.name not in later or getattr(part, one.name) != one.default
    }
    return f"{type(part).__name__}({', '.join(f'{name}={described(value)}' for name, value in shown.items())})"


def _blocks(value: jax.Array) -> Iterator[np.ndarray]:
    """The content in order: whole, or, where other hosts hold a part of it, in blocks that a device can hold."""
    if value.is_fully_addressable or not isinstance(value.sharding, NamedSharding):
        yield np.asarray(value)
        return
    size = max(2**27 * len(value) // value.nbytes, 1)
    for start in range(0, len(value), size):
        yield fetched(value, start, min(size, len(value) - start))
