"""Typed, bounded fields of a file's JSON object: what is missing, of another type or out of range is told by name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusion_jax.errors import InputError, quoted

_NEEDED: Any = object()


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are asked for one by one. A field of null counts as missing.

    values: the object; file, record: where it stands, for messages; within: the path of this object in the file.
    cure: what would fix a field that is wrong. names: see `renamed`.

    Every method takes the field's name and a default; without a default the field must be there.

    Raises (every method):
      InputError: the field is missing without a default, has another type, or is out of range; names the field.
    """

    values: Mapping[str, Any]
    file: str | os.PathLike[str] | None = None
    record: int | str | None = None
    within: str = ""
    cure: str = "Restore the model's own file"
    names: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Fields:
        """The same fields, to be asked for by usual names: usual name -> name in the file, which errors tell."""
        values = {usual: self.values[own] for usual, own in names.items() if own in self.values}
        return replace(self, values={**self.values, **values}, names={**self.names, **names})

    def called(self, name: str) -> str:
        """What the file calls a field."""
        return self.names.get(name, name)

    def place(self, name: str) -> str:
        """The path of a field in the file."""
        return f"{self.within}.{self.called(name)}" if self.within else self.called(name)

    def wrong(self, name: str, problem: str, cure: str | None = None) -> InputError:
        """The error of a field."""
        return InputError(problem, file=self.file, record=self.record, field=self.place(name), cure=cure or self.cure)

    def integer(self, name: str, default: Any = _NEEDED, *, low: int = 0, high: int = 2**31 - 1) -> Any:
        """A whole number from `low` to `high`."""
        value = self._value(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"is {quoted(value)}, not a whole number")
        if not low <= value <= high:
            raise self.wrong(name, f"is {quoted(value)}, out of the range from {low} to {high}")
        return value

    def number(
        self,
        name: str,
        default: Any = _NEEDED,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float | None = None,
    ) -> Any:
        """A finite float from `low` to `high` and, if given, more than `above`."""
        value = self._value(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"is {quoted(value)}, not a number")
        try:
            out = float(value)
        except OverflowError:
            out = math.inf
        if not math.isfinite(out) or not low <= out <= high or (above is not None and out <= above):
            bounds = f"more than {above:g}" if above is not None else f"from {low:g} to {high:g}"
            raise self.wrong(name, f"is {quoted(value)}, out of range ({bounds})")
        return out

    def flag(self, name: str, default: Any = _NEEDED) -> Any:
        """true or false."""
        return self._typed(name, default, bool, "true or false")

    def text(self, name: str, default: Any = _NEEDED) -> Any:
        """A string."""
        return self._typed(name, default, str, "a string")

    def choice(self, name: str, known: Sequence[str], default: Any = _NEEDED) -> Any:
        """One of the known strings."""
        value = self.text(name, default)
        if value is not default and value not in known:
            raise self.wrong(name, f"{quoted(value)} is not supported", f"Known: {', '.join(known)}")
        return value

    def items(self, name: str, default: Any = _NEEDED) -> Any:
        """A list."""
        return self._typed(name, default, list, "a list")

    def object(self, name: str, default: Any = _NEEDED) -> Any:
        """An object, as `Fields`."""
        value = self._typed(name, default, dict, "an object")
        if value is default:
            return value
        return Fields(value, self.file, self.record, self.place(name), self.cure)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None and default is _NEEDED:
            raise self.wrong(name, "is missing")
        return default if value is None else value

    def _typed(self, name: str, default: Any, kind: type, called: str) -> Any:
        value = self._value(name, default)
        if value is not default and not isinstance(value, kind):
            raise self.wrong(name, f"is {quoted(value)}, not {called}")
        return value
