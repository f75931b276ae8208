"""Objects out of replies: JSON is looked for tolerantly, and what is found is checked strictly against a dataclass.

    @dataclass(frozen=True)
    class Verdict:
        better: Literal["m", "M"]
        reason: str = ""

    read_object('Sure! ```json\\n{"better": "M",}\\n```', Verdict)       # Verdict(better="M", reason="")
    read_object("M is better.", Verdict)                              # Unread("no JSON object")

Tolerated are prose around the object, also with braces, fences, and commas behind a last entry. Declared thoughts
(<think>...</think>) are left out first, and of several objects the last one that passes the check counts. What could
not be read is told by a reason of a few words, to be counted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from fusion_jax.asking.thoughts import OPENED, without_thinking
from fusion_jax.errors import InputError, quoted
from fusion_jax.json_files import parse_json

T = TypeVar("T")
LONGEST = 1 << 18  # characters of a reply that are looked through
MOST_TRIED, MOST_OPEN = 32, 8  # last objects of a reply that are tried; beginnings that may be left open before one
BROKEN = "broken JSON"
_BEGIN = re.compile(r'\{\s*["}]')  # of what may be an object
_BRACE = re.compile(r'[{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # or a string, closed or not


class Unread(NamedTuple):
    """A reply that holds no such object. reason: to be counted by; detail: one line."""

    reason: str
    detail: str = ""


def read_object(text: str, kind: type[T], *, others: bool = False) -> T | Unread:
    """The last JSON object of a reply that is such a dataclass.

    Args:
      kind: a dataclass whose fields are str, int, float, bool, Literals, lists (`tuple[X, ...]`), dataclasses, or one
        of these or None. A float may be written as a whole number; nothing else is converted. Fields with a default may
        be missing.
      others: whether fields that the dataclass lacks are passed over, else they are an error.
    """

    def checked(found: dict[str, Any]) -> T | Unread:
        try:
            record: T = _record(found, kind, "", others)
        except _Wrong as error:
            return Unread(error.reason, error.detail)
        return record

    return _last(text, checked)


def read_json_object(text: str) -> dict[str, Any] | Unread:
    """The last JSON object of a reply; see the module's text for what is tolerated."""
    return _last(text, lambda found: found)


def _last(text: str, check: Callable[[dict[str, Any]], T | Unread]) -> T | Unread:
    """The last object of a reply that passes a check, else why there is none."""
    text = without_thinking(text)
    if len(text) > LONGEST:
        return Unread("reply too long to read", f"{len(text)} characters, {LONGEST} at most")
    if text.lstrip().startswith(OPENED):
        return Unread("thoughts that do not end")
    candidates, cut = _candidates(text)
    problems = list[Unread]()
    for candidate in reversed(candidates[-MOST_TRIED:]):
        found = _parsed(candidate)
        checked = found if isinstance(found, Unread) else check(found)
        if not isinstance(checked, Unread):
            return checked
        problems.append(checked)
    if cut:
        return Unread(BROKEN, "an object is not closed")
    if problems:
        return problems[0]
    return Unread(BROKEN, "no name in quotes behind a brace") if "{" in text else Unread("no JSON object")


def _parsed(text: str) -> dict[str, Any] | Unread:
    """A text as a JSON object, if need be without commas behind last entries."""
    try:
        found: dict[str, Any] = parse_json(text)
    except InputError as error:
        bare = without_last_commas(text)
        return Unread(BROKEN, error.problem) if bare == text else _parsed(bare)
    return found


def _candidates(text: str) -> tuple[list[str], bool]:
    """What stands between balanced braces, outermost pairs only, and whether something that begins as an object is not
    closed. Braces that begin none, as in {x | x > 0}, are passed over."""
    found, cut, end = list[str](), 0, 0
    for start in (one.start() for one in _BEGIN.finditer(text)):
        if start < end:
            continue
        closed = _closed(text, start)
        if closed is not None:
            found.append(text[start:closed])
            end = closed
        elif (cut := cut + 1) == MOST_OPEN:
            break
    return found, cut > 0


def _closed(text: str, start: int) -> int | None:
    """Behind the brace that closes the one at `start`; braces in strings do not count."""
    depth = 0
    for one in _BRACE.finditer(text, start):
        if one[0] in "{}":
            depth += 1 if one[0] == "{" else -1
            if not depth:
                return one.end()
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
