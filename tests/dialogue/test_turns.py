"""Files of turns and entities: read as MAKER's, refused by file, record and field, or counted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fusion_jax.dialogue.knowledge import knowledge_of, read_knowledge
from fusion_jax.dialogue.turns import CUT_DIALOGUE, UNKNOWN_VALUE, read_turns, turns_of
from fusion_jax.errors import InputError
from tests.small import write

PLACES = [
    {"name": "Curry House", "area": "north", "food": "indian", "phone": "01223 111"},
    {"name": "river inn", "food": None, "area": "West", "phone": 5},
]
TURN = {
    "did": 4, "type": "Restaurant", "context_used": "<user> I want a  cheap place", "output_used": "<sys> Curry House .",
    "gold_entities": ["curry_house"], "kb": [{"name": "Curry_House", "ref": "AB1"}], "gt_db_idx": [0, 1],
    "attributes_value_times": [[1]],
}  # fmt: skip


@pytest.fixture
def knowledge():
    return knowledge_of(PLACES, "camrest")


def test_a_knowledge_base_is_in_lower_case_and_in_one_order(tmp_path):
    path = tmp_path / "all_db.json"
    path.write_text(json.dumps(PLACES))
    for file in (path, write(tmp_path / "all_db.jsonl", PLACES)):
        found = read_knowledge(file, "camrest")
        assert [list(entity.items()) for entity in found.entities] == [
            [("name", "curry house"), ("area", "north"), ("food", "indian"), ("phone", "01223 111")],
            [("name", "river inn"), ("area", "west"), ("food", "dontknow"), ("phone", "5")],
        ]
        assert found.names == ("curry house", "river inn") and len(found) == 2
        assert found.texts()[1].startswith("<database> name river inn <sep_attributes> area west")
        assert "food" not in found.texts(keep_missing=False)[1]


def test_names_by_data_set_and_without_one():
    rows = [
        {"poi": "blue cafe", "event": "dontknow"},
        {"poi": "dontknow", "event": "dinner"},
        {"location": "alton"},
        {"day": "monday"},
    ]
    assert knowledge_of(rows, "smd").names == ("blue cafe", "dinner", "alton", None)
    assert knowledge_of([{"name": "dontknow"}, {"name": ""}], "multiwoz").names == (None, None)
    assert len(knowledge_of([], "camrest")) == 0


def test_a_turn_is_read(knowledge):
    turn = turns_of([TURN], knowledge).turns[0]
    assert (turn.dialogue, turn.domain) == (4, "restaurant")
    assert (turn.context, turn.response) == ("<user> i want a cheap place", "<sys> curry house .")
    assert turn.gold == ("curry house",) and turn.kb == ({"name": "curry house", "ref": "ab1"},)
    assert turn.candidates(knowledge, "condensed") == turn.candidates(knowledge, "large") == (0, 1)
    assert not turn.calls_api
    few = {k: v for k, v in TURN.items() if k not in ("gt_db_idx", "kb", "type")}
    bare = turns_of([few], knowledge, scale="large").turns[0]
    assert bare.kb == () and bare.domain == "" and bare.candidates(knowledge, "large") == (0, 1)
    with pytest.raises(InputError, match="dialogue 4, field 'gt_db_idx': is missing"):
        bare.candidates(knowledge, "condensed")
    called = {**TURN, "output_used": "<sys-api> restaurant area north"}
    assert turns_of([called], knowledge_of(PLACES, "multiwoz")).turns[0].calls_api


def test_an_empty_knowledge_base_has_turns():
    turn = turns_of([{**TURN, "gt_db_idx": []}], knowledge_of([], "camrest")).turns[0]
    assert turn.own == ()


def test_what_is_strange_is_counted(knowledge):
    others = [{**TURN, "did": 5, "gold_entities": ["ab1", "green_leaf", "curryhouse"]}, TURN]
    assert turns_of([TURN, *others], knowledge).noted == Counter({UNKNOWN_VALUE: 1, CUT_DIALOGUE: 1})
    assert turns_of([TURN, TURN], knowledge).noted == Counter()


WRONG = {
    "no context": ({"context_used": None}, "context_used", "is missing"),
    "blank context": ({"context_used": "  "}, "context_used", "is blank"),
    "context without a speaker": (
        {"context_used": "hello"},
        "context_used",
        "begins with 'hello', not with <user> or <sys>",
    ),
    "empty context": ({"context_used": "<user> "}, "context_used", "says nothing behind <user>"),
    "another data set": ({"output_used": "<sys-api> x"}, "output_used", "begins with '<sys-api>', not with <sys>"),
    "no response": ({"output_used": 3}, "output_used", "is int, not text"),
    "half a pair": ({"context_used": "<user> \ud800"}, "context_used", "half of a surrogate pair"),
    "no dialogue": ({"did": None}, "did", "is missing"),
    "named dialogue": ({"did": "mul4"}, "did", "is 'mul4', not a whole number"),
    "true dialogue": ({"did": True}, "did", "is True"),
    "gold is a text": ({"gold_entities": "north"}, "gold_entities", "is 'north', not a list"),
    "gold is missing": ({"gold_entities": None}, "gold_entities", "is missing"),
    "gold is blank": ({"gold_entities": ["north", "_"]}, "gold_entities[1]", "is '_', not a text"),
    "kb is no list": ({"kb": {"name": "x"}}, "kb", "is dict of 1, not a list"),
    "kb of texts": ({"kb": ["curry"]}, "kb[0]", "is 'curry', not an object"),
    "kb of lists": ({"kb": [{"name": ["x"]}]}, "kb[0].name", "is list of 1, not text"),
    "kb twice": ({"kb": [{"name": "x", "Name": "y"}]}, "kb[0].Name", "stands twice"),
    "no places": ({"gt_db_idx": None}, "gt_db_idx", "is missing"),
    "place out of range": ({"gt_db_idx": [0, 2]}, "gt_db_idx[1]", "is 2, and the knowledge base has 2 entities"),
    "negative place": ({"gt_db_idx": [-1]}, "gt_db_idx[0]", "is -1, not a whole number"),
}


@pytest.mark.parametrize("change, field, problem", WRONG.values(), ids=WRONG)
def test_malformed_turns_are_refused_or_counted(tmp_path, knowledge, change, field, problem):
    records = [TURN, {**TURN, **change}]
    with pytest.raises(InputError) as refused:
        turns_of(records, knowledge, file="train.json")
    told = str(refused.value)
    assert told.startswith(f"train.json, record 2, field '{field}': ") and problem in told and refused.value.cure
    read = turns_of(records, knowledge, on_bad="skip")
    assert len(read.turns) == 1 and sum(read.dropped.values()) == 1
    with pytest.raises(InputError, match="no usable turn is left"):
        turns_of(records[1:], knowledge, on_bad="skip")


def test_files_are_refused(tmp_path, knowledge):
    broken = tmp_path / "train.json"
    broken.write_text('[{"did": 1}')
    with pytest.raises(InputError, match=r"train\.json: is not JSON"):
        read_turns(broken, knowledge)
    with pytest.raises(InputError, match="there is no such file"):
        read_turns(tmp_path / "none.json", knowledge)
    with pytest.raises(InputError, match="no usable turn is left"):
        read_turns(write(tmp_path / "empty.jsonl", []), knowledge)


def test_knowledge_bases_are_refused(tmp_path):
    path = write(tmp_path / "db.jsonl", [{"title": "curry house", "area": "north"}])
    with pytest.raises(
        InputError, match=r"db\.jsonl, field 'name': no entity has the attribute 'name' \(they have title, area\)"
    ):
        read_knowledge(path, "camrest")
    with pytest.raises(InputError, match="'poi' or 'event' or 'location'"):
        read_knowledge(path, "smd")
    with pytest.raises(InputError, match=r"record 2, field 'stars': is 4\.5, not text"):
        knowledge_of([PLACES[0], {"name": "x", "stars": 4.5}], "camrest")
    with pytest.raises(InputError, match="is a blank name"):
        knowledge_of([{"name": "x", " ": "y"}], "camrest")
