"""What models read: the golden texts and ids of both forms, cuts, labels, and what is dropped."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest

from fusion_jax.correction.inputs import (
    PAIR_CUT,
    SOURCE_CUT,
    TARGET_CUT,
    UNKNOWN,
    Encoded,
    Lengths,
    encode_items,
    encode_sources,
    framed,
    input_text,
    marks_of,
    padded,
    parts,
    shifted,
    token_ids,
)
from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.correction.prompts import (
    CUT,
    DIFFERENT,
    NOTHING_LEFT,
    TEMPLATES,
    encode_prompts,
    encode_texts,
    framing_of,
    masked_row,
    whole_text,
)
from fusion_jax.data.batches import buckets_of, collate
from fusion_jax.errors import InputError
from tests.correction.toy import golden, merging, wordpiece

TOY = golden()["toy_tokenizer"]["cases"]
INPUTS = golden()["input_strings"]
MODES = {"correct": "correct", "align_forward": "align_forward", "align_reverse": "align_reverse"}
ITEM = Triple("我去学校", "我去了学校", "我爱学校")


def triple(case):
    return Triple(case["source"], case["target"], case["pred"])


@pytest.mark.parametrize("case", [c for c in TOY if c["text"].strip()])
def test_golden_ids(case):
    """Texts of which [SEP] is a part are a sentence and its draft."""
    texts, tokenizer = case["text"].split("[SEP]"), wordpiece()
    ids = token_ids(tokenizer, texts)
    longest = case["max_length"] or 1000
    assert list(framed(ids, marks_of(tokenizer), longest)[0]) == case["ids"]
    if len(texts) == 1:
        assert encode_sources(tokenizer, texts, case["max_length"]) == [tuple(case["ids"])]


@pytest.mark.parametrize("case", INPUTS)
def test_golden_texts(case):
    item, framing = triple(case), framing_of(merging())
    for mode in MODES:
        assert input_text(item, mode) == case["seq2seq"][mode]
        assert whole_text(item, mode, framing) == case["decoder_only"][mode]
    assert framing.bos + TEMPLATES.prompt(item, "correct") == case["decoder_only"]["inference"]
    assert input_text(item, "source_source", "\t") == case["baseline_modes"]["src-src"]
    assert input_text(item, "pred_pred", "\t") == case["baseline_modes"]["pred-pred"]


def test_golden_templates():
    known = golden()["templates_rewritten_v1"]
    assert TEMPLATES.prompt(Pair("{source}", "x"), "correct") == known["correct"]
    both = TEMPLATES.prompt(Triple("a", "x", "b"), "align_forward")
    assert both == known["align"].replace("{input}", "a\tb")


def test_golden_decoder_inputs():
    case = golden()["tiny_bart"]
    assert shifted(np.asarray(case["labels"]), 2, 0).tolist() == case["decoder_input_ids"]


@pytest.mark.parametrize("mode", MODES)
def test_ids_are_those_of_the_published_text(mode):
    """Tokenised as one text with the tokenizer's own special tokens and truncation."""
    tokenizer, lengths = wordpiece(), Lengths(source=6, pair=9, target=7)
    items = [ITEM, Triple("他去 了学校，GPU", "abc龘", "35"), Triple("爱", "文", "")]
    encoded, counts = encode_items(items, tokenizer, [mode], lengths)
    longest = lengths.source if mode == "correct" else lengths.pair
    for item, one in zip(items, encoded, strict=True):
        text, how = input_text(item, mode), {"truncation": True}
        assert list(one.inputs[0]) == tokenizer(text, max_length=longest, **how)["input_ids"]
        assert list(one.labels) == tokenizer(item.target, max_length=lengths.target, **how)["input_ids"]
    cut = {SOURCE_CUT: 1} if mode == "correct" else {PAIR_CUT: 2}
    assert counts == Counter({**cut, UNKNOWN: 1})


def test_modes_stand_in_the_order_asked_for():
    modes = ("pred_pred", "correct", "source_source")
    (one,), counts = encode_items([ITEM], wordpiece(), modes)
    assert one.inputs == (
        (2, 5, 6, 7, 14, 3, 5, 6, 7, 14, 3), (2, 5, 12, 7, 14, 3), (2, 5, 12, 7, 14, 3, 5, 12, 7, 14, 3),
    )  # fmt: skip
    assert one.labels == (2, 5, 12, 13, 7, 14, 3) and one.index == 0 and not counts
    _, cut = encode_items([ITEM], wordpiece(), modes, Lengths(source=5, pair=8, target=6))
    assert cut == {SOURCE_CUT: 1, PAIR_CUT: 2, TARGET_CUT: 1}


def test_special_tokens_that_a_sentence_spells_out_are_text():
    ids = token_ids(wordpiece(), ["我[SEP]爱", "[CLS]"])
    assert ids == [(5, 1, 1, 1, 6), (1, 1, 1)]


def test_pairs_have_no_draft():
    assert parts(Pair("a", "b"), "correct") == ("a",) and parts(Pair("a", "b"), "source_source") == ("a", "a")
    with pytest.raises(InputError, match="record 2, field 'pred': align_reverse reads a draft"):
        encode_items([ITEM, Pair("a", "b")], wordpiece(), ["correct", "align_reverse"])


