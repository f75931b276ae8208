"""Ready records find their sources, and no source is lost that says itself that it needs no facts."""

from __future__ import annotations

from collections import Counter

from fusion_jax.kca.exam import Sat
from fusion_jax.kca.partition import classified, passed
from fusion_jax.kca.ready import NOT_READY, settled, with_sources
from fusion_jax.kca.records import KNOWN, NO_FACT, NO_LABEL, UNKNOWN, Instance, Source, read_instances
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
    exams = read_instances(str(write(tmp_path / "stage3.jsonl", lines)), "error", counts)
    joined = with_sources([settled(one) for one in exams], sources, counts)
    sat = [[], [RIGHT], [], [WRONG], [], []]
    classes = [classified(one, own, 0.6) for one, own in zip(joined, sat, strict=True)]
    found = passed(classes, sat, 0.6)
    assert found.sizes == {NO_FACT: 2, KNOWN: 1, UNKNOWN: 1} and found.lost == {NOT_READY: 1, NO_LABEL: 1}
    assert sum(found.sizes.values()) + sum(found.lost.values()) == len(sources)
    assert [one.source for one in classes] == [one.source for one in sources] and joined[3].knowledge == "facts of c"
    assert counts["ready records of no source"] == 1
