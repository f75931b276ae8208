"""Turns and knowledge bases in the tokens of a generator and a retriever, ready for training and decoding.

Sections 2.3, 3 and 14 of MK-TOD's specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fusion_jax.data.batches import Example
from fusion_jax.dialogue.knowledge import Knowledge
from fusion_jax.dialogue.matching import match_counts, pseudo_positive, values_in
from fusion_jax.dialogue.serialise import beginning, newest, normalised, response_ids
from fusion_jax.dialogue.sets import CONTEXT_TOKENS, QUERY_TOKENS, Scale
from fusion_jax.dialogue.turns import Turn
from fusion_jax.display import brief
from fusion_jax.settings import bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lengths:
    """Tokens that are read and written; what is longer is cut (section 2.3)."""

    context: int = CONTEXT_TOKENS
    """Of a context, as the generator reads it: the last ones."""
    query: int = QUERY_TOKENS
    """Of a context, as the retriever reads it: the first one and the last ones."""
    entity: int = 100
    """Of an entity with its tags: the first ones. Published for SMD: 200."""
    response: int = 64
    """Of a response with its end token. Published for SMD: 128."""

    def __post_init__(self) -> None:
        bounded(self, "context", "query", "entity", "response", least=2)


@dataclass(frozen=True)
class Inputs:
    """A knowledge base and how its turns become tokens.

    generator, retriever: tokenizers. start: the decoder's first token.
    """

    knowledge: Knowledge
    generator: PreTrainedTokenizerBase
    retriever: PreTrainedTokenizerBase
    start: int
    scale: Scale = "large"
    lengths: Lengths = Lengths()
    keep_missing: bool = True

    def __repr__(self) -> str:
        return brief(self)

    @cached_property
    def queried(self) -> np.ndarray:
        """int32[N,R], every entity as the retriever reads it, padded with -1."""
        ids = self.retriever(self._texts)["input_ids"] if len(self.knowledge) else []
        return _filled([newest(one, self.lengths.query, keep_first=True) for one in ids])

    @cached_property
    def read(self) -> np.ndarray:
        """int32[N,L], every entity as the generator reads it, padded with -1 to what is kept of an entity."""
        ids = self.generator(self._texts, add_special_tokens=False)["input_ids"] if len(self.knowledge) else []
        return _filled([beginning(one, self.lengths.entity) for one in ids], self.lengths.entity)

    @property
    def _texts(self) -> list[str]:
        return self.knowledge.texts(keep_missing=self.keep_missing)

    @cached_property
    def names(self) -> list[str]:
        """The name of every entity as contexts are looked through for it, a space on both sides; empty for none."""
        return [f" {normalised(name)} " if name else "" for name in self.knowledge.names]

    def examples(self, turns: Sequence[Turn]) -> list[Example]:
        """Turns for the joint training and for decoding; see `train.mktod`. Their order is that of the turns."""
        lengths, end = self.lengths, int(self.generator.eos_token_id)
        contexts = self.generator([turn.context for turn in turns], add_special_tokens=False)["input_ids"]
        queries = self.retriever([turn.context for turn in turns])["input_ids"]
        responses = self.generator([turn.response for turn in turns], add_special_tokens=False)["input_ids"]
        out = []
        for number, (turn, context, query, said) in enumerate(zip(turns, contexts, queries, responses, strict=True)):
            row = (self.start, *response_ids(said, lengths.response, end))
            read = {"context": _one(newest(context, lengths.context), lengths.context), "query": self._query(query)}
            out.append(Example((row,), (1,), number, beside=read | self._candidates(turn)))
        return out

    def _query(self, ids: Sequence[int]) -> np.ndarray:
        return _one(newest(ids, self.lengths.query, keep_first=True), self.lengths.query)

    def _candidates(self, turn: Turn) -> dict[str, np.ndarray]:
        """The entities of a turn, and which of them its whole context names."""
        places, words = turn.candidates(self.knowledge, self.scale), f" {normalised(turn.context)} "
        named = [bool(self.names[place]) and self.names[place] in words for place in places]
        old = {"old": np.asarray(named or [False], bool)}
        return old if self.scale == "large" else old | {"own": np.asarray(places or [-1], np.int32)}

    def queries(self, turns: Sequence[Turn]) -> tuple[list[Example], list[int]]:
        """Turns for the training of the retriever alone, with the entity that is taken for right beside each; and the
        numbers of the turns that have one (section 3.3)."""
        ids = self.retriever([turn.context for turn in turns])["input_ids"]
        values, out, kept = values_in(self.knowledge.entities), list[Example](), list[int]()
        for number, (turn, query) in enumerate(zip(turns, ids, strict=True)):
            counts = match_counts(f"{turn.context} {turn.response}", values)
            places = turn.candidates(self.knowledge, self.scale)
            best = pseudo_positive(counts[list(places)])
            if best is None:
                continue
            beside = {"query": self._query(query), "positive": np.asarray([places[best]], np.int32)}
            out.append(Example(((0, 0),), (1,), len(kept), beside=beside))
            kept.append(number)
        return out, kept


def _one(row: Sequence[int], width: int) -> np.ndarray:
    """int32[width], a row padded with -1: of one width in all batches, so that distances are the same in all."""
    return _filled([row], width)[0]


def _filled(rows: Sequence[Sequence[int]], width: int = 1) -> np.ndarray:
    """int32[max(N, 1),L], rows padded with -1 to the longest one or to `width`; without rows, an empty one."""
    out = np.full((max(len(rows), 1), max([width, *map(len, rows)])), -1, np.int32)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out
