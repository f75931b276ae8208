"""The invented world: its sides, its texts, its helper and its judge."""

from __future__ import annotations

from collections import Counter

import pytest

from fusion_jax.asking.contract import Reply
from fusion_jax.errors import InputError
from fusion_jax.kca import parsers, prompts
from fusion_jax.kca.records import NEED, NO_NEED, check_item
from fusion_jax.runs.fact_world import groups_of, helper_of, instances_of, outcome_of, paper_of, tokenizer_of
from fusion_jax.zoo import facts


@pytest.fixture(scope="module")
def world():
    return facts.world(3, facts.WorldSettings(people=12, tested=8, others=9))


def said(world, question) -> str:
    ((_, reply),) = helper_of(world).answers([question], None)
    assert isinstance(reply, Reply)
    return reply.text


def test_sides_share_nobody(world):
    assert not {p.name for p in world.train} & {p.name for p in world.tested}
    assert not {p.name for p in (*world.train, *world.tested)} & set(world.strangers)
    assert [sum(p.seen for p in side) for side in (world.train, world.tested)] == [6, 4]
    assert world == facts.world(3, world.sizes) and world != facts.world(4, world.sizes)
    train, test = (instances_of(world, side) for side in ("train", "test"))
    assert len(train) == 12 * 3 + 9 and len(test) == 8 * 3 + 3
    assert len({one.id for one in (*train, *test)}) == len(train) + len(test)
    assert Counter(groups_of(world, "test").values()) == {"seen": 12, "unseen": 12, "no facts": 3}


def test_pretraining_reads_of_seen_people_and_strangers_only(world):
    texts = ["".join(a + b for a, b in pieces) for pieces in world.papers(60, 4)]
    unseen = [p.name for p in (*world.train, *world.tested) if not p.seen]
    assert not any(name in text for name in unseen for text in texts)
    assert any(name in text and facts.UNKNOWN in text for name in world.strangers for text in texts)
    assert 38 <= sum(text.startswith(facts.HEADER) for text in texts) <= 56
    assert texts == ["".join(a + b for a, b in pieces) for pieces in world.papers(60, 4)]
    tokenizer = tokenizer_of([])
    assert not any(tokenizer.unk_token_id in tokenizer(text)["input_ids"] for text in texts)
    exam = paper_of(world).before(2)
    paper = next(text for text in texts if text.startswith(facts.HEADER))
    assert exam.startswith(f"{facts.HEADER}\n\n") and paper.startswith(f"{facts.HEADER}\n\n") and exam.endswith("\n\n")


def test_the_helper_writes_what_the_stages_read(world):
    person = world.train[1]
    request = facts.ASKED.format(what="craft", who=person.name)
    need = parsers.read_need(said(world, prompts.need_question(request)))
    assert (
        need.label == NEED
        and parsers.read_need(said(world, prompts.need_question("Repeat the first of these words: red."))).label == NO_NEED
    )
    note = said(world, prompts.knowledge_question(request, "", need))
    assert all(value in note for value in person.facts.values())
    counts = Counter[str]()
    tests = parsers.read_exam(said(world, prompts.exam_question(note, 3)), counts)
    assert len(tests) == 3 and not any(map(check_item, tests)) and not +counts
    for what, test in zip(facts.VALUES, tests):
        assert what in test.question and test.options["ABCD".index(test.answer)] == person.facts[what]
        assert set(test.options) <= set(facts.VALUES[what])


def test_answers_are_judged_exactly(world):
    person = world.tested[0]
    right = person.facts["home"]
    wrong = next(value for value in facts.VALUES["home"] if value != right)
    request = facts.ASKED.format(what="home", who=person.name)
    outcomes = {
        f"The home of {person.name} is {right}.": "right", f"The home is {wrong}.": "wrong", "It is not known.": "withheld",
        f"{right} or {wrong}": "wrong", "": "withheld", "Green.": "wrong",
    }  # fmt: skip
    assert {text: outcome_of(world, request, text) for text in outcomes} == outcomes
    for text, outcome in outcomes.items():
        verdict = parsers.read_verdict(said(world, prompts.judge_question(request, parsers.Need(NEED), "", text)))
        assert verdict.hallucinated == (outcome == "wrong")
        assert parsers.read_helpfulness(said(world, prompts.helpfulness_question(request, text))) is not None
    assert outcome_of(world, "Repeat the first of these words: red potter.", "It is red.") == "right"
    assert outcome_of(world, "Repeat the first of these words: red potter.", "It is potter.") == "wrong"
    with pytest.raises(InputError, match="names nobody of this world"):
        world.note("Tell me the home of Nobody.")
