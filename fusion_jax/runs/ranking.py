"""Retrievers that a joint training is compared with, on the test turns: BM25, frequency, the oracle, and the retriever
as it was before. Section 13 of MK-TOD's specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from fusion_jax.dialogue.baselines import bm25, bm25_scores, frequency_scores, oracle_scores
from fusion_jax.dialogue.matching import select, values_in
from fusion_jax.dialogue.systems import System
from fusion_jax.dialogue.turns import Turn
from fusion_jax.runs.aligning import AligningSettings, Board, inputs_of
from fusion_jax.runs.answering import answering
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.dialogue_data import Dialogues
from fusion_jax.train.settings import compute_for

PRETRAINED = "pre-trained"
BASELINES = ("BM25", "frequency", "oracle")


def rank_tests(s: AligningSettings, desk: Desk, data: Dialogues, system: System) -> Board:
    """A board with what these retrievers find."""
    board, knowledge = Board(data, s.dataset, s.loss.top_k), data.knowledge
    index, values = bm25(knowledge.texts(keep_missing=s.keep_missing)), values_in(knowledge.entities)

    def oracle(turn: Turn) -> np.ndarray:
        return oracle_scores(knowledge.entities, turn.gold, s.dataset)

    every: dict[str, Callable[[Turn], np.ndarray]] = {
        "BM25": lambda turn: bm25_scores(index, turn.context),
        "frequency": lambda turn: frequency_scores(values, turn.context),
        "oracle": oracle,
    }
    for name, scores in every.items():
        board.ranked[name] = [best(scores(turn), turn.candidates(knowledge, s.loss.scale), s) for turn in data.test]
    records = desk.records("retriever/ranked.jsonl", lambda: _ranked(s, data, system), made_from=["retriever/model"])
    board.ranked[PRETRAINED] = [tuple(record["entities"]) for record in records]
    return board


def best(scores: np.ndarray, places: Sequence[int], s: AligningSettings) -> tuple[int, ...]:
    """The entities with the highest scores among those of a turn."""
    if not len(places):
        return ()
    return tuple(places[i] for i in select(scores[list(places)], s.loss.top_k).best)


def _ranked(s: AligningSettings, data: Dialogues, system: System) -> list[dict[str, object]]:
    joined, loss = system.joined, dataclasses.replace(s.loss, variant="ctr")
    inputs = inputs_of(s, data.knowledge, system)
    reader = answering(inputs, loss, joined.config, compute_for(s.joint, option="--joint"), s.answer_batch)
    found = reader.retrieved(joined.params, data.test)
    return [{"entities": one.entities, "scores": one.scores} for one in found]
