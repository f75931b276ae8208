"""What is scored, from files: sources, hypotheses and references in any of four forms.

para   id TAB source TAB text [TAB text ...]; a hypothesis file has one text, references have one or more
lines  one text a line, and the sources in a file of their own
jsonl  {"source", "target" or "references", "pred"} a line, any of which may stand in a file of its own
m2     references alone: see `m2_files`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fusion_jax.data.messages import Place, text
from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.cgec.lines import numbered_lines
from fusion_jax.evals.cgec.m2_files import Annotated, read_m2
from fusion_jax.files import replacing
from fusion_jax.jsonl import numbered, read_jsonl

Form = Literal["auto", "para", "lines", "jsonl", "m2"]
File = str | os.PathLike[str]
PARA = "Write id, source and text with tabs between them"


class Line(NamedTuple):
    """A line of a file: its number from 1, the sentence's id ("" where the form has none), its source (None likewise)
    and its hypothesis or references."""

    number: int
    id: str
    source: str | None
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Sentences to score: hypotheses, and either references as texts with their sources, or annotated sources."""

    hypotheses: list[str]
    sources: list[str]
    references: list[tuple[str, ...]]
    annotated: list[Annotated] | None = None


def form_of(path: File, form: Form) -> Form:
    """A file's form, where it is to be found out (auto): by its name (.jsonl, .m2) or its first line.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    if form != "auto":
        return form
    name = os.path.basename(os.fspath(path))
    if name.endswith(".jsonl"):
        return "jsonl"
    _, first = next(iter(numbered_lines(path)), (0, ""))
    if ".m2" in name or first.startswith("S "):
        return "m2"
    return "para" if "\t" in first else "lines"


def read_para(path: File, *, single: bool = False) -> list[Line]:
    """A para file. single: of one text a sentence.

    Raises:
      InputError: no such file, not UTF-8, no line, a line with too few fields or too many; names file and line.
    """
    found = []
    for number, line in numbered_lines(path):
        name, *fields = line.split("\t")
        problem = None
        if not line.strip():
            problem = "is blank"
        elif len(fields) < 2:
            problem = f"has {len(fields) + 1} of three fields or more, which tabs separate"
        elif single and len(fields) > 2:
            problem = f"has {len(fields) - 1} hypotheses"
        if problem:
            field = "source" if not fields else "text"
            raise InputError(problem, file=path, record=number, field=field, cure=PARA)
        found.append(Line(number, name.strip(), fields[0], tuple(fields[1:])))
    return _some(found, path)


def write_para(path: File, sources: Sequence[str], several: Sequence[Sequence[str]]) -> None:
    """A para file of sources and, for each, its hypothesis or references; ids are numbers from 1. Whole or not at all.

    Raises:
      InputError: a text holds a tab or a line break; names the sentence.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        for number, (source, texts) in enumerate(zip(sources, several, strict=True), 1):
            if any(character in one for one in (source, *texts) for character in "\t\n\r"):
                cure = "Replace it by a space"
                raise InputError("holds a tab or a line break", file=path, record=number, field="text", cure=cure)
            out.write("\t".join([str(number), source, *texts]) + "\n")


def read_texts(path: File) -> list[Line]:
    """A file of one text a line; a blank line is an empty text.

    Raises:
      InputError: no such file, not UTF-8, no line, a tab in a line.
    """
    found = []
    for number, line in numbered_lines(path):
        if "\t" in line:
            cure = "Write one text a line, or id, source and text in every line"
            raise InputError("holds a tab, other lines do not", file=path, record=number, field="text", cure=cure)
        found.append(Line(number, "", None, (line,)))
    return _some(found, path)


def read_records(path: File, *, wanted: Literal["pred", "references"]) -> list[Line]:
    """JSON lines with "source" and, as is wanted, "pred" or "references" (a list) or "target".

    Raises:
      InputError: no such file, a broken line, a field that is missing or no text; names file, line and field.
    """
    found = []
    for number, record in numbered(read_jsonl(path)):
        place = Place(os.fspath(path), number)
        if wanted == "pred":
            texts: tuple[str, ...] = (text(record, "pred", place, blank=True),)
        else:
            texts = _references(record, place)
        name = record.get("id", "")
        source = text(record, "source", place, blank=True) if "source" in record else None
        found.append(Line(number, name if isinstance(name, str) else str(name), source, texts))
    return _some(found, path)


