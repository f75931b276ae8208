"""What differs between the data sets of task-oriented dialogue (sections 2 and 11 of MK-TOD's specification)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DataSet = Literal["multiwoz", "smd", "camrest"]
Scale = Literal["condensed", "large"]
"""Whether a dialogue has the few entities of its own, or all those of the data set."""

MISSING = "dontknow"
"""The value of an attribute that an entity does not have."""
DATABASE, SEPARATOR = "<database>", "<sep_attributes>"
USER, SYSTEM, API, SYSTEM_API = "<user>", "<sys>", "<api>", "<sys-api>"


@dataclass(frozen=True)
class DialogueSet:
    """One data set.

    speakers: marks that a part of a context begins with. name_keys: attributes that name an entity, of which the first
    that it has counts. entity_tokens, response_tokens: the published lengths.
    """

    speakers: tuple[str, ...]
    name_keys: tuple[str, ...]
    entity_tokens: int
    response_tokens: int

    @property
    def marks(self) -> tuple[str, ...]:
        """The tokens that are added to the tokenizers of the retriever and the generator."""
        return (*self.speakers, DATABASE, SEPARATOR)


SETS: Mapping[DataSet, DialogueSet] = {
    "multiwoz": DialogueSet((USER, SYSTEM, API, SYSTEM_API), ("name",), 100, 64),
    "smd": DialogueSet((USER, SYSTEM), ("poi", "event", "location"), 200, 128),
    "camrest": DialogueSet((USER, SYSTEM), ("name",), 100, 64),
}
CONTEXT_TOKENS, QUERY_TOKENS = 200, 128
"""Tokens of a context that the generator and the retriever read."""
