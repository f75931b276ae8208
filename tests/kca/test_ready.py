"""Ready records find their sources, and no source is lost that says itself that it needs no facts."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fusion_jax.errors import InputError
from fusion_jax.kca.exam import Sat
from fusion_jax.kca.partition import classified, passed
from fusion_jax.kca.ready import NOT_READY, Ready, with_sources
from fusion_jax.kca.records import KNOWN, NO_FACT, NO_LABEL, NO_QUESTION, UNKNOWN, Instance, Source, read_instances
from tests.small import write

ITEM = {"question": "Which?", "options": ["a", "b", "c", "d"], "analysis": "so", "answer": "(B)"}
RIGHT, WRONG = Sat((-9.0, 0.0, -9.0, -9.0), True), Sat((0.0, -9.0, -9.0, -9.0), False)


def stage_1(text: str, said: str = "<need>") -> dict:
    return {"original_input": {"input": text, "output": f"said {text}"}, "analysis": "why", "final_prediction": said}


def stage_3(text: str) -> dict:
    return {"tests": [ITEM], "original_input": {"knowledge": f"facts of {text}", "original_input": stage_1(text)}}


def test_ready_records_find_their_sources():
    """By id, else by instruction and in order; sources of which nothing is said are lost, and what is too much is counted."""

    def ready(identity, text, label=KNOWN):
        return Instance(Source(identity, text, "r"), label=label)

    sources = [Instance(Source(str(i), text, f"said {i}")) for i, text in enumerate(["x", "x", "y", "z"], 1)]
    counts = Counter[str]()
    found = with_sources(
        [ready("a", "x", UNKNOWN), ready("b", "x"), ready("3", "y"), ready("4", "another")], sources, counts
    )
    assert [one.label for one in found] == [UNKNOWN, KNOWN, KNOWN, ""] and found[3].lost == NOT_READY
    assert [one.source for one in found] == [one.source for one in sources]
    assert counts["ready records of no source"] == 1


def test_sources_that_need_no_facts_are_kept_beside_published_exams(tmp_path):
    """Stage 3 holds instances that need facts alone: source = D_unk + D_co + D_inc + losses. Of two instructions that
    are alike the one that needs facts has the exam."""
    counts, no = Counter[str](), "<no need>"
    lines = [stage_1("a", no), stage_1("b"), stage_1("c", no), stage_1("c"), stage_1("d"), stage_1("e", "")]
    sources = read_instances(str(write(tmp_path / "stage1.jsonl", lines)), "error", counts)
    lines = [stage_3("b"), stage_3("c"), stage_3("unheard of")]
    joined = Ready(str(write(tmp_path / "stage3.jsonl", lines)), 0.6).joined(sources, counts)
    sat = [[], [RIGHT], [], [WRONG], [], []]
    classes = [classified(one, own, 0.6) for one, own in zip(joined, sat, strict=True)]
    found = passed(classes, sat, 0.6)
    assert found.sizes == {NO_FACT: 2, KNOWN: 1, UNKNOWN: 1} and found.lost == {NOT_READY: 1, NO_LABEL: 1}
    assert sum(found.sizes.values()) + sum(found.lost.values()) == len(sources)
    assert [one.source for one in classes] == [one.source for one in sources] and joined[3].knowledge == "facts of c"
    assert counts["ready records of no source"] == 1


def placed(tmp_path) -> list[Instance]:
    """Eleven lines of stage 3, and one behind them that needs no facts."""
    lines = [*(stage_3(f"{i}") for i in range(11)), stage_1("rhyme", "<no need>")]
    return read_instances(str(write(tmp_path / "instructions.jsonl", lines)), "error", Counter())


def test_published_exam_lines_find_their_instances_by_place(tmp_path):
    """Numbers are read as numbers: the eleventh question of an instance is not one of another instance."""
    lines = [{**ITEM, "question": f"{place}/{test}?", "idx": f"idx_sft{place}_test{test}"} for place, test in
             [(1, 0), (1, 10), (10, 0), (0, 3), (2, 0)]]  # fmt: skip
    lines[-1]["options"] = ["a", "a", "b", "c"]
    counts, sources = Counter[str](), placed(tmp_path)
    found = Ready(str(write(tmp_path / "exam.jsonl", lines)), 0.6).joined(sources, counts)
    assert [[test.question for test in found[place].tests] for place in (0, 1, 10)] == [
        ["0/3?"],
        ["1/0?", "1/10?"],
        ["10/0?"],
    ]
    assert found[2].lost == NO_QUESTION and counts["question: options alike"] == 1 and found[3].lost == NOT_READY
    assert (
        not found[11].lost
        and found[1].knowledge == "facts of 1"
        and [one.source for one in found] == [one.source for one in sources]
    )


@pytest.mark.parametrize("indent", [None, 2])
def test_published_verdicts_find_their_instances_by_place(tmp_path, indent):
    file = tmp_path / "verdicts.json"
    verdicts = {
        "threshold_0.6": {"idx_sft1": True, "idx_sft10": False, "idx_sft1_test3": True},
        "threshold_0.9": {"idx_sft1": False},
    }
    file.write_text(json.dumps(verdicts, indent=indent))
    counts = Counter[str]()
    found = Ready(str(file), 0.6).joined(placed(tmp_path), counts)
    assert +counts == {"verdicts on a question that is no instance": 1}
    assert [one.label for one in found] == ["", KNOWN, *[""] * 8, UNKNOWN, ""] and found[0].lost == NOT_READY
    assert Ready(str(file), 0.9).joined(placed(tmp_path), Counter())[1].label == UNKNOWN
    with pytest.raises(InputError, match=r"has no verdicts at 0.3, but threshold_0.6, threshold_0.9"):
        Ready(str(file), 0.3).joined(placed(tmp_path), Counter())


@pytest.mark.parametrize(
    "idx, given, problem",
    [("idx_sft12_test0", {}, "holds 12 records, and the place 12 is told of"),
     ("idx_sft11_test0", {}, "'12' stands at place 11, and needs no facts"),
     ("sft1", {}, "is 'sft1', no place"), ("idx_sft1_test0", {"on_bad": "skip"}, "leaves records out")],
)  # fmt: skip
def test_places_of_other_files_are_refused(tmp_path, idx, given, problem):
    ready = Ready(str(write(tmp_path / "exam.jsonl", [{**ITEM, "idx": idx}])), 0.6, **given)
    with pytest.raises(InputError, match=problem):
        ready.joined(placed(tmp_path), Counter())
    with pytest.raises(InputError, match=r"is missing: this file|no place"):
        ready.joined(None, Counter())
