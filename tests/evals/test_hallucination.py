"""Rates over all and over answered questions by hand, refusals in other words, and ROUGE."""

from __future__ import annotations

import math

import pytest

from fusion_jax.errors import InputError
from fusion_jax.evals.hallucination import overlap
from fusion_jax.evals.hallucination.accounting import CLASSES, Judged, account
from fusion_jax.evals.hallucination.refusals import compat_refused, refusal
from fusion_jax.kca.calibrate import REFUSAL

FREE, KNOWN, UNKNOWN = CLASSES


def test_the_four_figures():
    """Ten questions: four refused, one without a verdict, two of the other five hallucinated."""
    labels = [FREE, FREE, KNOWN, KNOWN, KNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, ""]
    refused = [False, False, False, True, False, True, True, True, False, False]
    wrong = [False, True, False, None, None, None, None, None, True, False]
    own = [Judged(str(i), *one) for i, one in enumerate(zip(labels, refused, wrong))]
    verdicts = [True, True, False, True, False, True, True, True, None, False]
    standard = [Judged(str(i), label, False, one) for i, (label, one) in enumerate(zip(labels, verdicts))]
    found = account(own, standard)
    assert (found.answered.count, found.answered.of) == (2, 5) and (found.of_all.count, found.of_all.of) == (2, 9)
    assert (found.refused.count, found.refused.of, found.unread) == (4, 10, 1)
    assert {label: (rate.count, rate.of) for label, rate in found.of_class.items()} == {
        FREE: (0, 2),
        KNOWN: (1, 3),
        UNKNOWN: (3, 4),
    }
    assert (found.other_on_answered.count, found.other_on_answered.of) == (2, 4)  # of the five it has a verdict on four
    assert found.row("x")["refused"] == "40.0 [16.8, 68.7] (10)"


def test_a_model_that_refuses_everything_and_one_that_is_not_judged():
    nothing = account([Judged("a", "", True, None)])
    assert (
        math.isnan(nothing.answered.share) and nothing.of_all.share == 0 and nothing.row("x")["of the answered"] == ""
    )
    unjudged = account([Judged("a", "", False, None), Judged("b", "", True, None)])
    assert unjudged.unread == 1 and math.isnan(unjudged.of_all.share) and unjudged.refused.share == 0.5


def test_questions_have_to_be_the_same():
    with pytest.raises(InputError, match="stands twice"):
        account([Judged("a", "", True, None)] * 2)
    with pytest.raises(InputError, match="different questions"):
        account([Judged("a", "", True, None)], [Judged("b", "", True, None)])


@pytest.mark.parametrize(
    "answer, kind",
    [
        (REFUSAL, "refused"), (REFUSAL.upper().replace(",", ""), "refused"), (f" {REFUSAL}\n", "refused"),
        (f"{REFUSAL} But the bridge was built in 1911 by Ferrer.", "embedded"), ("I don’t know the answer.", "near"),
        ("The craft of Aro is not known.", "near"), ("I cannot answer that.", "near"), ("It was built in 1911.", "no"), ("", "no"),
    ],
)  # fmt: skip
def test_refusals(answer, kind):
    assert refusal(answer, REFUSAL) == kind
    assert compat_refused(answer, REFUSAL) == (REFUSAL in answer)


def test_rouge():
    """By hand: two of three words in common, one of two pairs of words; the longest common part has two words."""
    pytest.importorskip("rouge_score")
    found = overlap.rouge(["the red house", ""], ["the red mill", "x"])
    assert found == pytest.approx({"ROUGE-1": 100 / 3, "ROUGE-2": 25.0, "ROUGE-L": 100 / 3})
    assert overlap.rouge([], []) == {}
    with pytest.raises(InputError, match="1 answers to 0 references"):
        overlap.rouge(["a"], [])


def test_rouge_without_its_package(monkeypatch):
    monkeypatch.setattr(overlap, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"needs the package rouge-score. pip install rouge-score==0.1.2"):
        overlap.rouge([], [])
