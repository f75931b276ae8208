"""Sentences and their corrections: the records, the files that hold them, and the training list of Alirector.

Pairs are records {"source", "target"}; triples also have "pred", a draft by a model. They stand in a JSON list, in JSON
lines, or in another source of `data.loaders.load_records`. Sentences to be scored stand in "para" files, as MuCGEC,
NaCGEC and NLPCC18 are given: a line each of id, source and one or several references, separated by tabs (Alirector spec
section 2.1). A sentence that holds a tab or the end of a line is refused: both separate sentences here and in prompts.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from fusion_jax.data.loaders import load_records, text_lines
from fusion_jax.data.messages import Place, text
from fusion_jax.data.records import OnBad, count_malformed
from fusion_jax.errors import InputError
from fusion_jax.files import replacing, write_json
from fusion_jax.jsonl import Record, numbered, write_jsonl

Found = TypeVar("Found")
Given = TypeVar("Given")
Location = str | os.PathLike[str]

NO_ERROR, NOT_ANNOTATED = "没有错误", "无法标注"
"""What stands in the place of a reference: the source is right; nobody can say what it should be."""
SEPARATORS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
NO_REFERENCE = "not annotated: nobody can say what the source should be"
HELD_OUT, UNCHANGED = "source or target is held out", "target equals the source"


@dataclass(frozen=True)
class Pair:
    """A sentence as it was written, and as it should be."""

    source: str
    target: str


@dataclass(frozen=True)
class Triple:
    """A pair and what a model has made of its source (`pred`, which may be empty)."""

    source: str
    target: str
    pred: str


@dataclass(frozen=True)
class Sentence:
    """A sentence to be corrected, and all that it may become. name: its id in the file it is from."""

    name: str
    source: str
    references: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the only thing that it may become is itself."""
        return all(reference in (self.source, NO_ERROR) for reference in self.references)


def load_pairs(source: Location, *, on_bad: OnBad = "error") -> tuple[list[Pair], Counter[str]]:
    """Pairs of a source of records, in its order, and how many records were left out for which reason.

    Args:
      on_bad: "error" stops at a malformed record; "skip" counts it.

    Raises:
      InputError: see `load_records`; a record without source or target, or with one that is no text, is blank or holds
        a separator; no record that can be used.
    """
    return gathered(numbered(load_records(source)), parse_pair, source, on_bad, "pair")


def load_triples(source: Location, *, on_bad: OnBad = "error") -> tuple[list[Triple], Counter[str]]:
    """As `load_pairs`, of records that have a draft, too."""
    return gathered(numbered(load_records(source)), parse_triple, source, on_bad, "triple")


def parse_pair(record: Record, place: Place) -> Pair:
    """A record {"source", "target"}; further fields are metadata."""
    return Pair(sentence_of(record, "source", place), sentence_of(record, "target", place))


def parse_triple(record: Record, place: Place) -> Triple:
    """A record {"source", "target", "pred"}; the draft may be empty."""
    pair = parse_pair(record, place)
    return Triple(pair.source, pair.target, sentence_of(record, "pred", place, blank=True))


def sentence_of(record: Mapping[str, object], name: str, place: Place, *, blank: bool = False) -> str:
    """A field that holds one sentence, with something in it unless `blank`."""
    found = text(record, name, place, blank=blank)
    if SEPARATORS.search(found):
        raise place.error("holds a tab or the end of a line", name, "Write a space, or one record a sentence")
    return found


def gathered(
    given: Iterable[tuple[int | str, Given]], parse: Callable[[Given, Place], Found], file: Location, on_bad: OnBad,
    what: str,
) -> tuple[list[Found], Counter[str]]:  # fmt: skip
    """What is made of each of the records, and how many were left out for which reason.

    Args:
      given: records with the numbers or ids that a user finds them by. what: one of the results, for messages.

    Raises:
      InputError: a malformed record, unless `on_bad` is "skip"; nothing that can be used.
    """
    found, malformed = list[Found](), Counter[str]()
    for number, record in given:
        try:
            found.append(parse(record, Place(os.fspath(file), number)))
        except InputError as error:
            if on_bad == "error":
                raise
            count_malformed(error, malformed)
    if not found:
        why = ", ".join(f"{reason}: {n}" for reason, n in malformed.items()) or "the file is empty"
        cure = f"Give at least one {what} that can be used"
        raise InputError(f"no usable {what} is left ({why})", file=file, cure=cure)
    return found, malformed


