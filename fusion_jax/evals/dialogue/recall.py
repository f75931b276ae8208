"""Recall@K: whether the retrieved entities hold what the response says, where it names an entity for the first time.

Section 10.3 of MK-TOD's specification, after MAKER (arXiv 2305.10149), with values that a turn brings kept to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_jax.dialogue.knowledge import Knowledge, name_of, squeezed, values_of
from fusion_jax.dialogue.sets import DataSet
from fusion_jax.dialogue.turns import Turn
from fusion_jax.display import brief
from fusion_jax.errors import InputError

BROUGHT = ("ref", "choice")
"""Attributes of a turn's own entities that no knowledge base has (MultiWOZ)."""


@dataclass(frozen=True)
class Recall:
    """turns, dialogues: int[S], the scored turns by their place, and their dialogues. hits: bool[S]."""

    turns: np.ndarray
    dialogues: np.ndarray
    hits: np.ndarray

    def __repr__(self) -> str:
        return brief(self)

    @property
    def share(self) -> float | None:
        """In per cent; None where no turn is scored."""
        return 100 * float(self.hits.mean()) if len(self.hits) else None

    @property
    def counts(self) -> np.ndarray:
        """int64[S,2], hits and turns, as `bootstrap.compare` adds them up."""
        return np.stack([self.hits, np.ones_like(self.hits)], 1).astype(np.int64)


def naming_turns(turns: Sequence[Turn], dataset: DataSet) -> list[int]:
    """The places of turns whose response names another entity than the last one that was named in the dialogue.

    All turns of a file, in its order, are looked at; calls of an API name entities, too, and are not among the result.
    """
    out, last = list[int](), None
    for number, turn in enumerate(turns):
        names = {squeezed(name_of(entity, dataset) or "") for entity in turn.kb} - {""}
        named = next((value for value in map(squeezed, turn.gold) if value in names), None)
        if named is not None and (named, turn.dialogue) != last:
            last = named, turn.dialogue
            if not turn.calls_api:
                out.append(number)
    return out


def recall_at(turns: Sequence[Turn], retrieved: Sequence[Sequence[int]], knowledge: Knowledge, k: int) -> Recall:
    """Which of the turns that name an entity have all values of their response among those of the first k entities.

    Args:
      turns: all of a file. retrieved: for each of them entities by rank, as places in the knowledge base.

    Raises:
      InputError: not as many rows as turns, or k is less than 1.
    """
    if len(retrieved) != len(turns):
        problem = f"there are {len(retrieved)} rows for {len(turns)} turns"
        raise InputError(problem, field="retrieved", cure="Give the entities of every turn, in the order of the file")
    if k < 1:
        raise InputError(f"{k} is out of range", field="k", cure="Give 1 or more")
    numbers, hits = naming_turns(turns, knowledge.dataset), list[bool]()
    for number in numbers:
        turn = turns[number]
        there = values_of([knowledge.entities[index] for index in retrieved[number][:k]])
        if knowledge.dataset == "multiwoz":
            there |= {squeezed(entity[key]) for entity in turn.kb for key in BROUGHT if key in entity}
        hits.append({squeezed(value) for value in turn.gold} <= there)
    dialogues = [turns[number].dialogue for number in numbers]
    return Recall(np.asarray(numbers, int), np.asarray(dialogues, int), np.asarray(hits, bool))
