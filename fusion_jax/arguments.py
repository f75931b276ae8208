"""Arguments that are lists: a single value where a list is wanted would be taken apart, and is refused instead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fusion_jax.errors import InputError, quoted


def listed(values: Any, field: str, each: str, cure: str) -> Any:
    """The argument `field` as it was given: several values.

    Args:
      each: what the values are, in the plural. cure: how to write one of them.

    Raises:
      InputError: a text, bytes, a path, a mapping or a record (a named tuple) takes the place of the list, or what
        cannot be gone through at all.
    """
    single = isinstance(values, str | bytes | bytearray | os.PathLike | Mapping) or hasattr(values, "_fields")
    if single or not isinstance(values, Iterable):
        raise InputError(f"is {_told(values)}, not a list of {each}", field=field, cure=cure)
    return values


def texts(values: Any, field: str) -> list[str]:
    """The argument `field` as a list of texts.

    Raises:
      InputError: it is a single text or another single value, or holds something else than texts; says which.
    """
    single = values if isinstance(values, str) and len(values) <= 40 else "..."
    found = list(listed(values, field, "texts", f"Give a list, also for one text: [{single!r}]"))
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            raise InputError(f"is {_told(text)}, not a text", record=number, field=field, cure="Give a list of texts")
    return found


def records(values: Any, field: str = "records") -> Any:
    """The argument `field`: records (mappings), still to be gone through; raises InputError for a single one."""
    return listed(values, field, "records", "Give a list, also for one record: [record]")


def _told(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return quoted(value) if value is None or isinstance(value, int | float) else f"of type {type(value).__name__}"
