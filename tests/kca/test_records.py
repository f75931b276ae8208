"""Instances in every form in which they are found, and what is refused or counted in each of their fields."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.kca.papers import read_paper
from fusion_jax.kca.records import (
    KNOWN,
    NEED,
    NO_LABEL,
    NO_NEED,
    NO_QUESTION,
    UNKNOWN,
    ExamItem,
    Instance,
    Need,
    Source,
    as_record,
    instance_in,
    instance_of,
    read_instances,
)

ITEM = {"question": "Which?", "options": ["a", "b", "c", "d"], "analysis": "so", "answer": "(B)"}
SOURCE = {"input": "ask", "output": "said"}
STAGE_1 = {"raw_response": "...", "stop_reason": "stop", "original_input": SOURCE, "analysis": "a date",
           "final_prediction": "<need>", "queris": "when\nwhere"}  # fmt: skip
STAGE_2 = {"raw_response": "...", "knowledge": "It was 1911.", "original_input": STAGE_1}


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_published_forms_and_ours_read_alike(tmp_path):
    """A line of stage 3, with all stages nested, is the instance that this project writes and reads."""
    counts = Counter[str]()
    (found,) = read_instances(
        written(tmp_path / "exam.jsonl", {**STAGE_2, "tests": [ITEM], "original_input": STAGE_2}), "error", counts
    )
    assert found == Instance(Source("1", "ask", "said"), Need(NEED, "a date", ("when", "where")), "It was 1911.",
                             (ExamItem("Which?", ("a", "b", "c", "d"), "B", "so"),))  # fmt: skip
    assert instance_of(Fields(as_record(found)), counts) == found and not +counts
    twins = dataclasses.replace(found, tests=(found.tests[0]._replace(options=("a", "a", "b", "c")),))
    assert instance_in(Fields(as_record(twins))) == twins  # a stage's own line, as it was written
    lines = [SOURCE, {"instruction": "ask", "response": "said", "id": 7}, {"prompt": "ask", "response": "said", "prompt_id": "x"},
             {**STAGE_1, "final_prediction": "<no need>"}, STAGE_1, {**STAGE_1, "final_prediction": ""}]  # fmt: skip
    read = read_instances(written(tmp_path / "some.jsonl", *lines), "error", counts)
    assert [one.id for one in read] == ["1", "7", "x", "4", "5", "6"]
    assert [one.need.label for one in read] == ["", "", "", NO_NEED, NEED, ""]
    assert [one.lost for one in read] == [""] * 5 + [NO_LABEL]


def test_published_training_items(tmp_path):
    item = {"id": "a", "conversations": [{"from": "human", "value": "It was 1911.\nask"}, {"from": "gpt", "value": "said"}],
            "class": UNKNOWN, "analysis": "a date", "knowledge": "It was 1911."}  # fmt: skip
    other = {**item, "id": "b", "class": KNOWN, "knowledge": ""}
    found, plain = read_instances(written(tmp_path / "p.jsonl", item, other), "error", Counter())
    assert (found.source.instruction, found.source.response, found.label) == ("ask", "said", UNKNOWN)
    assert plain.source.instruction == "It was 1911.\nask" and plain.label == KNOWN and not plain.lost


BAD = [
    ({**SOURCE, "input": 3}, "input", "is 3, not a string"), ({**SOURCE, "input": " "}, "input", "is blank"),
    ({"output": "said"}, "input", "is missing, and so are instruction and prompt"),
    ({"input": "ask"}, "output", "is missing, and so are response and answer"),
    ({**SOURCE, "output": ""}, "output", "is blank"), ({**SOURCE, "id": True}, "id", "neither text nor a whole number"),
    ({**SOURCE, "label": "perhaps"}, "label", "'perhaps' is not supported"),
    ({**STAGE_1, "final_prediction": "<Need>"}, "final_prediction", "neither <need> nor <no need>"),
    ({**SOURCE, "queries": {"a": 1}}, "queries", "not a list of texts"), ({**SOURCE, "queris": [1]}, "queries", "not a list of texts"),
    ({**SOURCE, "analysis": []}, "analysis", "not a string"), ({**SOURCE, "knowledge": 1}, "knowledge", "not a string"),
    ({**SOURCE, "original_input": 5}, "original_input", "not an object"), ({**SOURCE, "class": "known"}, "class", "is not supported"),
    ({**SOURCE, "tests": {}}, "tests", "not a list"), ({**SOURCE, "tests": ["x"]}, "tests[0]", "not an object"),
    ({**SOURCE, "tests": [ITEM, {**ITEM, "options": [1, 2, 3, 4]}]}, "tests[1].options", "what is no text"),
    ({**SOURCE, "tests": [{**ITEM, "answer": None}]}, "tests[0].answer", "is missing"),
    ({**SOURCE, "tests": [{**ITEM, "question": 2}]}, "tests[0].question", "not a string"),
    ({"id": "a", "conversations": [{"from": "human", "value": "x"}]}, "conversations", "no single turn of human and gpt"),
]  # fmt: skip


@pytest.mark.parametrize("references, last", [(["first", "last"], "last"), ([], ""), ("one", "one")])
def test_of_several_references_the_last_one_is_taken(references, last, tmp_path):
    """Of a test set; what is trained on has one response."""
    file = written(tmp_path / "in.jsonl", {"input": "ask", "output": references})
    assert read_instances(file, "error", Counter(), answered=False)[0].source.response == last
    if isinstance(references, list):
        with pytest.raises(InputError, match="not a string"):
            read_instances(file, "error", Counter())


@pytest.mark.parametrize("record, field, problem", BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_a_broken_record_is_refused_or_counted(record, field, problem, tmp_path):
    file = written(tmp_path / "in.jsonl", SOURCE, record)
    with pytest.raises(InputError) as error:
        read_instances(file, "error", Counter())
    assert (
        error.value.record == 2 and error.value.field == field and problem in error.value.problem and error.value.cure
    )
    counts = Counter[str]()
    assert len(read_instances(file, "skip", counts)) == 1 and sum(counts.values()) == 1


def test_questions_that_are_none_are_left_out(tmp_path):
    """Of an instance that is left without one, the loss is told; ids twice and empty files are refused."""
    bad = [
        {**ITEM, "options": ["a"] * 4},
        {**ITEM, "options": ["a", "b", "c"]},
        {**ITEM, "answer": "E"},
        {**ITEM, "question": ""},
    ]
    counts = Counter[str]()
    first, second = read_instances(
        written(tmp_path / "t.jsonl", {**STAGE_2, "tests": bad}, {**STAGE_2, "tests": [*bad, ITEM]}), "error", counts
    )
    assert (first.lost, first.tests) == (NO_QUESTION, ()) and (second.lost, len(second.tests)) == ("", 1)
    assert set(+counts) == {"question: options alike", "question: not four options", "question: answer is none of A to D",
                            "question: blank question"} and sum(counts.values()) == 8  # fmt: skip
    with pytest.raises(InputError, match="'a' stands twice"):
        read_instances(
            written(tmp_path / "twice.jsonl", {**SOURCE, "id": "a"}, {**SOURCE, "id": "a"}), "error", Counter()
        )
    with pytest.raises(InputError, match="holds no usable record"):
        read_instances(written(tmp_path / "none.jsonl", {"x": 1}), "skip", Counter())
    assert not read_instances(written(tmp_path / "q.jsonl", {"input": "ask"}), "error", Counter(), answered=False)[
        0
    ].source.response


def test_exemplars_of_a_file(tmp_path):
    assert read_paper(written(tmp_path / "e.jsonl", ITEM), Counter()).exemplars[0].answer == "B"
    with pytest.raises(InputError, match=r"record 1, field 'options': options alike"):
        read_paper(written(tmp_path / "bad.jsonl", {**ITEM, "options": ["a", "a", "b", "c"]}), Counter())
