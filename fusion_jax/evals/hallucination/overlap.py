"""ROUGE-1, -2 and -L of answers and references, by the package rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from fusion_jax.errors import InputError

KINDS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
PACKAGE = "rouge_score"


def check_rouge() -> None:
    """Refuse to go on without the package.

    Raises:
      InputError: says how it is installed.
    """
    if find_spec(PACKAGE) is None:
        raise InputError("needs the package rouge-score", field="--rouge", cure="pip install rouge-score==0.1.2")


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The mean F-measure of each, times 100, without stemming; empty where there is no answer.

    Raises:
      InputError: the package is not installed; more answers than references, or fewer.
    """
    check_rouge()
    if len(answers) != len(references):
        raise InputError(f"{len(answers)} answers to {len(references)} references", cure="Give one each")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(KINDS), use_stemmer=False)
    found = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: 100 * float(np.mean([one[kind].fmeasure for one in found])) for kind, name in KINDS.items() if found}
