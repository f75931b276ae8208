"""Entity F1 and BLEU of generated responses, from sums over turns, so that dialogues can be resampled.

Sections 10.1 and 10.2 of MK-TOD's specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusion_jax.arguments import texts
from fusion_jax.dialogue.sets import DataSet
from fusion_jax.dialogue.turns import Turn
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.evals.dialogue.clean import prediction_text, reference_text
from fusion_jax.evals.dialogue.entities import entities_in

ORDERS = 4


class F1(NamedTuple):
    """In per cent; 0 where it is undefined."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scored:
    """What each of T scored turns adds to the scores; calls of an API are not among them.

    turns, dialogues: int[T], the place of the turn in the file and its dialogue. entities: int64[T,3], found, spurious
    and missed ones. ngrams: int64[T,10], matches of the four orders, n-grams of the prediction, and the lengths of
    prediction and reference.
    """

    turns: np.ndarray
    dialogues: np.ndarray
    entities: np.ndarray
    ngrams: np.ndarray

    def __repr__(self) -> str:
        return brief(self)

    @property
    def f1(self) -> F1:
        """Entity F1 over all turns together (micro)."""
        return f1_of(self.entities.sum(0))

    @property
    def bleu(self) -> float:
        """Corpus BLEU-4 in per cent."""
        return bleu_of(self.ngrams.sum(0))


def score(predictions: Sequence[str], turns: Sequence[Turn], entities: Sequence[str], dataset: DataSet) -> Scored:
    """The sums for one prediction a turn.

    Args:
      predictions: as generated; an empty one counts as an empty line with no entity.
      entities: of `entities.entity_list`.

    Raises:
      InputError: not as many predictions as turns, or no turn that is scored.
    """
    predictions = texts(predictions, "predictions")
    if len(predictions) != len(turns):
        problem = f"there are {len(predictions)} for {len(turns)} turns"
        raise InputError(problem, field="predictions", cure="Give one for each turn, in the order of the file")
    kept = [number for number, turn in enumerate(turns) if not turn.calls_api]
    if not kept:
        raise InputError("none is left to be scored", field="turns", cure="Give turns whose response a user sees")
    hypotheses = [prediction_text(predictions[number]) for number in kept]
    references = [reference_text(turns[number].response) for number in kept]
    counts = [
        entity_counts(entities_in(one, entities, dataset), entities_in(other, entities, dataset))
        for one, other in zip(hypotheses, references)
    ]
    return Scored(
        np.asarray(kept), np.asarray([turns[number].dialogue for number in kept]), np.asarray(counts, np.int64),
        ngram_counts(hypotheses, references),
    )  # fmt: skip


def entity_counts(predicted: Sequence[str], reference: Sequence[str]) -> tuple[int, int, int]:
    """Entities of the reference that are found, spurious ones, entities that are missed; nothing without a reference.

    >>> entity_counts(["north", "cheap"], ["cheap", "curry house"]), entity_counts(["north"], [])
    ((1, 1, 1), (0, 0, 0))
    """
    if not reference:
        return 0, 0, 0
    found = sum(entity in predicted for entity in reference)
    return found, len(set(predicted) - set(reference)), len(reference) - found


def f1_of(counts: np.ndarray) -> F1:
    """Precision, recall and F1 of (found, spurious, missed)."""
    found, spurious, missed = (float(count) for count in counts)
    precision = found / (found + spurious) if found + spurious else 0.0
    recall = found / (found + missed) if found + missed else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return F1(100 * precision, 100 * recall, 100 * f1)


def ngram_counts(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """int64[T,10], what each pair of texts adds to BLEU: words are separated by spaces, and case is folded."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize="none", lowercase=True, smooth_method="none", force=True)
    found = [bleu.corpus_score([one], [[other]]) for one, other in zip(hypotheses, references)]
    rows = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found]
    return np.asarray(rows, np.int64).reshape(len(rows), 2 * ORDERS + 2)


def bleu_of(counts: np.ndarray) -> float:
    """Corpus BLEU-4 of summed counts, without smoothing (sacrebleu; as Moses' multi-bleu with lower-casing)."""
    from sacrebleu.metrics import BLEU

    *ngrams, length, reference_length = (int(count) for count in counts)
    found = BLEU.compute_bleu(
        correct=ngrams[:ORDERS], total=ngrams[ORDERS:], sys_len=length, ref_len=reference_length, smooth_method="none"
    )
    return float(found.score)
