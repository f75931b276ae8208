"""Scores, classes and chance after the specification's table; partitions add up; strategies differ on unknown instances."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_jax.kca.calibrate import CUT, NO_KNOWLEDGE, REFUSAL, Treatment, training_rows
from fusion_jax.kca.exam import Sat
from fusion_jax.kca.partition import agreement, classified, needed, passed, passing_chance
from fusion_jax.kca.records import (
    KNOWN,
    NEED,
    NO_FACT,
    NO_LABEL,
    NO_NEED,
    NO_QUESTION,
    UNKNOWN,
    ExamItem,
    Instance,
    Need,
    Source,
)

ITEM = ExamItem("Which?", ("a", "b", "c", "d"), "A")


def sat(*right: bool) -> list[Sat | None]:
    return [Sat((0.0, -9.0, -9.0, -9.0) if one else (-9.0, 0.0, -9.0, -9.0), one) for one in right]


def needing(name: str, count: int = 3, **more) -> Instance:
    return Instance(
        Source(name, f"ask {name}", f"said {name}"), Need(NEED), f"facts of {name}", (ITEM,) * count, **more
    )


@pytest.mark.parametrize("valid, least, chance", [(3, 2, 0.156), (2, 2, 0.063), (1, 1, 0.25)])
def test_the_table_of_scores(valid, least, chance):
    assert needed(valid, 0.6) == least and passing_chance(valid, 0.6) == pytest.approx(chance, abs=6e-4)
    for right in range(valid + 1):
        label = classified(needing("a", valid), sat(*[True] * right, *[False] * (valid - right)), 0.6).label
        assert label == (KNOWN if right / valid > 0.6 else UNKNOWN)


def test_thresholds_are_exceeded_strictly():
    assert [needed(3, t) for t in (0.3, 0.6, 0.9)] == [1, 2, 3]
    assert needed(5, 0.6) == 4 and needed(10, 0.3) == 4  # 3/5 and 3/10 do not exceed


def test_who_has_no_class_says_why():
    plain = Instance(Source("a", "x", "y"), Need(NO_NEED))
    assert classified(plain, [], 0.6).label == NO_FACT
    assert classified(needing("a", 0), [], 0.6).lost == NO_QUESTION
    assert classified(Instance(Source("a", "x", "y")), [], 0.6).lost == NO_LABEL
    assert classified(needing("a", 2), [None, None], 0.6).lost == "questions longer than the window"
    assert classified(needing("a", 2), [None, *sat(True)], 0.6).label == KNOWN  # of its one question that was asked
    lost = needing("a", lost="stage 2: no reply")
    assert classified(lost, sat(True, True, True), 0.6) is lost


def everyone() -> tuple[list[Instance], list[list[Sat | None]]]:
    answers = [sat(True, True, False), sat(True, False, False), sat(True, False), sat(True), [], [], []]
    made = [needing("a"), needing("b"), needing("c", 2), needing("d", 1), Instance(Source("e", "x", "y"), Need(NO_NEED)),
            needing("f", 0), Instance(Source("g", "x", "y"), lost="stage 1: no reply")]  # fmt: skip
    return [classified(one, own, 0.6) for one, own in zip(made, answers, strict=True)], answers


def test_sizes_add_up_and_chance_stands_beside():
    instances, answers = everyone()
    found = passed(instances, answers, 0.6)
    assert sum(found.sizes.values()) + sum(found.lost.values()) == len(instances)
    assert found.sizes == {KNOWN: 2, UNKNOWN: 2, NO_FACT: 1} and found.lost == {NO_QUESTION: 1, "stage 1: no reply": 1}
    assert found.by_valid == {1: (1, 1), 2: (1, 0), 3: (2, 1)} and (found.questions, found.right) == (9, 5)
    assert found.chance == pytest.approx(np.mean([0.15625, 0.15625, 0.0625, 0.25])) and found.rate == 0.5
    assert found.letters["A"] == (9, 5) and found.letters["B"] == (0, 4) and not found.above_chance
    assert found.row("train")["instances"] == 7 and found.row("train")["lost"] == 2
    empty = passed([], [], 0.6)
    assert empty.examined == 0 and not empty.above_chance and empty.row("x")["passed"] == ""


def test_strategies_differ_on_unknown_instances_only():
    instances, _ = everyone()
    rows = {name: {row.name: row for row in training_rows(instances, name, Treatment())[0]}
            for name in ("standard", "surviving", "openbook", "discard", "refusal", "random", "unknown")}  # fmt: skip
    unknown = {one.id for one in instances if one.label == UNKNOWN}
    assert (
        unknown == {"b", "c"} and list(rows["standard"]) == list("abcdefg") and list(rows["surviving"]) == list("abcde")
    )
    for name in ("openbook", "discard", "refusal"):
        assert {i: rows[name][i] for i in "ade"} == {i: rows["surviving"][i] for i in "ade"}
    assert not unknown & rows["discard"].keys() and rows["unknown"].keys() == unknown
    assert {rows["refusal"][i].responses for i in unknown} == {(REFUSAL,)}
    assert [rows["refusal"][i].messages for i in "bc"] == [rows["surviving"][i].messages for i in "bc"]
    assert rows["openbook"]["b"].messages[0]["content"] == "facts of b\nask b" and rows["openbook"]["b"].responses == (
        "said b",
    )
    behind, _ = training_rows(instances, "openbook", Treatment(where="after"))
    assert behind[1].messages[0]["content"] == "ask b\nfacts of b"
    assert len(rows["random"]) == len(rows["discard"]) and "e" in rows["random"]
    assert rows["random"] == {row.name: row for row in training_rows(instances, "random", Treatment())[0]}
    drawn = {
        tuple(row.name for row in training_rows(instances, "random", Treatment(seed=seed))[0]) for seed in range(9)
    }
    assert len(drawn) > 1


def test_knowledge_that_does_not_fit_is_cut_and_counted():
    instances, _ = everyone()
    rows, counts = training_rows(
        instances, "openbook", Treatment(room=lambda knowledge, *_: knowledge[:5] if "b" in knowledge else "")
    )
    assert rows[1].messages[0]["content"] == "facts\nask b" and rows[2].messages[0]["content"] == "ask c"
    assert counts[CUT] == 2 and counts[NO_KNOWLEDGE] == 1
    assert training_rows(instances, "refusal", Treatment("No."))[1]["answered by the apology"] == 2


def test_agreement_of_two_partitions():
    """Only of instances that both have examined: what needs no facts and what was lost agrees with nothing."""
    instances, _ = everyone()
    other = [classified(needing("a"), sat(False, False, False), 0.6), *instances[1:]]
    assert agreement(instances, other) == pytest.approx(3 / 4)
    assert agreement(instances, other[:2]) == 0.5 and np.isnan(agreement(instances, instances[4:]))
