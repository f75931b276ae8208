"""The one reader of JSON: whatever comes from outside is read here, and refused by name where it is not plain JSON.

Refused are: another encoding than UTF-8, a key that stands twice, NaN and infinities, numbers beyond float64, nesting
deeper than `DEEPEST`, halves of surrogate pairs, another type than the one expected, what is no regular file, and files
larger than a bound.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections import Counter
from typing import Any

from fusion_jax.errors import InputError, one_line, quoted
from fusion_jax.files import regular_file
from fusion_jax.paths import read_bytes, size_of

DEEPEST = 100  # containers within containers
LARGEST = 1 << 30  # bytes of a file
DIGITS = 300  # of a whole number; float64 ends at 309
NAMES: dict[type, str] = {dict: "a JSON object", list: "a JSON list", str: "a JSON string"}
CURE = "Download or copy the file again"
RESTORE = "Restore the file or start a new run"


def read_json(
    path: str | os.PathLike[str],
    kind: type = dict,
    *,
    cure: str = CURE,
    missing: str = "Check the path",
    lone_surrogates: bool = False,
    largest: int = LARGEST,
) -> Any:
    """The value of a JSON file.

    Args:
      kind: the type that the value must have: dict, list, or object for any.
      cure, missing: what would fix a broken file, and one that is not there.
      lone_surrogates: whether halves of surrogate pairs are left to the caller instead of refused.
      largest: bytes that the file may have.

    Raises:
      InputError: no such file, no regular file, or what the module's text lists; names the file.
    """
    file = regular_file(path, cure=cure, missing=missing)
    size = size_of(file)
    if size > largest:
        raise InputError(f"is too large for such a file ({size} bytes, {largest} at most)", file=path, cure=cure)
    return parse_json(read_bytes(file), kind, file=path, cure=cure, lone_surrogates=lone_surrogates)


def parse_json(
    raw: bytes | str,
    kind: type = dict,
    *,
    file: str | os.PathLike[str] | None = None,
    record: int | str | None = None,
    cure: str = CURE,
    lone_surrogates: bool = False,
) -> Any:
    """The value of a JSON text; `file` and `record` only name the place in messages. See `read_json`."""

    def wrong(problem: str, field: str | None = None) -> InputError:
        return InputError(problem, file=file, record=record, field=field, cure=cure)

    try:
        text = raw if isinstance(raw, str) else raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
        raise InputError(problem, file=file, record=record, cure="Save the file as UTF-8") from None
    if not text.strip():
        raise wrong("is empty")
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
        )
    except RecursionError:
        raise wrong(f"is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        valid = "JSON" if record is None else "valid JSON"
        why = str(error) if record is None else re.sub(r": line 1 column (\d+).*", r" at column \1", str(error))
        raise wrong(f"is not {valid} ({one_line(why, 200)})") from None
    if text.count("[") + text.count("{") > DEEPEST and _too_deep(value):
        raise wrong(f"is nested more than {DEEPEST} deep")
    if not isinstance(value, kind):
        raise wrong(f"is not {NAMES.get(kind, kind.__name__)} but {quoted(value)}")
    if not lone_surrogates and "\\ud" in text.lower():
        place = lone_surrogate(value)
        if place is not None:
            raise wrong("holds half of a surrogate pair, which is no text", place or None)
    return value


def lone_surrogate(value: Any) -> str | None:
    """The place of the first string, or key, with half of a surrogate pair ("a.b[2]", "" for the value itself)."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return place
        elif isinstance(one, dict):
            waiting += [(f"{place}.{key}" if place else str(key), v) for key, v in reversed(one.items())]
            waiting += [(place, key) for key in one]
        elif isinstance(one, list):
            waiting += [(f"{place}[{i}]", v) for i, v in reversed(list(enumerate(one)))]
    return None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {one_line(text, 40)} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key '{one_line(twice, 80)}' stands twice")
    return out


def _too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            return True
        containers = [one for one in level if isinstance(one, dict | list)]
        level = [v for one in containers for v in (one.values() if isinstance(one, dict) else one)]
    return False
