"""Which entities go with a turn: those whose values it holds, the best and the worst by score.

Sections 3.2 and 3.3 of MK-TOD's specification (arXiv 2310.08877).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusion_jax.dialogue.serialise import Entity, normalised
from fusion_jax.dialogue.sets import MISSING
from fusion_jax.display import brief
from fusion_jax.errors import InputError


@dataclass(frozen=True)
class Values:
    """The different values of E entities, ready to be looked up in texts.

    words: each as `normalised` gives it, a space on both sides. held: int32[E,len(words)], how many attributes of an
    entity have the value.
    """

    words: tuple[str, ...]
    held: np.ndarray

    def __repr__(self) -> str:
        return brief(self)


def values_in(entities: Sequence[Entity]) -> Values:
    """The values of entities; missing ones and those without a letter, digit or mark are left out."""
    found = [[normalised(value) for value in entity.values()] for entity in entities]
    places = {words: None for row in found for words in row if words and words != MISSING}
    numbers = {words: number for number, words in enumerate(places)}
    held = np.zeros((len(entities), len(numbers)), np.int32)
    for row, words in enumerate(found):
        for one in words:
            if one in numbers:
                held[row, numbers[one]] += 1
    return Values(tuple(f" {words} " for words in numbers), held)


def match_counts(text: str, values: Values) -> np.ndarray:
    """int32[E], how many attributes of each entity have a value that occurs in the text."""
    within = f" {normalised(text)} "
    there = np.fromiter((words in within for words in values.words), bool, len(values.words))
    return values.held @ there.astype(np.int32)


def pseudo_positive(counts: np.ndarray) -> int | None:
    """The entity with the most matches, the first of equal ones; None without a match. Counts are those of context and
    response together: what the retriever takes for right before it is trained jointly.

    >>> pseudo_positive(np.asarray([1, 3, 3])), pseudo_positive(np.asarray([0, 0]))
    (1, None)
    """
    return int(np.argmax(counts)) if len(counts) and counts.max() > 0 else None


class Selected(NamedTuple):
    """Places among the scores: the best, by rank, and the worst of the others, if there are any."""

    best: tuple[int, ...]
    negative: int | None


def select(scores: Sequence[float] | np.ndarray, k: int) -> Selected:
    """The k highest scores in descending order, and the lowest of the others; equal ones come by their place.

    >>> select([0.1, 0.9, 0.3, 0.5], 2)
    Selected(best=(1, 3), negative=0)

    Raises:
      InputError: k is less than 1, or a score is not a number.
    """
    found = np.asarray(scores, np.float64)
    if k < 1:
        raise InputError(f"{k} is out of range", field="k", cure="Give 1 or more")
    if np.isnan(found).any():
        problem = f"score {int(np.isnan(found).argmax())} is not a number"
        raise InputError(problem, field="scores", cure="Check the retriever's weights")
    order = np.argsort(-found, kind="stable")
    rest = np.sort(order[k:])
    worst = int(rest[np.argmin(found[rest])]) if len(rest) else None
    return Selected(tuple(order[:k].tolist()), worst)