def _references(record: dict[str, Any], place: Place) -> tuple[str, ...]:
    several = record.get("references")
    if several is None:
        return (text(record, "target", place, blank=True),)
    if not isinstance(several, list) or not several:
        raise place.error(f"is {quoted(several)}, no list of texts", "references", 'Write ["text", ...]')
    return tuple(text({"references": one}, "references", place, blank=True) for one in several)


def _some(found: list[Line], path: File) -> list[Line]:
    if not found:
        raise InputError("holds no sentence", file=path, cure="Give one line for each sentence")
    return found


def read_task(hypothesis: File, references: File, source: File = "", form: Form = "auto") -> Task:
    """What is scored.

    Args:
      hypothesis: a para file, one text a line, or JSON lines with "pred".
      references: in the form `form`; "" is the hypothesis file, of JSON lines.
      source: a file of one source a line (of several fields the last one), for references of one text a line; beside
        other references it is compared with their sources.

    Raises:
      InputError: a broken file, other numbers of sentences, other ids or sources in the same place, no sources.
    """
    gold = references or hypothesis
    kind = form_of(gold, form)
    given = [line.rpartition("\t")[2] for _, line in numbered_lines(source)] if os.fspath(source) else None
    annotated = read_m2(gold) if kind == "m2" else None
    if annotated is not None:
        lines = [Line(one.line, "", "".join(one.tokens), ()) for one in annotated]
    elif kind == "jsonl":
        lines = read_records(gold, wanted="references")
    else:
        lines = read_para(gold) if kind == "para" else read_texts(gold)
    lines = _with_sources(lines, gold, given, source)
    ours = _hypotheses(hypothesis)
    _check_same(ours, hypothesis, lines, gold)
    sources = [line.source or "" for line in lines]
    return Task([line.texts[0] for line in ours], sources, [line.texts for line in lines], annotated)


def _hypotheses(path: File) -> list[Line]:
    kind = form_of(path, "auto")
    if kind == "m2":
        raise InputError("is an M2 file", file=path, field="hypothesis", cure="Give corrected sentences as texts")
    if kind == "jsonl":
        return read_records(path, wanted="pred")
    return read_para(path, single=True) if kind == "para" else read_texts(path)


def _with_sources(lines: list[Line], gold: File, given: list[str] | None, source: File) -> list[Line]:
    """Reference lines with their sources, which are compared with those of the file of sources where both are there."""
    if given is None:
        bare = next((line for line in lines if line.source is None), None)
        if bare is not None:
            cure = "Give --source FILE, or references with their sources"
            raise InputError("has no source", file=gold, record=bare.number, field="source", cure=cure)
        return lines
    numbered_sources = [Line(number, "", text, ()) for number, text in enumerate(given, 1)]
    _check_same(numbered_sources, source, lines, gold)
    return [line._replace(source=text if line.source is None else line.source) for line, text in zip(lines, given)]


def _check_same(ours: list[Line], file: File, gold: list[Line], other: File) -> None:
    """Refuse a file whose sentences are not those of another one, in its order."""
    if len(ours) != len(gold):
        problem = f"holds {len(ours)} sentences, {os.fspath(other)} holds {len(gold)}"
        raise InputError(problem, file=file, field="sentences", cure="Give one line for each sentence, in one order")
    for line, wanted in zip(ours, gold):
        if line.id and wanted.id and line.id != wanted.id:
            problem = f"is {quoted(line.id)}, {os.fspath(other)} has {quoted(wanted.id)} in line {wanted.number}"
            raise InputError(problem, file=file, record=line.number, field="id", cure="Put both into the same order")
        if None not in (line.source, wanted.source) and _bare(line.source) != _bare(wanted.source):
            problem = f"is {quoted(line.source)}, {os.fspath(other)} has {quoted(wanted.source)}"
            cure = "Give hypotheses of the same sentences, in one order"
            raise InputError(problem, file=file, record=line.number, field="source", cure=cure)


def _bare(text: str | None) -> str:
    return "".join((text or "").split())
