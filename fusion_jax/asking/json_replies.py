"""Objects out of replies: JSON is looked for tolerantly, and what is found is checked strictly against a dataclass.

    @dataclass(frozen=True)
    class Verdict:
        better: Literal["m", "M"]
        reason: str = ""

    read_object('Sure! ```json\\n{"better": "M",}\\n```', Verdict)       # Verdict(better="M", reason="")
    read_object("M is better.", Verdict)                              # Unread("no JSON object")

Tolerated are prose around the object, fences, and commas behind a last entry. What could not be read is told by a
reason of a few words, to be counted.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from fusion_jax.errors import InputError, quoted
from fusion_jax.json_files import parse_json

T = TypeVar("T")
LONGEST = 1 << 18  # characters of a reply that are looked through
MOST_TRIED = 8  # objects of a reply that are tried
FENCE = "```"


class Unread(NamedTuple):
    """A reply that holds no such object. reason: to be counted by; detail: one line."""

    reason: str
    detail: str = ""


def read_object(text: str, kind: type[T], *, others: bool = False) -> T | Unread:
    """The first object of a reply that is JSON, as a dataclass.

    Args:
      kind: a dataclass whose fields are str, int, float, bool, Literals, lists (`tuple[X, ...]`), dataclasses, or one
        of these or None. A float may be written as a whole number; nothing else is converted. Fields with a default may
        be missing.
      others: whether fields that the dataclass lacks are passed over, else they are an error.
    """
    found = read_json_object(text)
    if isinstance(found, Unread):
        return found
    try:
        checked: T = _record(found, kind, "", others)
    except _Wrong as error:
        return Unread(error.reason, error.detail)
    return checked


def read_json_object(text: str) -> dict[str, Any] | Unread:
    """The first JSON object of a reply; see the module's text for what is tolerated."""
    if len(text) > LONGEST:
        return Unread("reply too long to read", f"{len(text)} characters, {LONGEST} at most")
    problem = ""
    for number, candidate in enumerate(_candidates(text)):
        if number == MOST_TRIED:
            break
        for form in dict.fromkeys((candidate, without_last_commas(candidate))):
            try:
                found: dict[str, Any] = parse_json(form)
                return found
            except InputError as error:
                problem = problem or error.problem
    return Unread("broken JSON", problem) if problem else Unread("no JSON object")


def _candidates(text: str) -> Iterator[str]:
    """Pieces of a text that may be an object: what stands between balanced braces, then from the first brace on."""
    start = text.find("{")
    first = start
    while start >= 0:
        end = _closed(text, start)
        if end is None:
            break
        yield text[start:end]
        start = text.find("{", end)
    if first >= 0 and start >= 0:
        yield text[start:].partition(FENCE)[0]


def _closed(text: str, start: int) -> int | None:
    """Behind the brace that closes the one at `start`; braces in strings do not count."""
    depth, inside, at = 0, False, start
    while at < len(text):
        c = text[at]
        if inside:
            at += c == "\\"
            inside = c != '"'
        elif c == '"':
            inside = True
        elif c in "{}":
            depth += 1 if c == "{" else -1
            if not depth:
                return at + 1
        at += 1
    return None


def without_last_commas(text: str) -> str:
    """JSON without the commas behind the last entries of its objects and lists.

    >>> without_last_commas('{"a": [1, 2, ], "b": ",}",\\n}')
    '{"a": [1, 2 ], "b": ",}"\\n}'
    """
    out, comma, inside, escaped = list[str](), -1, False, False
    for c in text:
        if inside:
            inside, escaped = escaped or c != '"', c == "\\" and not escaped
        elif c == '"':
            inside, comma = True, -1
        elif c == ",":
            comma = len(out)
        elif c in "}]" and comma >= 0:
            out[comma], comma = "", -1
        elif not c.isspace():
            comma = -1
        out.append(c)
    return "".join(out)


class _Wrong(Exception):
    """A value that is not as it has to be."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _record(values: Any, kind: type, place: str, others: bool) -> Any:
    if not isinstance(values, dict):
        raise _wrong("is no object", place, values)
    hints, given = get_type_hints(kind), {}
    for one in dataclasses.fields(kind):
        where = f"{place}.{one.name}" if place else one.name
        if one.name in values:
            given[one.name] = _value(values[one.name], hints[one.name], where, others)
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise _Wrong(f"field '{where}' is missing")
    unknown = sorted(values.keys() - hints.keys())
    if unknown and not others:
        raise _Wrong("unknown field", quoted(unknown[0]))
    try:
        return kind(**given)
    except InputError as error:  # what the dataclass itself checks
        raise _Wrong(f"field '{error.field}' out of range" if error.field else "out of range", error.problem) from None


def _value(value: Any, kind: Any, place: str, others: bool) -> Any:
    if kind is Any:  # whoever reads the dataclass looks through it
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = [one for one in get_args(kind) if one is not type(None)]
        if value is None and len(inner) < len(get_args(kind)):
            return None
        return _value(value, inner[0], place, others)
    if origin is Literal:
        match = [one for one in get_args(kind) if type(one) is type(value) and one == value]
        if not match:
            raise _wrong(f"is none of {json.dumps(list(get_args(kind)))}", place, value)
        return match[0]
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong("is no list", place, value)
        return tuple(_value(one, get_args(kind)[0], f"{place}[]", others) for one in value)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _record(value, kind, place, others)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _wrong(f"is no {kind.__name__}", place, value)
    return value


def _wrong(problem: str, place: str, value: Any) -> _Wrong:
    return _Wrong(f"field '{place}' {problem}" if place else problem, quoted(value))
