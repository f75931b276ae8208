"""Settings of a recipe: numbers, gradients over the layers, rules by tensor name (merge specification, section 1.5).

A setting is read against the `Parameter` it is for, so that a wrong type, a value out of range or an unknown name is
told with its place in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fusion_jax.merge.methods.method import Method, Parameter
from fusion_jax.merge.recipes.places import Place, mapping, nearest, sequence, shown

Value = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """The value of every tensor whose name contains `pattern` (None: of all): one, or a gradient over the layers."""

    values: tuple[Value, ...]
    pattern: str | None = None

    def at(self, position: float) -> Value:
        """The value at a layer position in [0, 1]: floats are interpolated, all else is picked."""
        s = position * (len(self.values) - 1)
        i = int(s)
        low = self.values[i]
        if len(self.values) == 1 or not isinstance(low, float):
            return low
        return (1 - (s - i)) * low + (s - i) * float(self.values[min(i + 1, len(self.values) - 1)])


Setting = tuple[Rule, ...]
Settings = Mapping[str, Setting]


def layer_position(layer: int | None, layers: int) -> float:
    """Where a layer stands among `layers`, from 0 to 1; 0 for a tensor of no layer (None), 1 for an only layer."""
    if layer is None:
        return 0.0
    return 1.0 if layers == 1 else layer / (layers - 1)


def lookup(levels: Iterable[Settings], parameter: str, tensor: str, position: float) -> Value | None:
    """The value of the first rule that takes the tensor, of the first level that has one; None where there is none."""
    for settings in levels:
        for rule in settings.get(parameter, ()):
            if rule.pattern is None or rule.pattern in tensor:
                return rule.at(position)
    return None


def read_settings(raw: Any, method: Method, place: Place, *, of_model: bool) -> dict[str, Setting]:
    """The `parameters` of a model, a slice or the whole recipe.

    Args:
      of_model: they stand at one model, where only per-model parameters have a meaning.

    Raises:
      InputError: an unknown parameter, one that is not of a model, a value of a wrong type or out of range.
    """
    known = {p.name: p for p in method.parameters}
    out = {}
    for name, value in mapping(raw, None, place).items():
        if name not in known:
            raise (place / str(name)).error(f"{method.name} has no parameter '{name}'", nearest(name, known))
        if of_model and not known[name].per_model:
            raise (place / name).error("is one value for all models", "Move it to the `parameters` of the recipe")
        out[name] = _setting(value, known[name], place / name)
    return out


def _setting(raw: Any, parameter: Parameter, place: Place) -> Setting:
    """A number, a gradient list, a mapping {filter, value} with either, or a list of such mappings."""
    if isinstance(raw, Mapping):
        return (_rule(raw, parameter, place),)
    if isinstance(raw, list | tuple) and any(isinstance(entry, Mapping) for entry in raw):
        return tuple(_rule(entry, parameter, place / i) for i, entry in enumerate(raw))
    return (Rule(_values(raw, parameter, place)),)


def _rule(raw: Any, parameter: Parameter, place: Place) -> Rule:
    if not isinstance(raw, Mapping):
        problem = f"is {shown(raw)} among rules of filter and value"
        raise place.error(problem, "Write '- value: ...' for all other tensors")
    rule = mapping(raw, ("filter", "value"), place)
    pattern = rule.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise (place / "filter").error(f"must be text, not {shown(pattern)}", "Write a part of tensor names")
    if "value" not in rule:
        raise place.error("has no value", "Add 'value: ...'")
    return Rule(_values(rule["value"], parameter, place / "value"), None if pattern == "*" else pattern)


def _values(raw: Any, parameter: Parameter, place: Place) -> tuple[Value, ...]:
    if isinstance(raw, list | tuple):
        entries = sequence(raw, place)
        return tuple(read_value(entry, parameter, place / i) for i, entry in enumerate(entries))
    return (read_value(raw, parameter, place),)


def read_value(raw: Any, parameter: Parameter, place: Place) -> Value:
    """One value of its parameter's type: choices are strings, the default tells switches and whole numbers.

    Raises:
      InputError: a wrong type, a number out of range, an unknown choice (naming the nearest).
    """
    if isinstance(parameter.default, bool):
        if isinstance(raw, bool) or raw in (0, 1):
            return bool(raw)
        raise place.error(f"must be true or false, not {shown(raw)}", "Write true or false")
    if parameter.choices:
        if isinstance(raw, str) and raw in parameter.choices:
            return raw
        if isinstance(raw, bool) and "none" in parameter.choices:  # a switch of mergekit's that has kinds here
            return next(c for c in parameter.choices if (c != "none") == raw)
        raise place.error(f"{shown(raw)} is not a choice", nearest(raw, parameter.choices))
    return _number(raw, parameter, place)


def _number(raw: Any, parameter: Parameter, place: Place) -> int | float:
    """A number within the parameter's range; YAML reads 1e-5 (without a point) as text, so text is tried."""
    try:
        if isinstance(raw, bool) or not isinstance(raw, int | float | str):
            raise ValueError
        number = float(raw)
    except (ValueError, OverflowError):
        raise place.error(f"must be a number, not {shown(raw)}", "Write a number") from None
    if not (math.isfinite(number) and parameter.least <= number <= parameter.most):
        span = [f"{parameter.least:g} or more"] if parameter.least > -math.inf else []
        span += [f"{parameter.most:g} or less"] if parameter.most < math.inf else []
        raise place.error(f"{number:g} is out of range", f"Give {' and '.join(span) or 'a finite number'}")
    if isinstance(parameter.default, int):
        if number != int(number):
            raise place.error(f"must be a whole number, not {shown(raw)}", f"Write {round(number)}")
        return int(number)
    return number
