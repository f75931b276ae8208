"""What FuseChat-3.0 trains on, on cases worked by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.within_source import PairRules, best_passed, pairs_within_source


def response(source: str, text: str, reward: float, passed: bool | None = None, prompt: str = "p") -> dict[str, Any]:
    record = {"prompt_id": prompt, "prompt": f"{prompt}?", "source_model": source, "response": text, "reward": reward}
    return record if passed is None else {**record, "passed": passed}


def texts(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[str, str, str]]:
    return [(chosen["source_model"], chosen["response"], rejected["response"]) for chosen, rejected in pairs]


PLAIN = [
    response("a", "a high", 0.15), response("a", "a low", 0.10), response("a", "a middle", 0.12),
    response("b", "b high", 0.14), response("b", "b low", 0.05),
    response("c", "c high", 0.30), response("c", "c low", 0.10),
]  # fmt: skip


@pytest.mark.parametrize(("keep", "wanted"), [
    ("highest", [("a", "a high", "a low")]),  # c's gap of .2 is too large, a's best is better than b's
    ("largest-gap", [("b", "b high", "b low")]),
    ("all", [("a", "a high", "a low"), ("b", "b high", "b low")]),
])  # fmt: skip
def test_pairs_are_of_one_source_and_within_the_window(keep, wanted):
    drops = Counter[str]()
    assert texts(pairs_within_source(PLAIN, PairRules(keep=keep), drops)) == wanted
    assert drops == {"source: gap too large": 1}


def test_a_random_pair_depends_on_the_seed_and_the_prompt_alone():
    some = [{**r, "prompt_id": f"{i}"} for i in range(40) for r in PLAIN]
    first = texts(pairs_within_source(some, PairRules(keep="random"), Counter()))
    assert texts(pairs_within_source(some[::-1][::-1], PairRules(keep="random"), Counter())) == first
    assert {source for source, *_ in first} == {"a", "b"}
    assert first != texts(pairs_within_source(some, PairRules(keep="random", seed=1), Counter()))


def test_the_window_includes_its_ends():
    edges = [response("a", "x", 0.5), response("a", "y", 0.25)]
    assert pairs_within_source(edges, PairRules(least_gap=0.25, most_gap=0.25), Counter())
    drops = Counter[str]()
    assert not pairs_within_source(edges, PairRules(least_gap=0.26, most_gap=0.3), drops)
    assert drops == {"source: gap too small": 1, "prompt: no pair": 1}


def test_with_a_checker_right_is_paired_with_wrong():
    checked = [
        response("a", "right, dull", 0.10, True), response("a", "right, fine", 0.16, True),
        response("a", "wrong, poor", 0.11, False), response("a", "wrong, charming", 0.30, False),
        response("b", "all right", 0.2, True), response("b", "right as well", 0.1, True),
        response("c", "wrong", 0.2, False),
    ]  # fmt: skip
    drops = Counter[str]()
    assert texts(pairs_within_source(checked, PairRules(), drops)) == [("a", "right, fine", "wrong, poor")]
    assert drops == {"source: every response passed": 1, "source: no response passed": 1}
    assert best_passed(checked, Counter())["p"]["response"] == "all right"


def test_a_wrong_answer_that_scores_higher_gives_no_pair():
    drops = Counter[str]()
    checked = [response("a", "right", 0.1, True), response("a", "wrong", 0.3, False)]
    assert not pairs_within_source(checked, PairRules(), drops)
    assert drops == {"source: gap too small": 1, "prompt: no pair": 1}


def test_ties_go_to_the_earlier_response_and_unusable_ones_are_counted():
    drops = Counter[str]()
    some = [
        response("a", "first", 0.2), response("b", "second", 0.2), response("a", " ", 0.9),
        response("b", "lost", float("nan")), response("a", "first ", 0.1),
    ]  # fmt: skip
    assert best_passed(some, drops)["p"]["response"] == "first"
    assert drops == {"blank response": 1, "reward not finite": 1}
    drops.clear()
    assert not pairs_within_source(some, PairRules(), drops)
    assert drops["source: identical responses"] == 2  # of "a" after stripping; "b" has one response
    failed = Counter[str]()
    assert not best_passed([response("a", "x", 1.0, False)], failed) and failed == {"prompt: no response passed": 1}


def test_equal_rewards_are_no_identical_responses():
    drops = Counter()
    same = [{"prompt_id": "p", "prompt": "q", "source_model": s, "sample": i, "response": t, "reward": 1.0}
            for s, texts in (("a", ("x", "y")), ("b", ("z", "z "))) for i, t in enumerate(texts)]  # fmt: skip
    assert not pairs_within_source(same, PairRules(least_gap=0.0), drops)
    assert drops["source: equal rewards"] == 1 and drops["source: identical responses"] == 1


def test_a_window_that_is_empty_is_refused():
    with pytest.raises(InputError, match="most_gap"):
        PairRules(least_gap=0.2, most_gap=0.1)
