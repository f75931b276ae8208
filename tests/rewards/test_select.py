"""Selection: ties, drops and their reasons, the official schema."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from fusion_jax.data.asked import parse_responses
from fusion_jax.data.records import parse_rows
from fusion_jax.errors import InputError
from fusion_jax.rewards import select
from fusion_jax.rewards.verifiers import exact


def response(prompt, reward, text="text", source="a", sample=0):
    return {
        "prompt_id": prompt, "prompt": f"question {prompt}", "source_model": source, "sample": sample,
        "response": text, "reward": reward,
    }  # fmt: skip


def test_the_best_source_response_and_its_ties():
    records = [
        response("p", 1.0, "late sample", "b", 1), response("p", 1.0, "early sample", "b", 0),
        response("p", 0.5, "worse", "a"), response("q", 1.0, "second source", "b"), response("q", 1.0, "first", "a", 3),
        response("r", math.nan, "nan"), response("r", 0.1, "finite", "c"), response("s", 9.0, " \n"),
        response("t", math.inf, "inf"),
    ]  # fmt: skip
    drops = Counter[str]()
    best = select.best_of(records, drops)
    chosen = {prompt: record["response"] for prompt, record in best.items()}
    assert chosen.pop("q") in ("second source", "first")
    assert chosen == {"p": "early sample", "r": "finite"}
    assert drops == {"reward not finite": 2, "blank response": 1}
    assert sum(select.wins(best).values()) == pytest.approx(1.0)


def test_a_tie_goes_to_the_source_with_the_higher_mean_on_the_prompt():
    records = [
        response("p", 1.0, "of a", "a", 0), response("p", 0.0, "bad", "a", 1), response("p", 1.0, "of b", "b", 0),
        response("p", 0.5, "fair", "b", 1),
    ]  # fmt: skip
    for order in (records, records[::-1]):
        assert select.best_of(order, Counter())["p"]["response"] == "of b"


def test_ties_that_remain_favour_no_source_and_depend_on_the_seed_alone():
    """1000 prompts on which three sources tie: each gets a third, within four standard errors."""
    records = [response(f"p{i}", 1.0, f"of {name}", name) for i in range(1000) for name in ("a", "b", "c")]
    chosen = {seed: select.best_of(records, Counter(), seed=seed) for seed in (0, 1)}
    for best in chosen.values():
        assert all(abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 1000) for share in select.wins(best).values())
    assert chosen[0] != chosen[1] and chosen[0] == select.best_of(records[::-1], Counter())


def test_the_second_best_source_response_is_another_text():
    records = [
        response("p", 1.0, "same", "a"), response("p", 1.0, "same", "b"), response("p", 0.5, "other", "b", 1),
        response("p", 0.2, "worse", "a", 1), response("q", 1.0, "only"),
    ]  # fmt: skip
    drops = Counter[str]()
    found = select.best_of(records, drops, rank=2)
    assert {prompt: record["response"] for prompt, record in found.items()} == {"p": "other"}
    assert drops == {"prompt: fewer than 2 source responses": 1}


def test_best_and_worst_with_every_reason_to_drop():
    records = [
        response("good", 0.2, "low", sample=1), response("good", 0.9, "high", sample=2),
        response("good", 0.9, "also high", sample=3), response("good", 0.2, "also low", sample=4),
        response("tie", 0.5, "x"), response("tie", 0.5, "y", sample=1),
        response("near tie", 0.5, "x"), response("near tie", 0.55, "y", sample=1),
        response("same", 0.1, "x"), response("same", 0.9, "x", sample=1),
        response("blank", 0.1, ""), response("blank", 0.9, " ", sample=1),
        response("nan", math.nan, "x"), response("nan", 0.9, "y", sample=1),
        response("one", 0.9, "y"),
    ]  # fmt: skip
    drops = Counter[str]()
    out = select.best_and_worst(records, drops, tolerance=0.1)
    assert {p: (b["response"], w["response"]) for p, (b, w) in out.items()} == {"good": ("high", "low")}
    assert drops == {
        "prompt: tie of best and worst": 2, "prompt: identical responses": 1, "prompt: all responses blank": 1,
        "prompt: fewer than two usable responses": 2, "blank response": 2, "reward not finite": 1,
    }  # fmt: skip
    assert set(select.best_and_worst(records, Counter())) == {"good", "near tie"}
    shuffled = select.best_and_worst(records[::-1], Counter(), tolerance=0.1)
    assert {p: (b["response"], w["response"]) for p, (b, w) in shuffled.items()} == {"good": ("high", "low")}


def test_quadruples_are_the_official_schema_and_read_back():
    pair = (response("p", 0.8, "best"), response("p", 0.1, "worst"))
    target = {
        "p": pair,
        "q": (response("q", 0.8, "best"), response("q", 0.1, "worst")),
        "r": (response("r", 0.3, "best"), response("r", 0.1, "worst")),
    }
    sources = {"p": response("p", 0.5, "source", "b"), "r": response("r", 0.9, "source", "c")}
    records = select.quadruples(sources, target)
    assert records[0] == {
        "prompt_id": "p", "prompt": {"role": "user", "content": "question p"},
        "chosen": [{"role": "assistant", "content": "source"}, {"role": "assistant", "content": "best"}],
        "rejected": [{"role": "assistant", "content": "worst"}], "source_model": "b", "rewards": [0.5, 0.8, 0.1],
    }  # fmt: skip
    assert records[1]["chosen"][0] is None and records[1]["source_model"] is None
    assert select.notes(records) == {
        "note: no source response (alpha 0)": 1,
        "note: source scores below target (kept)": 1,
    }
    rows, _ = parse_rows(records, "quad")
    assert [r.responses[0] for r in rows] == ["source", None, "source"]


def test_scores_by_a_verifier_keep_ready_rewards():
    given = [
        {"response": "Four.", "answer": "four"},
        {"response": "x", "answer": "y"},
        {"response": "z", "reward": 0.25},
    ]
    assert [r["reward"] for r in select.score_with(given, exact)] == [1.0, 0.0, 0.25]
    with pytest.raises(InputError, match="record 1, field 'answer': is missing and there is no reward"):
        select.score_with([{"response": "x"}], exact)


def test_responses_carry_what_their_prompts_know():
    prompts = [{"prompt_id": "p", "prompt": "question p", "answer": "4", "skill": "add"}]
    drops = Counter[str]()
    carried = select.carry(prompts, [response("p", 1.0), response("other", 1.0)], drops)
    assert [(r["answer"], r["skill"], r["reward"]) for r in carried] == [("4", "add", 1.0)]
    assert drops == {"response to another prompt": 1}


def test_responses_without_the_prompts_own_ids_are_found_by_text():
    prompts = [{"prompt_id": "p1", "prompt": "question a", "answer": "4"}]
    given = parse_responses([{"prompt": "question a", "source_model": "s", "response": "4"}])
    assert [(r["prompt_id"], r["answer"]) for r in select.carry(prompts, given, Counter())] == [("p1", "4")]
    with pytest.raises(InputError, match="no response belongs to any of the prompts"):
        select.carry(prompts, parse_responses([{"prompt": "b", "source_model": "s", "response": "4"}]), Counter())
