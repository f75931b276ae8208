"""The small corpus of errors: right and wrong sentences, kinds, references, sides, files, tokenizers, models."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise

import jax
import numpy as np
import pytest

import fusion_jax as fj
from fusion_jax.correction.inputs import encode_items, token_ids
from fusion_jax.correction.outputs import decoded_text
from fusion_jax.correction.pairs import load_pairs, load_para
from fusion_jax.correction.prompts import encode_texts
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model, load, save
from fusion_jax.models.parameters import init_params
from fusion_jax.zoo.chinese import (
    ChineseSettings,
    Corpus,
    bart,
    by_character,
    characters,
    corpus,
    llama,
    right_sentences,
    wordpiece,
    write_corpus,
)
from fusion_jax.zoo.chinese_errors import KINDS, broken, changed, errors
from fusion_jax.zoo.chinese_grammar import Word, sentence, spelled

SMALL = ChineseSettings(lang8=600, hsk=80, dev=60, test=200)


@cache
def made() -> Corpus:
    return corpus(SMALL)


@cache
def sentences(count: int = 3000) -> list[tuple[Word, ...]]:
    rng = np.random.default_rng(3)
    return [sentence(rng) for _ in range(count)]


def test_sentences_end_and_have_a_part_for_each_word():
    for words in sentences():
        assert words[-1].part == "end" and words[-1].text in "。？" and 4 <= len(spelled(words)) <= 40
        assert all(word.text or word.rare for word in words)
        assert all(word.rare or word.usual is None for word in words)
    assert len({spelled(words) for words in sentences()}) > 2000


def test_rare_wordings_are_rare_and_most_have_a_usual_form():
    rare = [words for words in sentences() if any(word.rare for word in words)]
    assert 0.1 < len(rare) / len(sentences()) < 0.3
    changed_by = [words for words in rare if spelled(words) != spelled(words, usual=True)]
    assert len(changed_by) > 0.6 * len(rare)
    assert all(spelled(w) == spelled(w, usual=True) for w in sentences() if not any(word.rare for word in w))


def test_time_and_aspect_agree_in_right_sentences():
    """What was has 了 or is denied, what will be has a modal verb: so that an error can be seen."""
    for words in sentences():
        parts = [word.part for word in words]
        ends = [i for i, part in enumerate(parts) if part in ("comma", "end")]
        for start, end in pairwise([0, *ends]):
            clause = parts[start:end]
            assert "past" not in clause or "done" in clause or "not" in clause
            assert "future" not in clause or ("modal" in clause and "done" not in clause)


def test_every_error_makes_another_sentence_of_one_change():
    right = {spelled(words) for words in sentences()}
    seen = Counter[str]()
    for words in sentences()[:400]:
        for error in errors(words):
            source = changed(words, [error.change])
            assert source != spelled(words) and source not in right
            repaired = [changed(words, repair) for repair in error.repairs]
            assert len({source, spelled(words), *repaired}) == 2 + len(repaired)
            seen[error.kind] += 1
    assert set(seen) == set(KINDS) and min(seen.values()) > 100


def test_redundant_errors_are_longer_missing_ones_shorter_disordered_ones_shuffled():
    for words in sentences()[:400]:
        right = spelled(words)
        for error in errors(words):
            wrong = changed(words, [error.change])
            longer = len(wrong) - len(right)
            assert {"redundant": longer > 0, "missing": longer < 0}.get(error.kind, longer == 0)
            assert (error.kind == "disordered") == (sorted(wrong) == sorted(right))


def test_two_errors_are_both_in_the_sentence_and_all_references_repair_both():
    rng = np.random.default_rng(5)
    counts = Counter[int]()
    for words in sentences()[:500]:
        found = broken(words, 2, rng)
        counts[len(found.kinds)] += 1
        assert found.references[0] == spelled(words) and found.source not in found.references
        assert len(set(found.references)) == len(found.references)
    assert counts[2] > 350 and set(counts) <= {1, 2}
    untouched = broken(sentences()[0], 0, rng)
    assert untouched.kinds == () and untouched.references == (untouched.source,)


def test_conflicts_have_two_repairs():
    words = (Word("前天", "past"), Word("他", "subject"), Word("去", "verb"), Word("了", "done"), Word("学校", "goal"), Word("。", "end"))
    repaired = {changed(words, [e.change]): [changed(words, r) for r in e.repairs] for e in errors(words)}
    assert repaired["后天他去了学校。"] == ["后天他要去学校。"] and repaired["他去了学校前天。"] == ["他前天去了学校。"]
    assert repaired["前天他了学校。"] == [] and "前天他去学校。" in repaired and "前天他他去了学校。" in repaired


def test_the_training_list_is_lang8_and_copies_of_hsk():
    train = made().train
    assert len(train) == 600 + 5 * 80 and len(set(train[:600])) == 600
    copies = [train[600 + 80 * i : 680 + 80 * i] for i in range(5)]
    assert all(part == copies[0] for part in copies) and len(set(copies[0])) == 80
    assert all(pair.source != pair.target for pair in train)


def test_only_the_first_annotators_rewrite_what_is_right():
    """A longer verb of the source is gone from the target."""

    def rewritten(pairs):
        longer = ("阅读", "购买", "品尝", "欣赏")
        return sum(any(verb in p.source and verb not in p.target for verb in longer) for p in pairs)

    assert rewritten(made().train[:600]) > 5 and rewritten(made().train[600:]) == 0
    careful = corpus(ChineseSettings(lang8=600, hsk=80, dev=1, test=1, rewritten=0))
    assert rewritten(careful.train) == 0


def test_shares_of_the_test_sentences():
    test = made().test
    right = [m for m in test if not m.kinds]
    assert len(test) == 200 and len(right) == 60 and sum(m.rare for m in right) == 30
    assert all(m.sentence.right == (not m.kinds) for m in test)
    assert [m.sentence.name for m in test] == [str(i) for i in range(1, 201)]
    assert len({m.sentence.source for m in test}) == 200 and any(not m.kinds for m in test[:20])
    kinds = Counter(kind for m in test for kind in m.kinds)
    assert min(kinds[kind] for kind in KINDS) > 0.15 * kinds.total()
    several = sum(len(m.sentence.references) > 1 for m in test)
    assert 10 < several < 60


def test_sides_share_no_sentence():
    big = corpus(ChineseSettings(lang8=3000, hsk=300, dev=300, test=300))
    targets = {pair.target for pair in big.train}
    dev, test = ({m.sentence.references[0] for m in side} for side in (big.dev, big.test))
    assert not targets & dev & test and not dev & test
    usual = {p.target for p in corpus(ChineseSettings(lang8=3000, rewritten=1.0, dev=1, test=1)).train[:3000]}
    plain = {m.sentence.source for m in (*big.dev, *big.test) if not m.kinds and not m.rare}
    assert plain and not usual & plain


def test_the_seed_decides():
    assert corpus(SMALL) == made()
    other = corpus(ChineseSettings(lang8=600, hsk=80, dev=60, test=200, seed=1))
    assert other.train != made().train and other.test != made().test


def test_unchanged_pairs_take_the_place_of_others():
    train = corpus(ChineseSettings(lang8=600, hsk=80, dev=1, test=1, unchanged=0.3)).train
    same = sum(pair.source == pair.target for pair in train)
    assert len(train) == 1000 and abs(same - 300) < 60


def test_settings_out_of_range():
    for wrong in ({"right": 1.5}, {"lang8": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="out of range"):
            ChineseSettings(**wrong)


def test_the_files_are_read_by_the_loaders_of_real_corpora(tmp_path):
    again = write_corpus(tmp_path, SMALL)
    assert again == made() and load_pairs(tmp_path / "train.json") == (again.train, Counter())
    for side, known in (("dev", again.dev), ("test", again.test)):
        assert load_para(tmp_path / f"{side}.para") == ([m.sentence for m in known], Counter())
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [(r["id"], tuple(r["kinds"]), r["rare"]) for r in lines] == [(m.sentence.name, m.kinds, m.rare) for m in again.test]


def test_right_sentences_are_of_the_training_side():
    texts = right_sentences(500, 0)
    assert len(set(texts)) == 500 and texts == right_sentences(500, 0) != right_sentences(500, 1)
    assert not set(texts) & {m.sentence.source for m in (*made().dev, *made().test)}


def every_text() -> list[str]:
    sides = [m.sentence for m in (*made().dev, *made().test)]
    return [t for p in made().train for t in (p.source, p.target)] + [t for s in sides for t in (s.source, *s.references)]


def test_characters():
    assert 150 <= len(characters()) <= 260 and characters() == sorted(set(characters()))
    assert set("".join(every_text())) <= set(characters())
    for words in sentences():
        assert set(spelled(words) + spelled(words, usual=True)) <= set(characters())


def test_tokenizers_know_every_sentence():
    for tokenizer in (wordpiece(), by_character()):
        for text, ids in zip(every_text(), token_ids(tokenizer, every_text()), strict=True):
            assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
            assert decoded_text(tokenizer, ids) == text


def test_a_small_bart_reads_pairs(tmp_path):
    tokenizer = wordpiece()
    config = bart(tokenizer, width=32, layers=1)
    model = Model(config, init_params(config, jax.random.key(0)), tokenizer)
    (item, *_), counts = encode_items(made().train[:3], tokenizer)
    assert not counts and config.start == tokenizer.sep_token_id == item.labels[-1]
    read, before = np.asarray([item.inputs[0]]), np.asarray([(config.start, *item.labels[:-1])])
    found = np.asarray(jax.jit(lambda a, b: fj.logits(model, a, decoder_tokens=b))(read, before))
    assert found.shape == (1, len(item.labels), len(tokenizer)) and np.isfinite(found).all()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == config and tuple(again.tokenizer(made().train[0].source)["input_ids"]) == item.inputs[0]


def test_a_small_llama_reads_prompts(tmp_path):
    tokenizer = by_character()
    config = llama(tokenizer, width=32, layers=1)
    model = Model(config, init_params(config, jax.random.key(0)), tokenizer)
    (item, *_), counts = encode_texts(made().train[:3], tokenizer, ["correct"], config.max_positions)
    found = np.asarray(jax.jit(lambda tokens: fj.logits(model, tokens))(np.asarray(item.rows)))
    assert not counts and np.isfinite(found).all()
    pair = made().train[0]
    whole = f"<s>请修改下面句子中的语法错误，只输出改正后的句子。\nInput:{pair.source}\nOutput:{pair.target}</s>"
    assert tokenizer.decode(list(item.rows[0])) == whole
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.tokenizer(whole, add_special_tokens=False)["input_ids"] == list(item.rows[0])
