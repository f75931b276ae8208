"""FCGEC's operations and the references that they make (Alirector spec section 2.3).

A record has a sentence and `operation`, a JSON text that lists alternative corrections. Each is an object with any of
Switch (a permutation of the characters' indices), Delete (indices), Insert and Modify (lists of objects with pos, tag
and label, which is a text or a list of alternatives). Switch comes first; all other positions are those of the switched
sentence. Insert writes behind the character at pos, -1 is the front; Modify replaces as many characters from pos on as
the tag says: MOD_3+DEL_1 is three.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

from fusion_jax.correction.pairs import Sentence, gathered, sentence_of
from fusion_jax.data.messages import Place
from fusion_jax.data.records import OnBad
from fusion_jax.errors import quoted
from fusion_jax.json_files import parse_json, read_json

MOST = 256  # references of one sentence
_KEYS = ("Switch", "Delete", "Insert", "Modify")
_TAG = re.compile(r"(INS|MOD)_([0-9]{1,4})(?:\+(?:INS|DEL)_[0-9]{1,4})?")
_CURE = "Correct the operation, or skip such records"


class Change(NamedTuple):
    """Characters start to end are replaced by one of the labels; nothing is replaced where start equals end."""

    start: int
    end: int
    labels: tuple[str, ...]


def load_fcgec(
    file: str | os.PathLike[str], *, on_bad: OnBad = "error", most: int = MOST
) -> tuple[list[Sentence], Counter[str]]:
    """Sentences of FCGEC's train or validation file with all their references, in the file's order, and how many
    records were left out for which reason. A right sentence has itself as its only reference.

    Args:
      on_bad: "error" stops at a malformed record; "skip" counts it.
      most: references that one sentence may have.

    Raises:
      InputError: no such file, no JSON object; a record whose operations are malformed, reach beyond the sentence or
        contradict each other; the test file, which has no operations.
    """
    records = read_json(file, dict, lone_surrogates=True)

    def parse(record: Any, place: Place) -> Sentence:
        return parse_fcgec(str(place.record), record, place, most=most)

    return gathered(records.items(), parse, file, on_bad, "sentence")


def parse_fcgec(name: str, record: Any, place: Place, *, most: int = MOST) -> Sentence:
    """The sentence of one record with its references."""
    if not isinstance(record, dict):
        raise place.error(f"is {quoted(record)}, not an object", "record", "Give FCGEC's own file")
    sentence, wrong = sentence_of(record, "sentence", place), record.get("error_flag")
    if isinstance(wrong, bool) or wrong not in (0, 1):
        problem = "is missing" if wrong is None else f"is {quoted(wrong)}, not 0 or 1"
        raise place.error(problem, "error_flag", "Give the train or the validation file; the test file has no answers")
    found = _listed(record.get("operation"), place)
    if not wrong:
        if any(found):
            problem = "changes a sentence that error_flag calls right"
            raise place.error(problem, "operation", "Correct one of the two, or skip such records")
        return Sentence(name, sentence, (sentence,))
    return Sentence(name, sentence, references(sentence, found, place, most=most))


def _listed(operation: Any, place: Place) -> list[Any]:
    if operation is None or operation == "":
        return []
    if isinstance(operation, str):
        operation = parse_json(operation, list, file=place.file, record=place.record, cure=_CURE)
    if not isinstance(operation, list):
        raise place.error(f"is {quoted(operation)}, not a list", "operation", _CURE)
    return operation


def references(
    sentence: str, operations: Sequence[Mapping[str, Any]], place: Place, *, most: int = MOST
) -> tuple[str, ...]:
    """What the alternative corrections make of a sentence: one text for each combination of labels, none twice.

    >>> references("abcde", [{"Delete": [3]}], Place(None, 1))
    ('abce',)

    Raises:
      InputError: no operation, a malformed one, a position beyond the sentence, two that change the same character,
        more than `most` references, one that leaves nothing; names place and field.
    """
    if not operations:
        raise place.error("holds no correction of a wrong sentence", "operation", _CURE)
    out = dict[str, None]()
    for number, operation in enumerate(operations):
        where = f"operation[{number}]"
        characters, changes = _changes(sentence, operation, where, place)
        count = math.prod(len(change.labels) for change in changes) + len(out)
        if count > most:
            raise place.error(f"makes {count} references, {most} at most", where, "Raise `most`, or skip such records")
        out |= dict.fromkeys(_applied(characters, changes))
    if not all(reference.strip() for reference in out):
        raise place.error("leaves nothing of the sentence", "operation", _CURE)
    return tuple(out)


def _applied(characters: str, changes: Sequence[Change]) -> list[str]:
    """One text for each combination of labels; the changes are in order and apart."""
    ends = [0, *(change.end for change in changes)]
    kept = [characters[end : change.start] for end, change in zip(ends, changes)]
    rest = characters[ends[-1] :]
    combinations = product(*(change.labels for change in changes))
    return ["".join(part for both in zip(kept, labels) for part in both) + rest for labels in combinations]


def _changes(sentence: str, operation: Any, where: str, place: Place) -> tuple[str, list[Change]]:
    """The switched sentence, and the changes of one correction in order."""
    if not isinstance(operation, Mapping) or not operation:
        raise place.error(f"is {quoted(operation)}, not a correction", where, _CURE)
    unknown = next((key for key in operation if key not in _KEYS), None)
    if unknown is not None:
        raise place.error("is no known operation", f"{where}.{unknown}", f"Use {', '.join(_KEYS)}")
    if "Switch" in operation:
        sentence = _switched(sentence, operation["Switch"], f"{where}.Switch", place)
    changes = []
    for i in _items(operation, "Delete", where, place):
        start = _position(i, 0, len(sentence), f"{where}.Delete", place)
        changes.append(Change(start, start + 1, ("",)))
    for key in ("Insert", "Modify"):
        for i, one in enumerate(_items(operation, key, where, place)):
            changes.append(_labelled(one, len(sentence), f"{where}.{key}[{i}]", place))
    changes.sort(key=lambda change: (change.start, change.end))
    for before, after in pairwise(changes):
        if after.start < before.end:
            raise place.error(f"changes character {after.start} twice", where, _CURE)
    return sentence, changes


def _items(operation: Mapping[str, Any], key: str, where: str, place: Place) -> list[Any]:
    found = operation.get(key, [])
    if not isinstance(found, list):
        raise place.error(f"is {quoted(found)}, not a list", f"{where}.{key}", _CURE)
    return found


def _switched(sentence: str, order: Any, where: str, place: Place) -> str:
    whole = isinstance(order, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in order)
    if not whole or sorted(order) != list(range(len(sentence))):
        raise place.error(f"is no order of the {len(sentence)} characters", where, _CURE)
    return "".join(sentence[i] for i in order)


def _labelled(one: Any, size: int, where: str, place: Place) -> Change:
    """An Insert or a Modify, whichever the tag says: it decides where key and tag disagree."""
    if not isinstance(one, Mapping):
        raise place.error(f"is {quoted(one)}, not an object", where, _CURE)
    found = _TAG.fullmatch(one["tag"]) if isinstance(one.get("tag"), str) else None
    if found is None:
        problem = f"is {quoted(one.get('tag'))}, not like INS_1, MOD_2 or MOD_2+DEL_1"
        raise place.error(problem, f"{where}.tag", _CURE)
    labels = one.get("label")
    labels = [labels] if isinstance(labels, str) else labels
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise place.error(f"is {quoted(labels)}, not a text or a list of texts", f"{where}.label", _CURE)
    for label in labels:
        sentence_of({f"{where}.label": label}, f"{where}.label", place, blank=True)
    inserted = found[1] == "INS"
    position = _position(one.get("pos"), -1 if inserted else 0, size, f"{where}.pos", place)
    if inserted:
        return Change(position + 1, position + 1, tuple(labels))
    end = position + int(found[2])
    if end > size or end == position:
        raise place.error(f"replaces characters {position} to {end} of {size}", f"{where}.tag", _CURE)
    return Change(position, end, tuple(labels))


def _position(value: Any, least: int, size: int, where: str, place: Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < size:
        problem = f"is {quoted(value)}, not a position from {least} to {size - 1}"
        raise place.error(problem, where, _CURE)
    return value
