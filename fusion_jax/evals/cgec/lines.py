"""The lines of a text file, with errors that name file and line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence

from fusion_jax.errors import InputError
from fusion_jax.files import regular_file
from fusion_jax.json_files import LARGEST
from fusion_jax.paths import read_bytes, size_of


def numbered_lines(
    path: str | os.PathLike[str], *, encodings: Sequence[str] = ("utf-8",), cure: str = "Check the path"
) -> Iterator[tuple[int, str]]:
    """Every line without its end, with its number from 1. A line ends with LF or CR LF.

    Args:
      encodings: the first in which the whole file can be read is taken.
      cure: what would fix a path of nothing.

    Raises:
      InputError: no such file, no regular file, too large, or a line that is in none of the encodings.
    """
    file = regular_file(path, missing=cure)
    if size_of(file) > LARGEST:
        raise InputError(f"is larger than {LARGEST} bytes", file=path, cure="Split the file")
    raw = read_bytes(file).removeprefix(codecs.BOM_UTF8)
    if raw.endswith(b"\n"):
        raw = raw[:-1]
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            line, start = raw.count(b"\n", 0, error.start) + 1, raw.rfind(b"\n", 0, error.start) + 1
            problem = f"is not {encoding.upper()} text (byte {error.start - start} of the line)"
            last = InputError(problem, file=path, record=line, cure=f"Save the file as {encodings[0].upper()}")
        else:
            yield from ((n, line.removesuffix("\r")) for n, line in enumerate(text.split("\n") if raw else (), 1))
            return
    raise last
