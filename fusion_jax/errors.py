"""One kind of error for everything a user can get wrong: it names the place and the cure."""

from __future__ import annotations

import os
from functools import partial
from typing import Any


class InputError(ValueError):
    """Bad input, told in one line: where it is, what is wrong, what would fix it.

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
        self.problem, self.record, self.field, self.cure = problem, record, field, cure
        self.file = None if file is None else os.fspath(file)
        place = [str(self.file)] if file is not None else []
        place += [f"record {record}"] if record is not None else []
        place += [f"field '{field}'"] if field is not None else []
        prefix = ", ".join(place) + ": " if place else ""
        super().__init__(f"{prefix}{problem}." + (f" {cure}." if cure else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """The same error in another process: made of its parts, since its message is made of them."""
        parts = partial(type(self), file=self.file, record=self.record, field=self.field, cure=self.cure)
        return parts, (self.problem,)