def test_many_items_are_those_of_single_ones():
    items = [Triple("我去学校" * (i % 5 + 1), "我去了学校" * (i % 3 + 1), "我" * (i % 7)) for i in range(2500)]
    found, counts = encode_items(items, wordpiece(), list(MODES), Lengths(12, 20, 9))
    assert [one.index for one in found] == list(range(2500)) and counts[TARGET_CUT] == sum(i % 3 == 2 for i in range(2500)) + sum(
        i % 3 == 1 for i in range(2500)
    )
    for i in (0, 1023, 1024, 2499):
        (alone,), _ = encode_items([items[i]], wordpiece(), list(MODES), Lengths(12, 20, 9))
        assert (found[i].inputs, found[i].labels) == (alone.inputs, alone.labels)


def test_an_example_is_what_an_encoder_decoder_is_trained_on():
    example = Encoded(((2, 5, 3), (2, 5, 3, 6, 3)), (2, 7, 3), 4).example(3, mode=1)
    assert example.rows == ((2, 5, 3, 6, 3, 3, 2, 7, 3),) and example.starts == (6,) and example.index == 4
    batch = collate([example], buckets_of([example]))
    assert batch.prompts[0, :5].tolist() == [2, 5, 3, 6, 3] and batch.prompt_lengths.tolist() == [5]
    assert batch.tokens[0, 0, :3].tolist() == [3, 2, 7] and batch.labels[0, 0, :3].tolist() == [2, 7, 3]
    assert batch.scored[0, 0].tolist() == [True] * 3 + [False] * 13


def test_padding_on_either_side():
    assert padded([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert padded([[1, 2], []], 9, 3, left=True).tolist() == [[9, 1, 2], [9, 9, 9]]
    with pytest.raises(InputError, match="a row has 2 tokens, 1 at most"):
        padded([[1, 2]], 0, 1)


def test_tokenizers_without_the_tokens():
    with pytest.raises(InputError, match="'cls_token': is not set"):
        encode_items([ITEM], merging())
    with pytest.raises(InputError, match="'eos_token': is not set"):
        encode_texts([ITEM], wordpiece(), ["correct"], 50)
    with pytest.raises(InputError, match=r"'pair'.*out of range"):
        Lengths(pair=2)


@pytest.mark.parametrize("case", golden()["label_mask"])
def test_golden_label_masks(case):
    ids, labels, mask = masked_row(case["full_ids"], case["prompt_length"], case["cutoff_len"], case["pad_id"])
    assert ids.tolist() == case["input_ids"] and labels.tolist() == case["labels"]
    assert mask.tolist() == case["attention_mask"] and (labels != -100).sum() == case["supervised_tokens"]


@pytest.mark.parametrize("case", INPUTS)
def test_a_row_is_bos_prompt_target_eos(case):
    tokenizer, item = merging(), triple(case)
    (one,), counts = encode_texts([item], tokenizer, list(MODES), 500)
    for mode, ids, start in zip(MODES, one.rows, one.starts, strict=True):
        assert tokenizer.decode(list(ids)) == case["decoder_only"][mode]
        assert tokenizer.decode(list(ids[start:])) == item.target + "</s>"
        assert encode_prompts([item], tokenizer, mode) == [ids[:start]]
    # "Output:" and "我" are one token in the published code, and their whole is no token of the prompt
    assert counts == (Counter({DIFFERENT: 3}) if item.target.startswith("我") else Counter())
    assert one.example(1).rows == (one.rows[1],) and one.example(1).starts == (one.starts[1],)


def test_rows_without_a_token_of_the_target_are_dropped_and_counted():
    tokenizer = merging()
    items = [Triple("花。", "花很漂亮。", "花。"), Triple("花" * 20, "花。", "花")]
    (long, _), _ = encode_texts(items, tokenizer, ["correct", "align_forward"], 500)
    cutoff = max(long.starts) + 1
    (kept,), counts = encode_texts(items, tokenizer, ["correct", "align_forward"], cutoff)
    assert kept.index == 0 and counts == {NOTHING_LEFT: 1, CUT: 1}
    assert kept.rows == tuple(row[:cutoff] for row in long.rows) and len(kept.rows[1]) == kept.starts[1] + 1
    with pytest.raises(InputError, match=f"'cutoff': {cutoff - 1} tokens hold no prompt"):
        encode_texts(items[1:], tokenizer, ["correct", "align_forward"], cutoff - 1)
    with pytest.raises(InputError, match="'pred': align_forward reads a draft"):
        encode_texts([Pair("花", "花")], tokenizer, ["align_forward"], 500)


def test_eos_pads_where_nothing_else_does():
    tokenizer = copy.deepcopy(merging())
    tokenizer.pad_token = None
    assert framing_of(tokenizer).pad == framing_of(tokenizer).eos_id == 3
    tokenizer.bos_token = None
    item = Pair("花。", "花很漂亮。")
    (one,), counts = encode_texts([item], tokenizer, ["correct"], 500)
    assert tokenizer.decode(list(one.rows[0])) == TEMPLATES.prompt(item, "correct") + item.target + "</s>" and not counts
