"""M2 files: sentences as tokens with the edits of one or more annotators. Word level and character level alike.

    S 他 去 学校 。
    A 1 1|||M|||昨天|||REQUIRED|||-NONE-|||0
    A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||1

A sentence ends with a blank line. An edit has a span of tokens, a type, a correction (tokens; "-NONE-" for none;
alternatives apart by "||"), two fields that no scorer reads, and the number of the annotator. Lines that begin with
"T", ChERRANT's corrected sentences, are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.cgec.edits import NA, NOOP, Edit
from fusion_jax.evals.cgec.lines import numbered_lines
from fusion_jax.evals.cgec.text import Tokens, characters
from fusion_jax.files import replacing

NONE = "-NONE-"
EXAMPLE = "A 1 1|||M|||昨天|||REQUIRED|||-NONE-|||0"
FIELDS = ("span", "type", "correction", "required", "comment", "annotator")


@dataclass(frozen=True)
class Annotated:
    """A sentence and the edits of each annotator, by their numbers; `edits.NOOP` alone where there is no error.

    line: where it stands in a file, from 1.
    """

    tokens: Tokens
    annotators: tuple[tuple[Edit, ...], ...]
    line: int = 0


def read_m2(path: str | os.PathLike[str]) -> list[Annotated]:
    """The sentences of an M2 file. A sentence without edits has one annotator, who leaves it as it is.

    Raises:
      InputError: no such file, not UTF-8, no sentence, a line that is none of S, T and A; an edit that stands before a
        sentence, has another number of fields, a span that is none, is reversed or leaves the sentence, or an annotator
        that is no number; an annotator with edits and without. Names file, line and field.
    """
    found: list[Annotated] = []
    tokens: Tokens | None = None
    start, edits = 0, dict[int, list[Edit]]()
    for number, line in [*numbered_lines(path), (0, "")]:
        kind, _, rest = line.partition(" ")
        if not line.strip() or kind == "S":
            if tokens is not None:
                found.append(Annotated(tokens, _by_annotator(edits), start))
            tokens, start, edits = (tuple(rest.split()), number, {}) if kind == "S" else (None, 0, {})
        elif kind == "A":
            if tokens is None:
                cure = "Put a line 'S token token ...' above it"
                raise InputError("is an edit without a sentence", file=path, record=number, field="S", cure=cure)
            annotator, edit = _edit(rest, len(tokens), path, number)
            own = edits.setdefault(annotator, [])
            if own and (edit == NOOP or NOOP in own):
                problem = f"annotator {annotator} has edits and says that there is none"
                raise InputError(problem, file=path, record=number, field="type", cure="Remove the noop or the edits")
            own.append(edit)
        elif not kind.startswith("T"):
            problem = f"is {quoted(line[:40])}, no line of an M2 file"
            cure = f"Begin lines with S or A, as in {EXAMPLE}"
            raise InputError(problem, file=path, record=number, field="S", cure=cure)
    if not found:
        cure = "Give an M2 file: a line 'S token token ...' for each sentence, then its edits"
        raise InputError("holds no sentence (no line begins with S)", file=path, field="S", cure=cure)
    return found


def _by_annotator(edits: dict[int, list[Edit]]) -> tuple[tuple[Edit, ...], ...]:
    return tuple(tuple(edits[number]) for number in sorted(edits)) or ((NOOP,),)


def _edit(text: str, length: int, path: str | os.PathLike[str], number: int) -> tuple[int, Edit]:
    """The annotator's number and the edit of a line, without its "A"."""

    def wrong(problem: str, field: str, cure: str) -> InputError:
        return InputError(problem, file=path, record=number, field=field, cure=cure)

    fields = text.split("|||")
    if len(fields) == 1:
        raise wrong("has no separator '|||'", "span", f"Write it as in {EXAMPLE}")
    if len(fields) != len(FIELDS):
        problem = f"has {len(fields)} fields apart by '|||', not {len(FIELDS)}"
        raise wrong(problem, FIELDS[min(len(fields), len(FIELDS) - 1)], f"Write it as in {EXAMPLE}")
    span, kind, correction, _, _, annotator = fields
    numbers = [_whole(part) for part in span.split()]
    if len(numbers) != 2 or None in numbers:
        raise wrong(f"{quoted(span)} is no span", "span", "Write two whole numbers, as in 1 1")
    who = _whole(annotator)
    if who is None or who < 0:
        raise wrong(f"{quoted(annotator)} is no number of an annotator", "annotator", "Write 0, 1, ...")
    if not kind.strip():
        raise wrong("is empty", "type", "Write M, R, S, W or noop")
    start, end = (n for n in numbers if n is not None)
    if kind in (NOOP.type, NA.type):
        if (start, end) != (-1, -1):
            raise wrong(f"{quoted(span)} is no span of {kind}", "span", "Write -1 -1")
        return who, NOOP if kind == NOOP.type else NA
    if end < start:
        raise wrong(f"{quoted(span)} is reversed", "span", f"Write {end} {start}")
    if start < 0 or end > length:
        cure = f"Write spans from 0 to {length}"
        raise wrong(f"{quoted(span)} is out of range: the sentence has {length} tokens", "span", cure)
    return who, Edit(start, end, kind, "" if correction == NONE else correction)


def _whole(text: str) -> int | None:
    """A whole number as it is written in M2 files, or None."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def write_m2(path: str | os.PathLike[str], sentences: Sequence[Annotated], *, by_character: bool = False) -> None:
    """Write an M2 file, whole or not at all; `read_m2` gives the same sentences again.

    by_character: corrections are written as characters apart by spaces, as character-level files have them.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        for sentence in sentences:
            out.writelines(f"{line}\n" for line in _lines(sentence, by_character))


def _lines(sentence: Annotated, by_character: bool) -> Iterator[str]:
    yield " ".join(["S", *sentence.tokens])
    for number, edits in enumerate(sentence.annotators):
        for start, end, kind, text in edits or (NOOP,):
            correction = (" ".join(characters(text)) if by_character else text) or NONE
            yield f"A {start} {end}|||{kind}|||{correction}|||REQUIRED|||{NONE}|||{number}"
    yield ""
