"""Which entities a response names: the lists of the data sets, and their rules of finding them in a text.

Section 10.1 of MK-TOD's specification, after the scorers of Q-TOD (arXiv 2210.07564) and MAKER (arXiv 2305.10149).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusion_jax.dialogue.sets import DataSet
from fusion_jax.errors import InputError, quoted
from fusion_jax.json_files import read_json

CHOICE = "choice-"
POI = ("address", "poi", "type")
SUFFIXES = {"distance": " miles", "temperature": "f"}
ALSO_SMD = (
    "yoga", "tennis", "swimming", "football", " lab ", "doctor", "optometrist", "dentist", "1st", "2nd", "3rd",
    *(f"{day}th" for day in range(4, 21)), "jill", "jack", " hr ",
)  # fmt: skip
NOT_MANY = re.compile("many other types|many food types|many cuisines|how many")
ALL = re.compile("all of the|all expensive|all moderate|all cheap")
FREE = re.compile("free (?:parking|internet|wifi)")
TOWN_INFO = "cambridge towninfo centre"
_HOUR = re.compile(r"(?<=[0-9]) ([ap]m)")
_RANGE = re.compile(r"([2-9]0|100)-(?=(?:[2-9]0|100)f)")


def read_entities(path: str | os.PathLike[str], dataset: DataSet) -> tuple[str, ...]:
    """The entities of a data set's file {slot: [value, ...]}; see `entity_list`."""
    return entity_list(read_json(path), dataset, file=os.fspath(path))


def entity_list(values: Mapping[str, Any], dataset: DataSet, *, file: str | None = None) -> tuple[str, ...]:
    """All values of all slots in lower case, each once, the longest first, those of one length in alphabetical order.

    MultiWOZ: a value of the slot `choice` becomes "choice-value". SMD: an object of the slot `poi` gives its address,
    poi and type; distances and temperatures get their unit; `ALSO_SMD` is added, and "hr" removed.

    Raises:
      InputError: a slot is no list, or a value no text; names the slot.
    """
    found = {value.lower() for value in _values(values, dataset, file)}
    if dataset == "smd":
        found = (found | set(ALSO_SMD)) - {"hr"}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def _values(values: Mapping[str, Any], dataset: DataSet, file: str | None) -> Iterator[str]:
    cure = "Write {slot: [text, ...]}, as the entities file of the data set has it"
    for slot, listed in values.items():
        if not isinstance(listed, list):
            raise InputError(f"is {quoted(listed)}, not a list of values", file=file, field=slot, cure=cure)
        for number, value in enumerate(listed):
            parts: list[Any] = [value]
            if dataset == "smd" and slot == "poi" and isinstance(value, Mapping):
                parts = [value.get(part) for part in POI]
            for part in parts:
                text = str(part) if isinstance(part, int) and not isinstance(part, bool) else part
                if not isinstance(text, str) or not text.strip():
                    problem = f"is {quoted(value)}, not a text"
                    raise InputError(problem, file=file, field=f"{slot}[{number}]", cure=cure)
                if dataset == "multiwoz" and slot == "choice":
                    text = CHOICE + text
                yield text + (SUFFIXES.get(slot, "") if dataset == "smd" else "")


def entities_in(text: str, entities: Sequence[str], dataset: DataSet) -> list[str]:
    """The entities that a text names, the longest first.

    Args:
      text: as `clean.prediction_text` or `clean.reference_text` gives it.
      entities: of `entity_list`.
    """
    within = f" {text} ".lower()
    if dataset == "multiwoz":
        return _in_multiwoz(within, entities)
    if dataset == "smd":
        within = joined(within)
    found = list[str]()
    for entity in entities:
        if entity in within and not any(entity in longer for longer in found):
            found.append(entity)
    return found


def joined(text: str) -> str:
    """A text of SMD with "7 pm" written as "7pm" and "20-30f" as "20f-30f".

    >>> joined(" 7 pm and 20-30f ")
    ' 7pm and 20f-30f '
    """
    return _RANGE.sub(r"\1f-", _HOUR.sub(r"\1", text))


def _in_multiwoz(text: str, entities: Sequence[str]) -> list[str]:
    """What is found is blanked, so that nothing is found inside it."""
    found = list[str]()
    for entity in entities:
        value = entity.removeprefix(CHOICE)
        if _named(value, text) if value == entity else _chosen(value, text):
            found.append(value)
            text = text.replace(value, " ")
    return found


def _named(value: str, text: str) -> bool:
    if value == "centre":
        return value in text.replace(TOWN_INFO, " ")
    return bool(FREE.search(text)) if value == "free" else value in text


def _chosen(value: str, text: str) -> bool:
    """Whether a text says how many there are to choose from."""
    if value == "many":
        return value in NOT_MANY.sub(" ", text)
    if value == "all":
        return bool(ALL.search(text))
    if value == "to":
        return False
    return bool(re.search(f"(?:there are|there is|found|have about|have)(?: only)? {re.escape(value)}", text))
