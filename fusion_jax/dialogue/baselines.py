"""Retrievers that learn nothing: BM25, the frequency of values in the context, an oracle that knows the response.

Section 13 of MK-TOD's specification. Each gives float64[E] scores of a turn; `matching.select` ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_jax.dialogue.knowledge import name_of, squeezed
from fusion_jax.dialogue.matching import Values, match_counts
from fusion_jax.dialogue.serialise import Entity, normalised
from fusion_jax.dialogue.sets import DATABASE, SEPARATOR, SETS, DataSet
from fusion_jax.display import brief

_MARKS = {mark: "" for one in SETS.values() for mark in one.marks} | {DATABASE: "", SEPARATOR: ""}


@dataclass(frozen=True)
class Bm25:
    """An index of E texts. words: word -> column; weights: float64[E,len(words)]."""

    words: dict[str, int]
    weights: np.ndarray

    def __repr__(self) -> str:
        return brief(self)


def bm25(texts: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> Bm25:
    """The index of serialised entities: the weight of word w in text d of length |d| is

      ln(1 + (E - n_w + 0.5) / (n_w + 0.5)) f / (f + k1 (1 - b + b |d| / mean length)),

    f its count in d and n_w the number of texts with it (Robertson's weights as Lucene computes them, never negative).
    """
    counts = [Counter(_words(text)) for text in texts]
    words = {word: column for column, word in enumerate(dict.fromkeys(w for count in counts for w in count))}
    found = np.zeros((len(texts), len(words)))
    for row, count in enumerate(counts):
        for word, times in count.items():
            found[row, words[word]] = times
    if not found.size:
        return Bm25(words, found)
    lengths, with_word = found.sum(1, keepdims=True), (found > 0).sum(0)
    rarity = np.log1p((len(texts) - with_word + 0.5) / (with_word + 0.5))
    return Bm25(words, rarity * found / (found + k1 * (1 - b + b * lengths / lengths.mean())))


def bm25_scores(index: Bm25, context: str) -> np.ndarray:
    """The sum of each text's weights over the words of the context, a word as often as it occurs."""
    asked = np.zeros(len(index.words))
    for word, times in Counter(_words(context)).items():
        if word in index.words:
            asked[index.words[word]] = times
    return index.weights @ asked


def _words(text: str) -> list[str]:
    """The words of a text without marks of speakers and attributes."""
    return normalised(" ".join(_MARKS.get(part, part) for part in text.lower().split())).split()


def frequency_scores(values: Values, context: str) -> np.ndarray:
    """How many attributes of each entity occur in the context."""
    return match_counts(context, values).astype(np.float64)


def oracle_scores(entities: Sequence[Entity], gold: Sequence[str], dataset: DataSet) -> np.ndarray:
    """Entities that hold the response's values first: the one that is named and, in turn, the one with the most values
    that those before it lack; the others score 0.

    Args:
      gold: values in the response.
    """
    left = {squeezed(value) for value in gold}
    held = [left & {squeezed(value) for value in entity.values()} for entity in entities]
    named = [squeezed(name_of(entity, dataset) or "") in left for entity in entities]
    scores = np.zeros(len(entities))
    for rank in range(len(entities)):
        gains = [len(values & left) for values in held]
        best = max(range(len(gains)), key=lambda i: (gains[i] > 0 and named[i], gains[i], -i))
        if not gains[best]:
            break
        scores[best] = len(entities) - rank
        left = left - held[best]
    return scores
