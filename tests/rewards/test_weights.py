"""FuseRL's records on cases counted by hand: which responses are selected, what they weigh, who gives a preference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fusion_jax.rewards.weights import WeightRules, weighted_responses, weighted_sources


def say(source: str, sample: int, response: str, reward: float, prompt: str = "p") -> dict[str, object]:
    return {
        "prompt_id": prompt, "prompt": f"What is {prompt}?", "source_model": source, "sample": sample,
        "response": response, "reward": reward,
    }  # fmt: skip


RESPONSES = [
    say("a", 0, "one", 0.1), say("a", 1, "two", 0.5), say("b", 0, "two", 0.5), say("b", 1, "three", 0.3),
    say("b", 2, "four", 0.3), say("c", 0, "five", 0.4),
]  # fmt: skip


def test_the_best_responses_of_all_sources_with_their_weights():
    dropped = Counter[str]()
    [found] = weighted_responses(RESPONSES, WeightRules(count=3, temperature=0.1), dropped)
    assert found["responses"] == ["two", "five", "three"] and found["source_models"] == ["a", "c", "b"]
    powers = np.exp(np.asarray([0.5, 0.4, 0.3]) / 0.1)
    np.testing.assert_allclose(found["weights"], powers / powers.sum())
    assert dropped == {"response: of equal texts": 1}


def test_the_best_response_of_each_source():
    [found] = weighted_responses(RESPONSES, WeightRules(select="best_per_source", temperature=1.0), Counter())
    assert found["responses"] == ["two", "five"] and found["rewards"] == [0.5, 0.4]  # b's best is a's text


def test_each_source_with_its_best_and_worst_response_and_its_weight():
    dropped = Counter[str]()
    records = [*RESPONSES, say("a", 0, "x", 0.2, "q"), say("a", 1, "y", 0.2, "q")]
    [found] = weighted_sources(records, ["a", "b", "c"], WeightRules(temperature=0.1), dropped)
    entries = {entry["source_model"]: entry for entry in found["sources"]}
    assert entries["a"]["responses"] == ["two", "one"] and entries["b"]["responses"] == ["two", "three"]
    assert [entry["weight"] for entry in found["sources"]] == pytest.approx([0.5, 0.5])
    assert dropped == {
        "source: too few responses": 3, "source: equally good responses": 1, "prompt: no source gives a preference": 1,
    }  # fmt: skip


def test_all_samples_with_advantages_that_sum_to_zero():
    [found] = weighted_sources(RESPONSES, ["a", "b"], WeightRules(temperature=0.1), Counter(), samples=2)
    for entry in found["sources"]:
        assert len(entry["responses"]) == 2 and sum(entry["advantages"]) == pytest.approx(0.0)
    assert found["sources"][0]["advantages"] == pytest.approx([-0.4, 0.4])


def test_blank_responses_and_rewards_that_are_not_finite_are_counted():
    dropped = Counter[str]()
    records = [say("a", 0, " ", 1.0), say("a", 1, "x", float("nan")), say("a", 2, "y", 0.5)]
    [found] = weighted_responses(records, WeightRules(), dropped)
    assert found["responses"] == ["y"] and found["weights"] == [1.0]
    assert dropped["blank response"] == 1 and dropped["reward not finite"] == 1