def load_para(
    file: Location, *, on_bad: OnBad = "error", segmented: bool = False
) -> tuple[list[Sentence], Counter[str]]:
    """Sentences of a para file, in its order, and how many lines were left out for which reason.

    Args:
      on_bad: "error" stops at a malformed line; "skip" counts it.
      segmented: the words are separated by spaces, as in NLPCC18's files: these are taken out.

    Raises:
      InputError: no such file, not UTF-8; a line without a reference, or with a field that is blank.
    """

    def parse(line: str, place: Place) -> Sentence:
        fields = [without_spaces(field) if segmented else field for field in line.split("\t")]
        if len(fields) < 3:
            problem = f"has {len(fields)} of at least 3 columns"
            raise place.error(problem, "references", "Write id, source and references, separated by tabs")
        names = ("id", "source", *(f"reference {i}" for i in range(1, len(fields) - 1)))
        columns = dict(zip(names, fields, strict=True))
        name, source, *references = (sentence_of(columns, column, place) for column in names)
        return Sentence(name, source, tuple(references))

    return gathered(enumerate(_lines(file), 1), parse, file, on_bad, "sentence")


def load_sources(file: Location) -> list[str]:
    """Sentences to correct, one a line of a text file; of a line with tabs what is behind the last one.

    Raises:
      InputError: no such file, not UTF-8, no line at all; a sentence that is blank, since each has a line of output.
    """

    def parse(line: str, place: Place) -> str:
        return sentence_of({"source": line.rsplit("\t", 1)[-1]}, "source", place)

    return gathered(enumerate(_lines(file), 1), parse, file, "error", "sentence")[0]


def _lines(file: Location) -> Iterator[str]:
    lines = text_lines(os.fspath(file))
    return iter(lines[:-1] if not lines[-1] else lines)


def write_pairs(path: Location, pairs: Sequence[Pair | Triple]) -> None:
    """Pairs or triples as a JSON list or, in a file *.jsonl, as JSON lines; whole or not at all."""
    records = [asdict(pair) for pair in pairs]
    if os.fspath(path).endswith(".jsonl"):
        write_jsonl(path, records)
    else:
        write_json(path, records, sort=False)


def write_para(path: Location, sentences: Sequence[Sentence]) -> None:
    """Sentences with their references as a para file; whole or not at all.

    Raises:
      InputError: a text that holds a separator.
    """
    _write_columns(path, [(s.name, s.source, *s.references) for s in sentences])


def write_hypotheses(path: Location, sentences: Sequence[Sentence], texts: Sequence[str]) -> None:
    """What a model has made of each sentence, as a para file of id, source and this one text.

    Raises:
      InputError: more or fewer texts than sentences; a text that holds a separator.
    """
    if len(sentences) != len(texts):
        problem = f"there are {len(texts)} texts for {len(sentences)} sentences"
        raise InputError(problem, field="texts", cure="Give one for each sentence, in their order")
    _write_columns(path, [(s.name, s.source, said) for s, said in zip(sentences, texts)])


def write_lines(path: Location, texts: Sequence[str]) -> None:
    """One text a line; raises InputError for a text that holds a separator."""
    _write_columns(path, [(one,) for one in texts])


def _write_columns(path: Location, rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows, 1):
        for column, field in enumerate(row, 1):
            if SEPARATORS.search(field):
                problem, cure = "holds a tab or the end of a line", "Write a space instead"
                raise InputError(problem, record=number, field=f"column {column}", cure=cure)
    with replacing(path) as temporary:
        temporary.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8", newline="")


def pairs_of(sentences: Sequence[Sentence]) -> tuple[list[Pair], Counter[str]]:
    """A pair of each sentence and its first reference, and how many have none; right sentences stay as they are."""
    pairs, dropped = [], Counter[str]()
    for sentence in sentences:
        first = sentence.references[0]
        if first == NOT_ANNOTATED:
            dropped[NO_REFERENCE] += 1
        else:
            pairs.append(Pair(sentence.source, sentence.source if first == NO_ERROR else first))
    return pairs, dropped


def training_list(
    lang8: Sequence[Pair], hsk: Sequence[Pair], *, held_out: Iterable[str] = (), copies: int = 5
) -> tuple[list[Pair], Counter[str]]:
    """The training list in the form of MuCGEC's: Lang8, then HSK `copies` times (spec section 2.2).

    Args:
      held_out: sentences of the development and test sets; pairs that have one of them, up to white space, are left
        out, and so are pairs whose target is the source.

    Returns:
      (pairs, how many of the given pairs were left out for which reason).
    """
    forbidden, dropped = {without_spaces(one) for one in held_out}, Counter[str]()

    def kept(pairs: Sequence[Pair]) -> list[Pair]:
        out = []
        for pair in pairs:
            source, target = without_spaces(pair.source), without_spaces(pair.target)
            reason = UNCHANGED if source == target else HELD_OUT if {source, target} & forbidden else None
            if reason is None:
                out.append(pair)
            else:
                dropped[reason] += 1
        return out

    return kept(lang8) + copies * kept(hsk), dropped


def without_spaces(text: str) -> str:
    """A text without white space.

    >>> without_spaces("他 去 学校 。")
    '他去学校。'
    """
    return "".join(text.split())
