"""From what models write to corrections: golden texts, guards, unknown symbols, pieces of long texts, drafts."""

from __future__ import annotations

from collections import Counter

import pytest

from fusion_jax.correction.inputs import token_ids
from fusion_jax.correction.outputs import (
    EMPTY,
    GLUED,
    RESTORED,
    TOO_LONG,
    UNENDED,
    GuardSettings,
    chat_corrections,
    chat_text,
    chunks,
    corrected_in_chunks,
    corrections,
    decoded_text,
    draft_triples,
    guarded,
    restored,
)
from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.errors import InputError
from tests.correction.toy import golden, wordpiece

OFF = GuardSettings(guards=False, unk_restore=False)


@pytest.mark.parametrize("case", golden()["toy_tokenizer"]["cases"])
def test_golden_decoding(case):
    assert decoded_text(wordpiece(), case["ids"]) == case["decoded_skip_special_no_spaces"]


@pytest.mark.parametrize("case", golden()["decode_text_llm"])
def test_golden_chat_texts(case):
    assert chat_text(case["decoded"]) == case["expected"]


def test_the_marker_begins_a_line():
    """A source that spells it out, and a text without its prompt."""
    assert chat_text("x\nInput:写 Output:你好\nOutput: 你 好") == "你好"
    assert chat_text(" 我 好 ") == "我好" and chat_text("Output:") == ""


@pytest.mark.parametrize("case", golden()["chunking"])
def test_golden_chunks(case):
    assert chunks(case["text"], case["max_length"]) == case["chunks"]


def test_long_texts_are_corrected_in_pieces():
    asked = []

    def correct(texts):
        asked.extend(texts)
        return [text.upper() for text in texts]

    found = corrected_in_chunks(["abcdefg", "", "hij"], correct, longest=3, simplified=lambda t: t.replace("E", "e"))
    assert found == ["ABCDeFG", "", "HIJ"] and asked == ["abc", "def", "g", "", "hij"]
    assert corrected_in_chunks(["一" * 250], list) == ["一" * 250]


def test_guards_return_the_source():
    sources = ["我爱", "我爱", "我爱", "I like it"]
    texts = ["", "我" * 24, "我" * 25, "Ilikeit"]
    assert guarded(sources, texts, GuardSettings()) == (["我爱", "我" * 24, "我爱", "Ilikeit"], {EMPTY: 1, TOO_LONG: 1, GLUED: 1})
    assert guarded(sources, texts, OFF) == (texts, {GLUED: 1})
    assert chat_corrections(["我", "我"], ["x\nOutput: ", "Output:你"]) == (["我", "你"], {EMPTY: 1})


@pytest.mark.parametrize(("source", "unknown", "output", "expected"), [
    ("我爱龘。", [(2, 3)], "我爱?。", "我爱龘。"),
    ("我爱龘。", [(2, 3)], "我爱。", "我爱龘。"),  # a deletion is refused
    ("我爱龘。", [(2, 3)], "我爱书。", "我爱龘。"),  # so is another character
    ("我爱龘。", [(2, 3)], "你爱?了。", "你爱龘了。"),  # other edits are not
    ("龘我gpu", [(0, 1), (2, 5)], "?你?", "龘你gpu"),
    ("gpu", [(0, 3)], "", "gpu"),
    ("我 爱 gpu 吗", [(4, 7)], "我爱?吗", "我爱gpu吗"),
    ("我爱。", [], "我?爱?。", "我爱。"),  # what the source does not know vanishes
    ("我爱", [], "我们爱", "我们爱"),
    ("unknown我", [(0, 7)], "?", "unknown"),
    ("龘龘", [(0, 1), (1, 2)], "?", "龘龘"),
])  # fmt: skip
def test_unknown_symbols_stand_as_they_stood(source, unknown, output, expected):
    assert restored(source, unknown, [None if c == "?" else c for c in output]) == expected


def test_corrections_of_an_encoder_decoder():
    """Unknown are 龘, [ and the word gpu; the model has put in 了, and answers nothing to the second source."""
    tokenizer = wordpiece()
    sources = ["我去龘gpu", "龘龘", "我去学校", "我[SEP]爱"]
    outputs = [[2, 5, 12, 13, 1, 1, 3], [2, 3], [2, 3], [2, 5, 1, 1, 1, 6, 3]]
    found = corrections(sources, outputs, tokenizer)
    assert found.texts == ["我去了龘gpu", "龘龘", "我去学校", "我[SEP]爱"] and found.counts == {RESTORED: 3, EMPTY: 1}
    plain = corrections(sources, outputs, tokenizer, OFF)
    assert plain.texts == ["我去了", "", "", "我爱"] and plain.counts == Counter()
    guards = corrections(sources, outputs, tokenizer, GuardSettings(unk_restore=False))
    assert guards.texts == ["我去了", "龘龘", "我去学校", "我爱"] and guards.counts == {EMPTY: 2}


def test_what_is_known_comes_back_whatever_the_guards():
    tokenizer = wordpiece()
    sources = ["我爱学习中文。", "abc，3", "他去 了学校GPU"]
    outputs = [[2, *ids, 3, 0] for ids in token_ids(tokenizer, sources)]
    for settings in (GuardSettings(), OFF):
        assert corrections(sources, outputs, tokenizer, settings).texts == ["我爱学习中文。", "abc，3", "他去了学校GPU"]


def test_one_output_for_each_source():
    for call in (lambda: corrections(["我"], [], wordpiece()), lambda: chat_corrections(["我"], ["a", "b"])):
        with pytest.raises(InputError, match=r"'outputs': there are \d outputs for 1 sources"):
            call()


def test_drafts_without_an_end_are_left_out():
    pairs = [Pair("a", "b"), Pair("c", "d"), Pair("e", "f")]
    triples, counts = draft_triples(pairs, ["x", "", "z"], [True, True, False])
    assert triples == [Triple("a", "b", "x"), Triple("c", "d", "")] and counts == {UNENDED: 1}
    assert draft_triples(pairs[:1], ["x"], [True])[1] == Counter()
    with pytest.raises(InputError, match="no draft has an end"):
        draft_triples(pairs, ["x", "y", "z"], [False] * 3)
