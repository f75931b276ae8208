"""Intervals against known values and their coverage, accuracy rows, comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.evals.accuracy import by_skill, evaluate
from fusion_jax.intervals import mean_interval, paired_difference, student95, wilson
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")


def test_wilson_values():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 20)[0] == 0.0 and wilson(0, 20)[1] == pytest.approx(0.1611252, abs=1e-6)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    "freedom, value", [(1, 12.7062047), (2, 4.3026527), (4, 2.7764451), (29, 2.0452296), (1000, 1.9623391)]
)
def test_student_points(freedom, value):
    assert student95(freedom) == pytest.approx(value, abs=1e-6)


def test_mean_over_seeds():
    mean, half = mean_interval([0.5, 0.6, 0.7])
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(4.3026527 * 0.1 / math.sqrt(3)))
    assert mean_interval([0.5])[0] == 0.5 and math.isnan(mean_interval([0.5])[1])


def test_paired_differences_cover_the_truth():
    """Two judges right on 70 % and 60 %, mostly together: 93 to 98 % of 1,000 intervals of 80 prompts hold the 0.1."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        u, v = rng.random(80), rng.random(80) < 0.5
        first, second = u < 0.7, np.where(v, u, rng.random(80)) < 0.6
        difference, half = paired_difference(first.tolist(), second.tolist())
        held += abs(difference - 0.1) <= half
    assert 930 <= held <= 980
    assert paired_difference([1, 0, 1, 1], [1, 0, 1, 1])[1] > 0.1
    assert paired_difference([1, 1, 0], [0, 1, 0]) == (
        pytest.approx(1 / 3),
        pytest.approx(1.959964 * math.sqrt(0.56 / 5), rel=1e-4),
    )
    with pytest.raises(InputError, match="cannot be paired"):
        paired_difference([1, 0], [1])


def test_rows_by_skill():
    graded = [{"skill": "add", "right": 1}, {"skill": "add", "right": 0}, {"skill": "sort", "right": 1}]
    rows = by_skill("m", graded)
    assert [(r["skill"], r["accuracy"], r["count"]) for r in rows] == [
        ("add", 0.5, 2),
        ("sort", 1.0, 1),
        ("all", 2 / 3, 3),
    ]
    assert all(r["model"] == "m" and r["low"] <= r["accuracy"] <= r["high"] for r in rows)
    assert by_skill("m", []) == []


def test_evaluate_judges_greedy_answers():
    model = small_model()
    prompts = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "skill": "add"} for i in range(3)]
    rows, graded = evaluate("m", model, prompts, max_new_tokens=4, batch_size=4, verifier=lambda r, a: float(a == "2"))
    assert [g["right"] for g in graded] == [0, 1, 0] and all(g["model"] == "m" for g in graded)
    assert rows[-1]["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="record 2, field 'answer': is missing"):
        evaluate("m", model, [prompts[0], {"prompt": "?"}], max_new_tokens=4)
