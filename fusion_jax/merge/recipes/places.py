"""Values of a file that people write, with their places: what a mistake's message names, and what it suggests."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where in a recipe a value stands: the file (None for a dict) and the path of keys, as messages name them."""

    file: str | None = None
    field: str = ""

    def __truediv__(self, key: str | int) -> Place:
        step = f"[{key}]" if isinstance(key, int) else f".{key}" if self.field else key
        return Place(self.file, self.field + step)

    def error(self, problem: str, cure: str) -> InputError:
        return InputError(problem, file=self.file, field=self.field or None, cure=cure)


def shown(value: Any) -> str:
    """A value of a recipe for a message: short, whatever it holds."""
    return reprlib.repr(value)


def nearest(name: Any, names: Iterable[str]) -> str:
    """The cure of an unknown name: the nearest one, or all."""
    known = sorted(names)
    near = difflib.get_close_matches(str(name), known, 1)
    return f"Write '{near[0]}'" if near else f"Known are {', '.join(known)}" if known else "Leave it out"


def mapping(value: Any, keys: Iterable[str] | None, place: Place) -> Mapping[Any, Any]:
    """A mapping of known keys (None: of any); an empty one where nothing is written.

    Raises:
      InputError: another type, or a key that is not known.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise place.error(f"must be a mapping, not {shown(value)}", "Write 'key: value' lines")
    known = None if keys is None else list(keys)
    for key in value:
        if known is not None and key not in known:
            raise (place / str(key)).error("is not a known key", nearest(key, known))
    return value


def sequence(value: Any, place: Place) -> Sequence[Any]:
    """A list with at least one entry.

    Raises:
      InputError: another type, or an empty list.
    """
    if not isinstance(value, list | tuple) or not value:
        raise place.error(f"must be a list with at least one entry, not {shown(value)}", "Write one '- ' line for each")
    return value
