"""The forms that people keep records in: read with all of their context, or refused by the field that would be lost."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from experiments import inspect_data
from fusion_jax.data.asked import parse_prompts, parse_responses
from fusion_jax.data.records import parse_rows
from fusion_jax.errors import InputError
from fusion_jax.rewards import select
from tests.small import attempt, fails, write

Json = dict[str, Any]


def U(text: Any, **more: Any) -> Json:
    return {"role": "user", "content": text, **more}


def A(text: Any, **more: Any) -> Json:
    return {"role": "assistant", "content": text, **more}


def S(text: str) -> Json:
    return {"role": "system", "content": text}


def turn(who: str, text: str) -> Json:
    return {"from": who, "value": text}


TALK = [U("a"), A("b"), U("c")]
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": " c"}]
# name: kind, record, what stands before the answer, the answers
FORMS: dict[str, tuple[str, Json, list[Json], tuple[str | None, ...]]] = {
    "trl, implicit prompt": ("pair", {"chosen": [*TALK, A("d")], "rejected": [*TALK, A("e")]}, TALK, ("d", "e")),
    "trl, answers of several turns": (
        "pair", {"prompt": [U("a")], "chosen": [A("b"), U("c"), A("d")], "rejected": [A("b"), U("c"), A("e")]},
        TALK, ("d", "e")),
    "trl, prompt and completion": ("sft", {"prompt": [U("a")], "completion": [A("b")]}, [U("a")], ("b",)),
    "trl, texts": ("sft", {"prompt": "a", "completion": "b"}, [U("a")], ("b",)),
    "ultrafeedback_binarized": (
        "pair", {"prompt": "a", "prompt_id": "f", "chosen": [U("a"), A("d")], "rejected": [U("a"), A("e")],
                 "messages": [U("a"), A("d")], "score_chosen": 8.0, "score_rejected": 2.0}, [U("a")], ("d", "e")),
    "ultrafeedback_binarized for sft": (
        "sft", {"prompt": "a", "chosen": [U("a"), A("d")], "rejected": [U("a"), A("e")], "messages": [U("a"), A("d")]},
        [U("a")], ("d",)),
    "prompt and whole conversations": (
        "pair", {"prompt": TALK, "chosen": [*TALK, A("d")], "rejected": [*TALK, A("e")]}, TALK, ("d", "e")),
    "first prompt and whole conversations": (
        "pair", {"prompt": "a", "chosen": [*TALK, A("d")], "rejected": [*TALK, A("e")]}, TALK, ("d", "e")),
    "last prompt and whole conversations": (
        "pair", {"prompt": "c", "chosen": [*TALK, A("d")], "rejected": [*TALK, A("e")]}, TALK, ("d", "e")),
    "system inside the answers": (
        "pair", {"prompt": "a", "chosen": [S("s"), U("a"), A("d")], "rejected": [S("s"), U("a"), A("e")]},
        [S("s"), U("a")], ("d", "e")),
    "system in the prompt alone": (
        "pair", {"prompt": [S("s"), U("a")], "chosen": [U("a"), A("d")], "rejected": "e"}, [S("s"), U("a")], ("d", "e")),
    "hh-rlhf": ("pair", {"chosen": f"{HH} d", "rejected": f"{HH} e"}, TALK, ("d", "e")),
    "hh-rlhf with its prompt": ("pair", {"prompt": HH, "chosen": " d", "rejected": " e"}, TALK, (" d", " e")),
    "orca pairs": (
        "pair", {"system": "s", "question": "a", "chosen": "d", "rejected": "e"}, [S("s"), U("a")], ("d", "e")),
    "orca pairs, blank system": ("pair", {"system": "", "question": "a", "chosen": "d", "rejected": "e"}, [U("a")], ("d", "e")),
    "distilabel's orca pairs": (
        "pair", {"system": "s", "input": "a", "chosen": "d", "rejected": "e", "rating": [9, 1]}, [S("s"), U("a")], ("d", "e")),
    "alpaca": ("sft", {"instruction": "Reverse", "input": "a b", "output": "b a"}, [U("Reverse\na b")], ("b a",)),
    "alpaca without input": ("sft", {"instruction": "a", "input": "", "output": "b"}, [U("a")], ("b",)),
    "alpaca with history": (
        "sft", {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}, [S("s"), *TALK], ("d",)),
    "alpaca pairs": (
        "pair", {"instruction": "a", "input": "c", "chosen": "d", "rejected": "e"}, [U("a\nc")], ("d", "e")),
    "dolly": ("sft", {"instruction": "a", "context": "c", "response": "d"}, [U("a\nc")], ("d",)),
    "ShareGPT with a system turn": (
        "sft", {"conversations": [turn("system", "s"), turn("human", "a"), turn("gpt", "d")]}, [S("s"), U("a")], ("d",)),
    "ShareGPT with a system key": (
        "sft", {"system": "s", "conversations": [turn("human", "a"), turn("gpt", "d")]}, [S("s"), U("a")], ("d",)),
    "ShareGPT pairs": (
        "pair", {"conversations": [turn("human", "a"), turn("gpt", "b"), turn("human", "c")], "chosen": turn("gpt", "d"),
                 "rejected": turn("gpt", "e")}, TALK, ("d", "e")),
    "columns of a datasets sequence": (
        "sft", {"conversations": {"from": ["human", "gpt"], "value": ["a", "d"]}}, [U("a")], ("d",)),
    "OpenAI, weight 1, parts, nulls": (
        "sft", {"messages": [U(PARTS), A("d", weight=1, tool_calls=None, name=None)], "tools": []}, [U("a c")], ("d",)),
    "OpenAI preferences": (
        "pair", {"input": {"messages": [U("a")], "tools": []}, "preferred_output": [A("d")],
                 "non_preferred_output": [A("e")]}, [U("a")], ("d", "e")),
    "messages and the answer in a field": ("sft", {"messages": TALK, "response": "d"}, TALK, ("d",)),
    "lists as sft responses": ("sft", {"prompt": "a", "response": [*TALK, A("d")]}, TALK, ("d",)),
    "no_robots, where the prompt is the system message": (
        "sft", {"prompt": "s", "messages": [S("s"), U("a"), A("d")]}, [S("s"), U("a")], ("d",)),
    "gsm8k": ("sft", {"question": "a", "answer": "d"}, [U("a")], ("d",)),
    "SimPO's sets as pairs": (
        "pair", {"prompt": "a", "all_generated_responses": ["d", "e"], "all_rm_scores": [0.2, 0.1],
                 "chosen": [U("a"), A("d")], "rejected": [U("a"), A("e")]}, [U("a")], ("d", "e")),
    "quadruples with a system key": (
        "quad", {"system": "s", "prompt": U("a"), "chosen": [None, A("d")], "rejected": [A("e")]},
        [S("s"), U("a")], (None, "d", "e")),
    "quadruples of whole conversations": (
        "quad", {"prompt": U("a"), "chosen": [[U("a"), A("x")], A("d")], "rejected": ["e"]}, [U("a")], ("x", "d", "e")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_read_with_their_context(name):
    kind, record, before, answers = FORMS[name]
    (row,), drops = parse_rows([record], kind)
    assert list(row.messages) == before and row.responses == answers and not drops
    with_nulls = {**dict.fromkeys(("messages", "system", "history", "tools", "weight", "label")), **record}
    assert parse_rows([with_nulls], kind)[0] == [row]  # as a table has them, whose rows share their columns


def said(**more: Any) -> Json:
    return {"messages": [U("a"), A("b", **more)]}


# name: kind, record, field, words
REFUSED: dict[str, tuple[str, Json, str, str]] = {
    "another prompt in the answers": (
        "pair", {"prompt": "a", "chosen": [U("z"), A("d")], "rejected": [U("y"), A("e")]}, "chosen", "another conversation"),
    "histories differ": (
        "pair", {"chosen": [*TALK, A("d")], "rejected": [U("a"), A("x"), U("c"), A("e")]}, "rejected", "than 'chosen'"),
    "lengths of histories differ": (
        "pair", {"chosen": [*TALK, A("d")], "rejected": [U("a"), A("e")]}, "rejected", "than 'chosen'"),
    "systems differ": (
        "pair", {"chosen": [S("s"), U("a"), A("d")], "rejected": [S("t"), U("a"), A("e")]}, "rejected", "than 'chosen'"),
    "system key against message": (
        "sft", {"system": "s", "messages": [S("t"), U("a"), A("b")]}, "system", "differs from the system message"),
    "hh-rlhf, differing": (
        "pair", {"chosen": f"{HH} d", "rejected": "\n\nHuman: z\n\nAssistant: e"}, "rejected", "than 'chosen'"),
    "quadruple with another history": (
        "quad", {"prompt": [U("a")], "chosen": [[U("z"), A("x"), U("y"), A("b")], A("c")], "rejected": [A("d")]},
        "chosen[0]", "another conversation"),
    "two prompts": ("sft", {"prompt": "a", "question": "z", "response": "b"}, "question", "says something else"),
    "prompt beside messages": ("sft", {"prompt": "z", **said()}, "messages", "another conversation"),
    "two answers": ("sft", {"prompt": "a", "response": "b", "output": "c"}, "output", "says something else"),
    "answer beside messages": ("sft", {**said(), "response": "z"}, "response", "says something else"),
    "messages beside a pair": (
        "pair", {"prompt": "a", "chosen": "b", "rejected": "c", "messages": [U("z"), A("b")]}, "messages", "another"),
    "tool calls": ("sft", said(tool_calls=[{"id": "1"}]), "messages[1].tool_calls", "not rendered"),
    "function call": ("sft", said(function_call={"name": "f"}), "messages[1].function_call", "not rendered"),
    "tools": ("pair", {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{"f": 1}]}, "tools", "not rendered"),
    "reasoning": ("sft", said(reasoning_content="hm"), "messages[1].reasoning_content", "not learnt"),
    "thoughts in a field": ("sft", {"prompt": "a", "reasoning": "hm", "response": "b"}, "reasoning", "not learnt"),
    "weight of a message": ("sft", said(weight=0), "messages[1].weight", "is 0, but shares of the loss"),
    "weight of a record": ("sft", {**said(), "weight": 0.5}, "weight", "is 0.5"),
    "train": ("sft", {"messages": [U("a", train=False), A("b")]}, "messages[0].train", "is False"),
    "name": ("sft", {"messages": [U("a", name="Bob"), A("b")]}, "messages[0].name", "is 'Bob'"),
    "key of a message": ("sft", said(refusal="no"), "messages[1].refusal", "no such key of a message"),
    "image": ("sft", {"messages": [U([{"type": "image_url", "image_url": "x"}]), A("b")]}, "content[0].type", "'image_url'"),
    "images": ("sft", {"prompt": "a", "response": "b", "images": ["x.png"]}, "images", "only text"),
    "documents": ("sft", {"prompt": "a", "response": "b", "context": "c"}, "context", "not put before"),
    "tool role": ("sft", {"messages": [U("a"), {"role": "tool", "content": "x"}, A("b")]}, "messages[1].role", "'tool'"),
    "developer": ("sft", {"messages": [{"role": "developer", "content": "x"}, *TALK, A("d")]}, "messages[0].role", 'Write "system"'),
    "observation": ("sft", {"conversations": [turn("human", "a"), turn("observation", "x")]}, "conversations[1]", "with tools"),
    "KTO": ("sft", {"prompt": "a", "completion": "b", "label": True}, "label", "KTO"),
    "KTO in messages": ("sft", {**said(), "kto_tag": False}, "kto_tag", "KTO"),
    "history of texts": ("sft", {"prompt": "a", "response": "b", "history": ["x"]}, "history[0]", "not a pair"),
    "system in a prompts file": ("prompts", {"prompt": "a", "system": "s"}, "system", "sampled alone"),
    "history in responses": (
        "responses", {"prompt": "a", "source_model": "m", "response": "b", "history": [["x", "y"]]}, "history", "sampled alone"),
    "answer in turns": ("responses", {"prompt": "a", "source_model": "m", "response": TALK}, "response", "list, not text"),
    "answers without prompt": ("pair", {"chosen": "It is blue.", "rejected": "It is green."}, "prompt", "found: chosen, rejected"),
    "unknown form": ("sft", {"turns": ["a", "b"], "id": 1}, "response", "found: turns, id). Known: \"prompt\" with"),
    "scores": (
        "responses", {"prompt": "a", "all_generated_responses": ["b"], "all_rm_scores": [1, 2]}, "all_rm_scores", "list of 2"),
}  # fmt: skip
READERS = {"prompts": parse_prompts, "responses": parse_responses}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_dropped_is_refused_by_field(name):
    kind, record, field, words = REFUSED[name]
    with pytest.raises(InputError) as found:
        READERS[kind]([record], file="f") if kind in READERS else parse_rows([record], kind, file="f")
    assert str(found.value).startswith("f, record 1, field '") and words in str(found.value)
    assert found.value.field is not None and found.value.field.endswith(field)


def test_responses_with_rewards_of_simpos_sets():
    record = {
        "prompt_id": "p", "prompt": "a", "all_generated_responses": ["x", "y", "z"], "all_rm_scores": [0.1, 0.3, 0.2],
        "chosen": [U("a"), A("y")], "rejected": [U("a"), A("x")],
    }  # fmt: skip
    found = parse_responses([record], file="data/armorm.jsonl")
    assert [(r["response"], r["reward"], r["sample"]) for r in found] == [("x", 0.1, 0), ("y", 0.3, 1), ("z", 0.2, 2)]
    assert {r["source_model"] for r in found} == {"armorm"} and all("chosen" not in r for r in found)
    pair = select.best_and_worst(found, Counter())["p"]
    assert [r["response"] for r in pair] == ["y", "x"]


def test_prompts_carry_no_answers_of_their_own_form():
    """What is sampled to them would else be given their reward, or be learnt as their answer."""
    given = {"instruction": "Reverse", "input": "a b", "output": "b a", "reward": 1.0, "response": "?", "topic": "t"}
    (prompt,) = parse_prompts([given])
    assert prompt.keys() == {"prompt", "prompt_id", "topic"} and prompt["prompt"] == "Reverse\na b"
    (row,), _ = parse_rows([{**prompt, "source_model": "m", "sample": 0, "response": "sampled"}], "sft")
    assert row.responses == ("sampled",)


R = {"prompt": "q", "source_model": "m", "response": "r"}
P = {"prompt": "a", "response": "b", "prompt_id": "p"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c", "prompt_id": 1}
IDS: dict[str, tuple[str, list[Json], str]] = {
    "responses": ("responses", [{**R, "prompt_id": "p"}, {**R, "prompt": "z", "prompt_id": "p"}], "'p' has another prompt than in record 1"),
    "answers": ("responses", [{**R, "prompt_id": "p", "answer": x} for x in "12"], "'p' has another answer than in record 1"),
    "prompts": ("prompts", [{"prompt": "a", "prompt_id": 1}, {"prompt": "b", "prompt_id": "1"}], "stands for another prompt in record 1"),
    "sft": ("sft", [P, {**P, "prompt": "z"}], "'p' has another prompt than in record 1"),
    "sft, systems": ("sft", [P, {**P, "system": "s"}], "'p' has another prompt than in record 1"),
    "pairs, number and text": ("pair", [PAIR, {**PAIR, "prompt": "z", "prompt_id": "1"}], "'1' has another prompt than in record 1"),
    "quadruples": (
        "quad", [{"prompt_id": "p", "prompt": U(x), "chosen": [None, A("d")], "rejected": [A("e")]} for x in "az"],
        "'p' has another prompt than in record 1"),
    "blank": ("sft", [P, {**P, "prompt_id": " "}], "is blank"),
    "empty": ("prompts", [{"prompt": "a"}, {"prompt": "b", "prompt_id": ""}], "is blank"),
    "list": ("responses", [R, {**R, "prompt_id": ["p"]}], "is list of 1, neither text nor a whole number"),
    "object": ("pair", [PAIR, {**PAIR, "prompt_id": {}}], "is dict of 0, neither"),
    "fraction": ("prompts", [{"prompt": "a"}, {"prompt": "b", "prompt_id": 1.0}], "is 1.0, neither"),
    "flag": ("sft", [P, {**P, "prompt_id": True}], "is True, neither"),
    "half of a pair": ("sft", [P, {**P, "prompt_id": "\ud800"}], "holds half of a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_one_id_is_one_prompt(name):
    kind, records, words = IDS[name]
    with pytest.raises(InputError) as found:
        READERS[kind](records, file="f") if kind in READERS else parse_rows(records, kind, file="f")
    assert str(found.value).startswith("f, record 2, field 'prompt_id': ") and words in str(found.value)
    if kind not in READERS:
        rows, drops = parse_rows(records, kind, on_bad="skip")
        assert len(rows) == 1 and sum(drops.values()) == 1


def test_ids_that_agree():
    rows, _ = parse_rows([P, {**P, "response": "other"}, {**PAIR, "response": "b"}], "sft")
    assert [r.name for r in rows] == ["p", "p", "1"]
    assert parse_prompts([{"prompt": "a", "prompt_id": 0}])[0]["prompt_id"] == "0"
    given = parse_responses([R, {**R, "prompt_id": "p", "source_model": "n"}, {**R, "prompt": "z"}])
    assert [r["prompt_id"] for r in given][:2] == ["p", "p"] and given[2]["prompt_id"] != "p"
    with pytest.raises(InputError, match="stands for two prompts, 'q' and 'z'"):  # whatever stage file it comes from
        select.by_prompt([{**R, "prompt_id": "p"}, {**R, "prompt_id": "p", "prompt": "z"}])
    prompts = [{"prompt": "another", "prompt_id": "p", "answer": "1"}]
    with pytest.raises(InputError, match=r"r\.jsonl, record 1, field 'prompt_id': 'p' stands for two prompts"):
        select.carry(prompts, parse_responses([{**R, "prompt_id": "p"}]), Counter(), file="r.jsonl")
    with pytest.raises(InputError, match=r"r\.jsonl, record 1, field 'answer': is '2', that of the prompt is '1'"):
        select.carry(prompts, parse_responses([{**R, "prompt": "another", "answer": "2"}]), Counter(), file="r.jsonl")


def test_samples_are_numbered_once():
    assert [r["sample"] for r in parse_responses([{**R, "sample": 1}, R, R, {**R, "source_model": "n"}])] == [
        1,
        0,
        2,
        0,
    ]
    with pytest.raises(InputError, match=r"record 2, field 'sample': stands twice .* also in record 1"):
        parse_responses([{**R, "sample": 0}, {**R, "sample": 0}])


@pytest.mark.parametrize(
    "change, told",
    [
        ({"reward": 10**400}, "'reward': is not finite"), ({"reward": math.nan}, "'reward': is not finite"),
        ({"reward": [1]}, "'reward': is list of 1, not a number"), ({"sample": -1}, "'sample': is -1, out of range"),
        ({"sample": 10**400}, "'sample': is a whole number of"), ({"skill": 3}, "'skill': is int, not text"),
        ({"extra": {"a": ["\udc00"]}}, r"'extra.a\[0\]': holds half of a surrogate pair"),
        ({"\ud800": 1}, "holds half of a surrogate pair"), ({"extra": [math.inf]}, r"'extra\[0\]': is not finite"),
        ({"extra": {"a": b"x"}}, "'extra.a': is of the type bytes"), ({"prompt_id": 10**400}, "'prompt_id': is a whole number of"),
    ],
)  # fmt: skip
def test_what_no_stage_file_could_hold_is_refused_when_it_is_read(change, told):
    with pytest.raises(InputError, match=f"f, record 1, field {told}" if told[0] == "'" else told):
        parse_responses([{**R, **change}], file="f")


def test_records_that_are_no_objects_and_many_reasons_to_skip():
    with pytest.raises(InputError, match="record 1, field 'record': is 7, not an object"):
        parse_rows([7], "sft")  # type: ignore[list-item]
    bad = [{"messages": [U("a"), {"role": f"r{i}", "content": "b"}]} for i in range(100)]
    rows, drops = parse_rows([P, *bad], "sft", on_bad="skip")
    assert len(rows) == 1 and len(drops) == 21 and drops["malformed: other reasons"] == 80


def test_a_long_record_takes_time_in_proportion():
    """Twenty thousand turns, and a response of ten megabytes."""
    long = [turn for _ in range(10_000) for turn in (U("a"), A("b"))]
    (row,), _ = parse_rows([{"messages": long}], "sft")
    assert len(row.messages) == 19_999
    text = HH.removesuffix("Assistant:") * 2_000 + "Assistant: d"
    assert parse_rows([{"prompt": "a", "response": "b " * 5_000_000}], "sft")[0][0].responses[0] is not None
    with pytest.raises(InputError, match="two user messages"):
        parse_rows([{"chosen": text, "rejected": text}], "pair")


@pytest.mark.parametrize("kind", ["sft", "pair", "quad"])
def test_a_model_is_shown_each_form(kind, tmp_path, capsys):
    """All forms of a kind through the reader, the template and the tokenizer: context and answers are both there."""
    records = [record for k, record, *_ in FORMS.values() if k == kind]
    file = write(tmp_path / "records.jsonl", [{k: v for k, v in r.items() if k != "prompt_id"} for r in records])
    attempt(inspect_data, ["--data", str(file), "--kind", kind, "--count", "99"])
    shown = capsys.readouterr().out
    assert shown.count("given,") == len(records) * {"sft": 1, "pair": 2, "quad": 3}[kind]
    fails(inspect_data, ["--data", str(file), "--kind", kind, "--start", "99"], capsys, "field '--start'")


def test_the_fields_tell_the_kind_of_a_record():
    one, two = [A("b")], [U("a"), A("b")]
    for record, kind in (
        ({"prompt": "a", "response": "b"}, "sft"), ({"messages": two}, "sft"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pair"), ({"chosen": two, "rejected": two}, "pair"),
        ({"prompt": "a", "chosen": [None, A("b")], "rejected": one}, "quad"), (inspect_data.EXAMPLE, "quad"),
    ):  # fmt: skip
        assert inspect_data.kind_of(record) == kind


def test_what_is_no_quadruple_says_what_it_has(tmp_path, capsys):
    file = write(tmp_path / "records.jsonl", [{"prompt": "a", "response": "b"}])
    fails(
        inspect_data, ["--data", str(file), "--kind", "quad"], capsys,
        "field 'chosen': is missing (found: prompt, response)",
    )  # fmt: skip
