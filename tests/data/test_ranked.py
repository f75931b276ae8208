"""Ranked and scored answers as pairs: Nectar's and UltraFeedback's records."""

from __future__ import annotations

import pytest

from fusion_jax.data.ranked import NO_WORSE
from fusion_jax.data.records import parse_rows
from fusion_jax.errors import InputError


def nectar(ranks, prompt="\n\nHuman: Name a tree.\n\nAssistant: "):
    return {"prompt": prompt, "answers": [{"answer": f"tree {r}", "model": "m", "rank": float(r)} for r in ranks]}


def test_nectar_compares_the_first_with_one_of_rank_three_or_lower():
    records = [nectar((4, 1, 2, 7, 3, 6, 5), f"\n\nHuman: Name tree {i}.\n\nAssistant: ") for i in range(200)]
    rows, dropped = parse_rows(records, "pair")
    assert not dropped and rows[0].messages == ({"role": "user", "content": "Name tree 0."},)
    assert {row.responses[0] for row in rows} == {"tree 1"}
    worse = [row.responses[1] for row in rows]
    assert set(worse) == {f"tree {r}" for r in range(3, 8)}
    assert min(worse.count(text) for text in set(worse)) >= 20  # of 40 expected
    assert parse_rows(records[7:8], "pair")[0][0].responses[1] == worse[7]


def test_conversations_and_ranks_without_a_worse_one():
    talk = nectar((1, 5), "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Name a tree.\n\nAssistant: ")
    rows, dropped = parse_rows([talk, nectar((1, 2))], "pair")
    assert [m["role"] for m in rows[0].messages] == ["user", "assistant", "user"] and dropped == {NO_WORSE: 1}


def test_ultrafeedback_compares_the_highest_with_one_a_point_below():
    answers = [{"response": text, "overall_score": score} for text, score in (("a", 7.5), ("b", 8.0), ("c", 7.0))]
    rows, _ = parse_rows([{"instruction": "Name a tree.", "completions": answers}], "pair")
    assert rows[0].responses == ("b", "c")


@pytest.mark.parametrize(("answer", "told"), [
    ({"answer": 3, "rank": 1}, r"answers\[1\].answer.*not a text"),
    ({"answer": "oak", "rank": "first"}, r"answers\[1\].rank.*'first', not a number"),
    ({"answer": "oak"}, r"answers\[1\].rank.*is missing"), ("oak", r"answers\[1\]'.*not an object"),
])  # fmt: skip
def test_answers_that_cannot_be_ranked_are_named(answer, told):
    with pytest.raises(InputError, match=told):
        parse_rows([{"prompt": "Name a tree.", "answers": [{"answer": "elm", "rank": 2}, answer]}], "pair")


def test_the_best_answer_is_never_its_own_worse_one():
    for ranks in ((3, 5), (3, 3, 5)):
        rows, _ = parse_rows([nectar(ranks, f"\n\nHuman: {i}?\n\nAssistant: ") for i in range(30)], "pair")
        assert {row.responses for row in rows} == {("tree 3", "tree 5")}


def test_the_prompt_decides_wherever_it_stands():
    def said(i):
        answers = [{"response": f"{n}", "overall_score": float(n)} for n in range(1, 9)]
        return {"messages": [{"role": "user", "content": f"Name tree {i}."}], "completions": answers}

    rows, _ = parse_rows([said(i) for i in range(50)], "pair")
    assert len({row.responses[1] for row in rows}) > 3
