"""How records that hold arrays or long texts are shown: one short line, whatever they hold."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from fusion_jax.errors import one_line, quoted

PLAIN = (str, int, float, list, tuple, dict, set, frozenset)
FEW = 16  # numbers of an array that are shown themselves


def brief(record: Any) -> str:
    """`__repr__` of a dataclass or named tuple: arrays as dtype and shape, containers as their length, texts cut.

    Arrays of a few numbers on the host are shown whole.

    >>> from fusion_jax.losses import Mean
    >>> import numpy as np
    >>> brief(Mean(np.zeros((30, 2), np.float32), np.ones(2)))
    'Mean(total=float32[30,2], weight=[1.0, 1.0])'
    """
    fields = [f.name for f in dataclasses.fields(record)] if dataclasses.is_dataclass(record) else record._fields
    shown = (f"{name}={_shown(getattr(record, name))}" for name in fields)
    return f"{type(record).__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, PLAIN) and not hasattr(value, "_fields")):
        return quoted(value)
    if isinstance(value, np.ndarray) and value.size <= FEW:
        return one_line(str(value.tolist()))
    if isinstance(value, os.PathLike):
        return quoted(os.fspath(value))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return type(value).__name__
