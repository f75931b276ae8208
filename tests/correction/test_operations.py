"""FCGEC's operations: the golden references, combinations, and operations that make no sense."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from fusion_jax.correction.operations import load_fcgec, references
from fusion_jax.correction.pairs import Pair, Sentence, pairs_of
from fusion_jax.data.messages import Place
from fusion_jax.errors import InputError
from tests.conftest import GOLDEN

CASES = json.loads((GOLDEN / "alirector.json").read_text(encoding="utf-8"))["fcgec_operations"]
HERE = Place("f.json", "id1")


def modify(pos: Any, tag: Any, label: Any) -> dict[str, Any]:
    return {"pos": pos, "tag": tag, "label": label}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    found = references(case["sentence"], [case["operation"]], HERE)
    assert list(found) == case["references"]


@pytest.mark.parametrize(("operations", "expected"), [
    # every combination of labels, the first label slowest
    ([{"Insert": [modify(0, "INS_1", ["x", "y"])], "Modify": [modify(3, "MOD_1", ["p", "q"])]}],
     ("axbcpe", "axbcqe", "aybcpe", "aybcqe")),
    # a label that is a text; several corrections, of which one makes the same
    ([{"Delete": [0]}, {"Modify": [modify(0, "MOD_1", "")]}, {"Delete": [4]}], ("bcde", "abcd")),
    # the tag decides
    ([{"Insert": [modify(1, "MOD_2+DEL_1", ["x"])]}], ("axde",)), ([{"Modify": [modify(4, "INS_1", ["x"])]}], ("abcdex",)),
    # positions are those of the switched sentence
    ([{"Switch": [4, 3, 2, 1, 0], "Insert": [modify(0, "INS_1", ["x"])], "Delete": [4]}], ("exdcb",)),
    # behind a deleted or replaced character, and in the order given at one place
    ([{"Delete": [1], "Insert": [modify(1, "INS_1", "x"), modify(1, "INS_1", "y")]}], ("axycde",)),
    ([{"Modify": [modify(0, "MOD_2", "x"), modify(2, "MOD_1", "y")], "Insert": [modify(1, "INS_1", "z")]}], ("xzyde",)),
])  # fmt: skip
def test_corrections_of_abcde(operations, expected):
    assert references("abcde", operations, HERE) == expected


BAD = [
    ([{"Delete": [5]}], r"operation\[0\].Delete'.*is 5, not a position from 0 to 4"), ([{"Delete": [-1]}], "is -1, not a position"),
    ([{"Delete": [True]}], "is True, not a position"), ([{"Delete": 3}], "is 3, not a list"), ([{"Delete": [1, 1]}], "changes character 1 twice"),
    ([{"Switch": [0, 1, 2, 3]}], "is no order of the 5 characters"), ([{"Switch": [0, 1, 2, 3, 3]}], "is no order"), ([{"Switch": "a"}], "is no order"),
    ([{"Modify": [modify(3, "MOD_3", "x")]}], r"Modify\[0\].tag'.*replaces characters 3 to 6 of 5"), ([{"Modify": [modify(3, "MOD_0", "x")]}], "replaces characters 3 to 3"),
    ([{"Modify": [modify(1, "MOD_3", "x")], "Delete": [3]}], "changes character 3 twice"),
    ([{"Modify": [modify(1, "MOD_3", "x")], "Insert": [modify(2, "INS_1", "y")]}], "changes character 3 twice"),
    ([{"Modify": [modify(1, "MOD_2", "x"), modify(2, "MOD_1", "y")]}], "changes character 2 twice"),
    ([{"Insert": [modify(5, "INS_1", "x")]}], r"Insert\[0\].pos'.*is 5, not a position from -1 to 4"), ([{"Insert": [modify(-2, "INS_1", "x")]}], "is -2"),
    ([{"Modify": [modify(-1, "MOD_1", "x")]}], "is -1, not a position from 0"), ([{"Modify": [modify("1", "MOD_1", "x")]}], "is '1', not a position"),
    ([{"Modify": [modify(1, "DEL_1", "x")]}], "is 'DEL_1', not like INS_1"), ([{"Modify": [modify(1, None, "x")]}], "is None, not like"),
    ([{"Modify": [modify(1, "MOD_1", [])]}], "not a text or a list of texts"), ([{"Modify": [modify(1, "MOD_1", [1])]}], "not a text or a list"),
    ([{"Modify": [modify(1, "MOD_1", "a\tb")]}], r"Modify\[0\].label'.*holds a tab"), ([{"Modify": ["x"]}], "is 'x', not an object"),
    ([{"Replace": []}], r"operation\[0\].Replace'.*is no known operation"), ([{}], "not a correction"), (["x"], "is 'x', not a correction"), ([], "holds no correction"),
    ([{"Delete": [0, 1, 2, 3, 4]}], "leaves nothing of the sentence"),
]  # fmt: skip


@pytest.mark.parametrize(("operations", "told"), BAD)
def test_operations_that_make_no_sense(operations, told):
    with pytest.raises(InputError, match=f"f.json, record id1, field '.*{told}"):
        references("abcde", operations, HERE)


def test_combinations_are_bounded_before_they_are_made():
    labels = [str(i) for i in range(1000)]
    huge = {"Modify": [modify(i, "MOD_1", labels) for i in range(5)]}
    with pytest.raises(InputError, match="makes 1000000000000000 references, 256 at most"):
        references("abcde", [huge], HERE)
    assert len(references("abcde", [{"Modify": [modify(0, "MOD_1", labels)]}], HERE, most=1000)) == 1000


def record(operation: Any, flag: Any = 1, sentence: Any = "abcde") -> dict[str, Any]:
    return {"sentence": sentence, "error_flag": flag, "error_type": "CR", "operation": operation, "version": "x"}


def test_a_file_of_records(tmp_path):
    records = {
        "one": record('[{"Delete": [3]}, {"Delete": [4]}]'), "two": record("[]", 0), "three": record([{"Delete": [0]}]),
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(records))
    sentences, dropped = load_fcgec(tmp_path / "a.json")
    assert dropped == Counter() and sentences == [
        Sentence("one", "abcde", ("abce", "abcd")), Sentence("two", "abcde", ("abcde",)), Sentence("three", "abcde", ("bcde",)),
    ]  # fmt: skip
    assert pairs_of(sentences)[0] == [Pair("abcde", "abce"), Pair("abcde", "abcde"), Pair("abcde", "bcde")]


@pytest.mark.parametrize(("bad", "told"), [
    (record("[{"), "is not valid JSON"), (record('{"Delete": [1]}'), "is not a JSON list"), (record("[]", None), "'error_flag': is missing.*test file has no answers"),
    (record("[]", "1"), "'error_flag': is '1', not 0 or 1"), (record("[]", True), "'error_flag': is True"), (record("[]"), "holds no correction"),
    (record('[{"Delete": [1]}]', 0), "changes a sentence that error_flag calls right"), (record("[]", 0, ""), "'sentence': is blank"),
    (record(3), "is 3, not a list"), (7, "is 7, not an object"), (record("[{\"Delete\": [9]}]"), "is 9, not a position"),
])  # fmt: skip
def test_a_record_that_makes_no_sense_is_named_or_counted(tmp_path, bad, told):
    (tmp_path / "a.json").write_text(json.dumps({"good": record("[]", 0), "bad": bad}))
    with pytest.raises(InputError, match=f"a.json, record bad.*{told}"):
        load_fcgec(tmp_path / "a.json")
    sentences, dropped = load_fcgec(tmp_path / "a.json", on_bad="skip")
    assert [s.name for s in sentences] == ["good"] and sum(dropped.values()) == 1


def test_a_list_is_no_file_of_fcgec(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="is not a JSON object"):
        load_fcgec(tmp_path / "a.json")
