"""Turns of dialogues from files in the form of MAKER (arXiv 2305.10149), for MultiWOZ 2.1, SMD and CamRest.

A file is a list of objects, or JSON lines. Each is one response of the system with all that was said before:

  did             whole number, the dialogue
  context_used    text: "<user> ..." and "<sys> ..." in turn, for MultiWOZ also "<api>" and "<sys-api>"
  output_used     text: "<sys> ...", the response, its tokens separated by spaces
  gold_entities   list of texts: values in the response, underscores for spaces
  kb              list of objects: entities of this turn; may be left out
  gt_db_idx       list of whole numbers: the dialogue's own entities in the knowledge base (counted from 0); may be left
                  out where every dialogue has all of them
  type            text: the domain; may be left out

Other fields are not read. All text is read in lower case. Section 2.2 of MK-TOD's specification.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fusion_jax.data.loaders import load_records
from fusion_jax.data.messages import Place, check_text, text
from fusion_jax.data.records import OnBad, count_malformed
from fusion_jax.dialogue.knowledge import Knowledge, entity_of, plain, squeezed, values_of
from fusion_jax.dialogue.serialise import Entity
from fusion_jax.dialogue.sets import SETS, SYSTEM, SYSTEM_API, DataSet, Scale
from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record, numbered

UNKNOWN_VALUE = "gold value in no entity of the knowledge base"
CUT_DIALOGUE = "dialogue that goes on behind another one"


@dataclass(frozen=True)
class Turn:
    """One response of the system and what it answers.

    gold: values in the response, with spaces. kb: entities of this turn. own: the dialogue's own entities, by their
    place in the knowledge base; None where the file does not tell.
    """

    dialogue: int
    domain: str
    context: str
    response: str
    gold: tuple[str, ...] = ()
    kb: tuple[Entity, ...] = ()
    own: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def calls_api(self) -> bool:
        """Whether the response is a call that no user sees; nothing of it is scored."""
        return SYSTEM_API in self.response

    def candidates(self, knowledge: Knowledge, scale: Scale) -> tuple[int, ...]:
        """The entities that may be retrieved, by their place in the knowledge base.

        Raises:
          InputError: the dialogue's own are asked for and not known.
        """
        if scale == "large":
            return tuple(range(len(knowledge)))
        if self.own is None:
            problem, cure = "is missing", "Add the places of its entities, or retrieve from the large knowledge base"
            raise InputError(problem, record=f"dialogue {self.dialogue}", field="gt_db_idx", cure=cure)
        return self.own


@dataclass(frozen=True)
class ReadTurns:
    """The turns of a file in its order. dropped: malformed records by reason, with `on_bad` "skip"; noted: what is
    strange and was kept, by kind."""

    turns: tuple[Turn, ...]
    dropped: Counter[str]
    noted: Counter[str]


def read_turns(
    path: str | os.PathLike[str], knowledge: Knowledge, *, scale: Scale = "condensed", on_bad: OnBad = "error"
) -> ReadTurns:
    """The turns of a file over a knowledge base; see the module's text.

    Args:
      scale: "condensed" needs `gt_db_idx` in every record.
      on_bad: "error" stops at a malformed record; "skip" counts it as dropped.

    Raises:
      InputError: no such file, a malformed record, or no turn at all; names file, record and field.
    """
    return turns_of(load_records(path), knowledge, scale=scale, on_bad=on_bad, file=os.fspath(path))


def turns_of(
    records: Iterable[Record], knowledge: Knowledge, *, scale: Scale = "condensed", on_bad: OnBad = "error",
    file: str | None = None,
) -> ReadTurns:  # fmt: skip
    """The turns of records; see `read_turns`."""
    turns, dropped = list[Turn](), Counter[str]()
    for number, record in numbered(records):
        try:
            turns.append(parse_turn(record, knowledge, Place(file, number), scale))
        except InputError as error:
            if on_bad == "error":
                raise
            count_malformed(error, dropped)
    if not turns:
        why = ", ".join(f"{reason}: {n}" for reason, n in dropped.items()) or "the file is empty"
        raise InputError(f"no usable turn is left ({why})", file=file, cure="Give turns that can be used")
    return ReadTurns(tuple(turns), dropped, _noted(turns, knowledge))


def parse_turn(record: Record, knowledge: Knowledge, place: Place, scale: Scale) -> Turn:
    """One record as a turn.

    Raises:
      InputError: names the first field that is wrong.
    """
    check_text(record, place)
    response = _said(record, "output_used", (SYSTEM, SYSTEM_API), knowledge.dataset, place)
    context = _said(record, "context_used", SETS[knowledge.dataset].speakers, knowledge.dataset, place)
    kb = _items(record, "kb", place) if record.get("kb") is not None else []
    for number, entity in enumerate(kb):
        if not isinstance(entity, dict):
            raise place.error(f"is {quoted(entity)}, not an object", f"kb[{number}]", "Write an entity")
    gold = [
        _value(value, f"gold_entities[{i}]", place) for i, value in enumerate(_items(record, "gold_entities", place))
    ]
    return Turn(
        dialogue=_whole(record.get("did"), "did", place),
        domain=text({"type": record.get("type") or ""}, "type", place, blank=True).strip().lower(),
        context=context,
        response=response,
        gold=tuple(gold),
        kb=tuple(entity_of(entity, place, f"kb[{number}].") for number, entity in enumerate(kb)),
        own=_own(record, knowledge, place, scale),
    )


def _said(record: Record, field: str, marks: Iterable[str], dataset: DataSet, place: Place) -> str:
    """A text with single spaces that begins with one of the marks that the data set has."""
    known = [mark for mark in marks if mark in SETS[dataset].speakers]
    said = " ".join(text(record, field, place).lower().split())
    first = said.partition(" ")[0]
    if first not in known:
        problem = f"begins with {quoted(first)}, not with {' or '.join(known)}"
        raise place.error(problem, field, f"Write the speaker first, or check that the data set is {dataset}")
    if said == first:
        raise place.error(f"says nothing behind {first}", field, "Fill it in or remove the record")
    return said


def _own(record: Record, knowledge: Knowledge, place: Place, scale: Scale) -> tuple[int, ...] | None:
    field = "gt_db_idx"
    if record.get(field) is None:
        if scale == "large":
            return None
        cure = "Add the places of the dialogue's entities, or use the large knowledge base for all dialogues"
        raise place.error("is missing", field, cure)
    own = tuple(_whole(value, f"{field}[{i}]", place) for i, value in enumerate(_items(record, field, place)))
    for number, index in enumerate(own):
        if index >= len(knowledge):
            problem = f"is {index}, and the knowledge base has {len(knowledge)} entities, counted from 0"
            raise place.error(problem, f"{field}[{number}]", "Give the knowledge base that the file was made with")
    return own


def _items(record: Record, field: str, place: Place) -> list[Any]:
    value = record.get(field)
    if not isinstance(value, list):
        problem = "is missing" if value is None else f"is {quoted(value)}, not a list"
        raise place.error(problem, field, f'Write a list; "{field}": [] where there is none')
    return value


def _value(value: Any, field: str, place: Place) -> str:
    if not isinstance(value, str) or not plain(value):
        raise place.error(f"is {quoted(value)}, not a text", field, "Write the value as the response has it")
    return plain(value)


def _whole(value: Any, field: str, place: Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        problem = "is missing" if value is None else f"is {quoted(value)}, not a whole number from 0"
        raise place.error(problem, field, "Write a JSON number")
    return value


def _noted(turns: list[Turn], knowledge: Knowledge) -> Counter[str]:
    """What is strange in well-formed turns."""
    noted, known = Counter[str](), values_of(knowledge.entities)
    ended, last = set[int](), None
    for turn in turns:
        beside = values_of(turn.kb)
        noted[UNKNOWN_VALUE] += sum(squeezed(value) not in known | beside for value in turn.gold)
        if last is not None and turn.dialogue != last:
            ended.add(last)
            noted[CUT_DIALOGUE] += turn.dialogue in ended
        last = turn.dialogue
    return +noted
