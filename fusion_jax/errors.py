"""One kind of error for everything a user can get wrong: it names the place and the cure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

LONGEST = 400  # characters of a message's part; what is longer is cut in the middle
QUOTED = 80  # characters of a value that a message quotes


class InputError(ValueError):
    """Bad input, told in one line: where it is, what is wrong, what would fix it.

    Each part is kept to one line of bounded length: a value of a megabyte does not become a message of a megabyte.

    Args:
      problem: what is wrong, a clause without a full stop.
      file: the file or folder.
      record: 1-based record (line) number, or a record's own id.
      field: name of the field, tensor or option.
      cure: what would fix it, a sentence without a full stop.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        record: int | str | None = None,
        field: str | None = None,
        cure: str | None = None,
    ) -> None:
        self.problem = one_line(problem)
        self.record = one_line(record, QUOTED) if isinstance(record, str) else record
        self.field = None if field is None else one_line(field, 2 * QUOTED)
        self.cure = None if cure is None else one_line(cure)
        self.file = None if file is None else os.fspath(file)
        place = [one_line(str(self.file))] if file is not None else []
        place += [f"record {self.record}"] if record is not None else []
        place += [f"field '{self.field}'"] if field is not None else []
        prefix = ", ".join(place) + ": " if place else ""
        super().__init__(f"{prefix}{self.problem}." + (f" {self.cure}." if cure else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """The same error in another process: made of its parts, since its message is made of them."""
        parts = partial(type(self), file=self.file, record=self.record, field=self.field, cure=self.cure)
        return parts, (self.problem,)


class DiskError(InputError):
    """The disk or the bucket, not the input, is why something could not be done; mended, the same command goes on."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was made of and what it was raised from, each once."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        waiting += [e for e in (one.__cause__, None if one.__suppress_context__ else one.__context__) if e is not None]


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text as a message can hold it: control characters and lone surrogates escaped, its middle left out if long.

    >>> one_line("a" * 30, 11)
    'aaaa...aaaa'
    """
    if len(text) > longest:
        kept = (longest - 3) // 2
        text = f"{text[:kept]}...{text[-kept:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(value: object) -> str:
    """A value as messages quote it, at most about `QUOTED` characters; a long one is not written out first."""
    if isinstance(value, str):
        return one_line(repr(value if len(value) <= 2 * QUOTED else value[:QUOTED] + value[-QUOTED:]), QUOTED)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict | set):
        return f"{type(value).__name__} of {len(value)}"
    return one_line(repr(value), QUOTED)


def first_line(error: BaseException) -> str:
    """The first line of what an error says that is not blank or, of one that says nothing, its kind.

    >>> first_line(ValueError(""))
    'ValueError'
    """
    said = str(error)
    head = said[: 16 * LONGEST]  # some errors quote a whole file
    return next((line.strip() for line in head.splitlines() if line.strip()), type(error).__name__)
