"""Corpora: what is read, what is written, what is refused by name, and the training list."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fusion_jax.correction.pairs import (
    HELD_OUT,
    NO_ERROR,
    NO_REFERENCE,
    NOT_ANNOTATED,
    UNCHANGED,
    Pair,
    Sentence,
    Triple,
    load_pairs,
    load_para,
    load_sources,
    load_triples,
    pairs_of,
    training_list,
    write_hypotheses,
    write_lines,
    write_pairs,
    write_para,
)
from fusion_jax.errors import InputError

PAIRS = [Pair("我昨天买一本书。", "我昨天买了一本书。"), Pair("他很 good。", "他很好。"), Pair("我昨天买一本书。", "我昨天买了一本书。")]
TRIPLES = [Triple("我昨天买一本书。", "我昨天买了一本书。", "我昨天买书。"), Triple("他很。", "他很好。", "")]
SENTENCES = [
    Sentence("1", "他去了学校昨天。", ("他昨天去了学校。", "昨天他去了学校。")),
    Sentence("2", "我很好。", ("我很好。",)),
    Sentence("x-3", "我很好。", (NO_ERROR,)),
    Sentence("4", "好我。", (NOT_ANNOTATED,)),
]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_pairs_and_triples_are_read_as_they_were_written(tmp_path, name):
    write_pairs(tmp_path / name, PAIRS)
    assert load_pairs(tmp_path / name) == (PAIRS, Counter())
    write_pairs(tmp_path / name, TRIPLES)
    assert load_triples(tmp_path / name)[0] == TRIPLES
    assert load_pairs(tmp_path / name)[0] == [Pair(t.source, t.target) for t in TRIPLES]  # further fields are ignored


def test_para_files_are_read_as_they_were_written(tmp_path):
    write_para(tmp_path / "a.para", SENTENCES)
    assert (tmp_path / "a.para").read_text().splitlines()[0] == "1\t他去了学校昨天。\t他昨天去了学校。\t昨天他去了学校。"
    assert load_para(tmp_path / "a.para") == (SENTENCES, Counter())
    assert [s.right for s in SENTENCES] == [False, True, True, False]


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbf1\ta\tb\r\n2\tc\td\r\n", b"1\ta\tb\n2\tc\td", b"1\ta\tb\r2\tc\td\r"])
def test_marks_and_ends_of_lines_do_not_matter(tmp_path, raw):
    (tmp_path / "a.para").write_bytes(raw)
    assert load_para(tmp_path / "a.para")[0] == [Sentence("1", "a", ("b",)), Sentence("2", "c", ("d",))]


def test_segmented_files_lose_their_spaces(tmp_path):
    (tmp_path / "a.para").write_text("1\t他 去 学校 。\t他 去 了 学校 。\n", encoding="utf-8")
    assert load_para(tmp_path / "a.para", segmented=True)[0] == [Sentence("1", "他去学校。", ("他去了学校。",))]
    assert load_para(tmp_path / "a.para")[0][0].source == "他 去 学校 。"


def test_sources_are_what_is_behind_the_last_tab(tmp_path):
    (tmp_path / "a.txt").write_text("我很好。\n7\t他 很好。\n8\tx\t她。", encoding="utf-8")
    assert load_sources(tmp_path / "a.txt") == ["我很好。", "他 很好。", "她。"]
    (tmp_path / "a.txt").write_text("我。\n\n他。\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.txt, record 2, field 'source': is blank"):
        load_sources(tmp_path / "a.txt")


GOOD = {"source": "a", "target": "b"}
BAD = [
    ({"source": "a"}, "target", "is missing"), ({"source": "a", "target": ""}, "target", "is blank"),
    ({"source": " ", "target": "b"}, "source", "is blank"), ({"source": 3, "target": "b"}, "source", "is int, not text"),
    ({"source": None, "target": "b"}, "source", "is missing"), ({"source": ["a"], "target": "b"}, "source", "is list, not text"),
    ({"source": "a\tb", "target": "b"}, "source", "holds a tab"), ({"source": "a", "target": "b\nc"}, "target", "end of a line"),
    ({"source": "a", "target": "b\u2028c"}, "target", "end of a line"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "field", "told"), BAD)
def test_a_malformed_pair_is_named_or_counted(tmp_path, record, field, told):
    (tmp_path / "a.json").write_text(json.dumps([GOOD, record]))
    with pytest.raises(InputError, match=rf"a\.json, record 2, field '{field}': .*{told}"):
        load_pairs(tmp_path / "a.json")
    pairs, dropped = load_pairs(tmp_path / "a.json", on_bad="skip")
    assert pairs == [Pair("a", "b")] and sum(dropped.values()) == 1 and told in next(iter(dropped))


def test_a_half_of_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "\\ud800", "target": "b"}\n')
    with pytest.raises(InputError, match=r"record 2, field 'source'.*half of a surrogate pair"):
        load_pairs(tmp_path / "a.jsonl")


def test_a_draft_must_be_there_but_may_be_empty(tmp_path):
    write_pairs(tmp_path / "a.json", PAIRS)
    with pytest.raises(InputError, match="record 1, field 'pred': is missing"):
        load_triples(tmp_path / "a.json")


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text('[{"source": "a"}]')
    with pytest.raises(InputError, match=r"no usable pair is left \(malformed: field 'target' is missing: 1\)"):
        load_pairs(tmp_path / "a.json", on_bad="skip")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match=r"no usable pair is left \(the file is empty\)"):
        load_pairs(tmp_path / "a.json")


@pytest.mark.parametrize(("line", "told"), [
    ("2\tb", "has 2 of at least 3 columns"), ("", "has 1 of at least 3"), ("2\tb\t", "'reference 1': is blank"),
    ("2\t\tc", "'source': is blank"), ("\tb\tc", "'id': is blank"), ("2\tb\tc\t ", "'reference 2': is blank"),
])  # fmt: skip
def test_a_malformed_line_is_named_or_counted(tmp_path, line, told):
    (tmp_path / "a.para").write_text(f"1\ta\tb\n{line}\n3\te\tf\n")
    with pytest.raises(InputError, match=rf"a\.para, record 2.*{told}"):
        load_para(tmp_path / "a.para")
    sentences, dropped = load_para(tmp_path / "a.para", on_bad="skip")
    assert [s.name for s in sentences] == ["1", "3"] and sum(dropped.values()) == 1


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.para").write_bytes(b"1\ta\tb\n2\t\xff\tb\n")
    with pytest.raises(InputError, match=r"a\.para, record 2: is not UTF-8"):
        load_para(tmp_path / "a.para")
    with pytest.raises(InputError, match="there is no such file"):
        load_para(tmp_path / "b.para")


def test_hypotheses_stand_beside_their_sources(tmp_path):
    write_hypotheses(tmp_path / "a.para", SENTENCES[:2], ["他昨天去学校了。", ""])
    assert (tmp_path / "a.para").read_text() == "1\t他去了学校昨天。\t他昨天去学校了。\n2\t我很好。\t\n"
    with pytest.raises(InputError, match="there are 1 texts for 2 sentences"):
        write_hypotheses(tmp_path / "a.para", SENTENCES[:2], ["a"])
    write_lines(tmp_path / "a.txt", ["a", "", "b"])
    assert (tmp_path / "a.txt").read_text() == "a\n\nb\n"


def test_nothing_is_half_written(tmp_path):
    with pytest.raises(InputError, match=r"record 2, field 'column 3': holds a tab"):
        write_hypotheses(tmp_path / "a.para", SENTENCES[:2], ["a", "b\nc"])
    assert not list(tmp_path.iterdir())


def test_training_pairs_of_references():
    pairs, dropped = pairs_of(SENTENCES)
    assert pairs == [Pair("他去了学校昨天。", "他昨天去了学校。"), Pair("我很好。", "我很好。"), Pair("我很好。", "我很好。")]
    assert dropped == {NO_REFERENCE: 1}


def test_the_training_list_is_lang8_then_copies_of_hsk():
    """Without what is held out, up to white space, and without pairs that change nothing."""
    lang8 = [Pair("a", "b"), Pair("c", "c"), Pair("d", "held out"), Pair("a", "b")]
    hsk = [Pair("e", "f"), Pair("held  out", "g")]
    pairs, dropped = training_list(lang8, hsk, held_out=["heldout", "x"], copies=3)
    assert pairs == [Pair("a", "b"), Pair("a", "b"), *3 * [Pair("e", "f")]]
    assert dropped == {UNCHANGED: 1, HELD_OUT: 2}


def test_sizes_of_the_published_list():
    """1,092,285 pairs of Lang8 and five times 95,320 of HSK (spec section 2.2)."""
    lang8, hsk = [Pair("a", "b")] * 1_092_285, [Pair("c", "d")] * 95_320
    assert len(training_list(lang8, hsk)[0]) == 1_568_885
