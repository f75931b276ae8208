"""Knowledge bases: files of entities, each with the same attributes in the same order.

A file is a list of objects, or JSON lines: {"name": "curry house", "area": "north", ..., "phone": "01223 111"}. What an
entity does not have is "dontknow". Sections 2.2 and 14 of MK-TOD's specification.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.data.loaders import load_records
from fusion_jax.data.messages import Place, check_text
from fusion_jax.dialogue.serialise import Entity, entity_text
from fusion_jax.dialogue.sets import MISSING, SETS, DataSet
from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.jsonl import Record, numbered


@dataclass(frozen=True)
class Knowledge:
    """The entities of a data set; it may have none.

    names: of each entity; None where it has none.
    """

    dataset: DataSet
    entities: tuple[Entity, ...]
    names: tuple[str | None, ...]
    file: str | None = None

    def __len__(self) -> int:
        return len(self.entities)

    def __repr__(self) -> str:
        return brief(self)

    def texts(self, *, keep_missing: bool = True) -> list[str]:
        """Every entity as the retriever and the generator read it, without tags."""
        return [entity_text(entity, keep_missing=keep_missing) for entity in self.entities]


def read_knowledge(path: str | os.PathLike[str], dataset: DataSet) -> Knowledge:
    """The knowledge base of a file; everything is in lower case.

    Raises:
      InputError: no such file, an attribute that is no text, or no entity with the attribute that names it.
    """
    return knowledge_of(load_records(path), dataset, file=os.fspath(path))


def knowledge_of(records: Iterable[Record], dataset: DataSet, *, file: str | None = None) -> Knowledge:
    """The knowledge base of records; see `read_knowledge`.

    Attributes come in the order in which the file has them first; what an entity lacks, it does not get.
    """
    found = [entity_of(record, Place(file, number)) for number, record in numbered(records)]
    order = list(dict.fromkeys(key for entity in found for key in entity))
    entities = tuple({key: entity[key] for key in order if key in entity} for entity in found)
    keys = SETS[dataset].name_keys
    if entities and not any(key in order for key in keys):
        had = ", ".join(order[:12]) or "nothing"
        problem = f"no entity has the attribute {' or '.join(repr(key) for key in keys)} (they have {had})"
        raise InputError(problem, file=file, field=keys[0], cure=f"Give the knowledge base of {dataset}, or rename it")
    return Knowledge(dataset, entities, tuple(name_of(entity, dataset) for entity in entities), file)


def entity_of(record: Mapping[str, Any], place: Place, within: str = "") -> dict[str, str]:
    """An entity of a record: keys and values in lower case, spaces for the underscores of values.

    Args:
      within: what stands before the keys in messages, "kb[2].".

    Raises:
      InputError: a value is no text and no whole number; two keys differ in case only.
    """
    check_text(record, place)
    entity: dict[str, str] = {}
    for key, value in record.items():
        name = key.strip().lower()
        if not name or name in entity:
            problem = "is a blank name" if not name else "stands twice (upper and lower case are one)"
            raise place.error(problem, within + key, "Give each attribute a name of its own")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            problem = f"is {quoted(value)}, not text"
            raise place.error(problem, within + key, f'Write a JSON string, "{MISSING}" where there is no value')
        entity[name] = plain(value or "") or MISSING
    return entity


def plain(value: str) -> str:
    """A value in lower case, with single spaces for underscores and white space.

    >>> plain("Curry_House ")
    'curry house'
    """
    return " ".join(value.lower().replace("_", " ").split())


def name_of(entity: Entity, dataset: DataSet) -> str | None:
    """The name of an entity, or None: the first of the data set's name attributes that has a value."""
    values = (entity.get(key, MISSING) for key in SETS[dataset].name_keys)
    return next((value for value in values if value != MISSING), None)


def values_of(entities: Sequence[Entity]) -> set[str]:
    """Every value that is there, without spaces, as the recall compares them."""
    return {squeezed(value) for entity in entities for value in entity.values() if value != MISSING}


def squeezed(value: str) -> str:
    """A value without spaces and underscores."""
    return "".join(plain(value).split())
