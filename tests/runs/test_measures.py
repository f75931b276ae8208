"""Tables of what was measured: differences by hand, on the same prompts and over seeds."""

from __future__ import annotations

import pytest

from fusion_jax.runs.judging import MEASURES, accuracy_table, differences, figure_rows, means
from fusion_jax.runs.seeds import pairs_of, seed_differences


def answered(right, reward, probability=None):
    more = {} if probability is None else {"right_probability": probability}
    return {"right": right, "reward": reward, "skill": "plants"} | more


FIRST = [answered(1, 1.0, 0.5), answered(0, 0.5, 0.25), answered(1, 0.75, 0.125), answered(0, 0.25, 0.125)]
SECOND = [answered(0, 0.5, 0.25), answered(0, 0.5, 0.25), answered(1, 0.5, 0.125), answered(0, 0.0, 0.0)]


def test_means_of_what_every_record_has():
    found = means(FIRST)
    assert {name: found[name] for name in MEASURES} == {"accuracy": 0.5, "mean reward": 0.625, "P(right)": 0.25}
    assert found["mean reward/half"] == pytest.approx(3.182446 * 0.3227486 / 2, rel=1e-5)
    assert {name for name in means([*FIRST, answered(1, 1.0)]) if "/" not in name} == {"accuracy", "mean reward"}


def test_a_figure_shows_each_skill_and_each_other_measure():
    rows = [{"model": "W", "skill": s, "accuracy": 0.5, "low": 0.2, "high": 0.8} for s in ("plants", "all")]
    rows[1] |= means(FIRST)
    found = figure_rows(rows)
    assert [(r["skill"], r["accuracy"]) for r in found] == [("plants", 0.5), ("mean reward", 0.625), ("P(right)", 0.25)]
    assert all(0 <= r["low"] <= r["accuracy"] <= r["high"] <= 1 for r in found)
    more = [{**rows[0], "skill": "trees"}, *rows]
    assert [r["skill"] for r in figure_rows(more)][:3] == ["trees", "plants", "all"]


def test_differences_on_the_same_prompts():
    """Mean reward: differences .5, 0, .25, .25, Student's t with 3 degrees of freedom is 3.1824."""
    found = differences(FIRST, SECOND)
    assert found["mean reward"] == "+0.250 ± 0.325" and found["P(right)"].startswith("+0.094 ± ")
    assert found["accuracy"].startswith("+0.250 ± ")
    assert set(differences(FIRST, [answered(0, 0.5)] * 4)) == {"accuracy", "mean reward"}


def test_pairs_are_neighbours_and_the_last_with_all():
    assert pairs_of(["T", "S", "D", "W"]) == [("S", "T"), ("D", "S"), ("W", "D"), ("W", "S"), ("W", "T")]
    assert pairs_of(["T"]) == [] == pairs_of([])


def test_differences_over_seeds():
    seen = {"T": {"accuracy": [0.1, 0.2, 0.3]}, "W": {"accuracy": [0.2, 0.3, 0.4], "mean reward": [1.0, 1.0, 1.0]}}
    assert seed_differences(seen, ["T", "W"]) == [{"comparison": "W - T", "accuracy": "+0.1000 ± 0.0000"}]


def test_the_table_has_the_other_measures_behind_the_accuracies():
    row = {"model": "W", "skill": "all", "accuracy": 0.5, "low": 0.2, "high": 0.8, "count": 4, "mean reward": 0.625}
    assert accuracy_table([row]) == [{"model": "W", "all": "0.500 [0.200, 0.800]", "mean reward": "0.625"}]


@pytest.mark.parametrize("records", [FIRST, SECOND])
def test_a_model_does_not_differ_from_itself(records):
    assert differences(records, records)["mean reward"] == "+0.000 ± 0.000"
