"""Classes of tokens on tokenizers of every notation, and coverage by class against counts by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.align.classes import CLASSES, class_of, token_classes
from fusion_jax.align.coverage import NamedTokenizer, align_texts, by_class, coverage
from fusion_jax.align.rules import RowRule, Rules, plan_of
from fusion_jax.align.views import TokenizerView, view_of
from fusion_jax.align.vocabulary import exact_map
from fusion_jax.data.raw_tokenizers import load_raw_tokenizer
from fusion_jax.models.folder import tokenizer_of
from fusion_jax.zoo import model_path
from tests.align.test_spelling import byte_level, sentencepiece

REAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
EXPECTED = {
    "letters": ["a", " the", "naïve", "Straße", "v2", "don't", "e.g."],
    "digits": ["7", " 2026", "3.14", "1,", "50%", "$5"],
    "punctuation": [".", " (", "...", "“", "—", "+", "=", "?!", "€", "--", " "],
    "newline": ["\n", "\n\n", "\r\n", " \n", "\n    "],
    "code": ["();", "my_name", "getName", "{", " ==", "->", "//", "</", "[i", "`", "x+=", "::", "    ", "\t"],
    "other scripts": ["的", " привет", "é的", "。", "नमस्ते", "🙂", "๒", "،", "∑", "\ufffd"],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_texts(name):
    assert {text: class_of(text) for text in EXPECTED[name]} == dict.fromkeys(EXPECTED[name], name)


def named(view: TokenizerView) -> dict[str, str]:
    return dict(zip(view.pieces, (CLASSES[c] for c in token_classes(view)), strict=True))


def test_notations():
    """What a piece spells decides, not how the tokenizer writes it."""
    bpe, spm = named(view_of(byte_level())), named(view_of(sentencepiece()))
    assert bpe["<|end|>"] == bpe["<|im_start|>"] == spm["<bos>"] == spm["<unk>"] == "specials"
    assert bpe["Ġthe"] == spm["▁the"] == bpe["naïve"] == "letters"
    assert bpe["ĊĊ"] == spm["<0x0A>"] == bpe["Ċ"] == spm["\n"] == "newline"
    assert spm["<0x41>"] == "letters" and spm["<0x37>"] == "digits" and bpe["<think>"] == "code"
    assert spm["<0xE4>"] == bpe["ç"] == spm["的"] == "other scripts"  # a byte of a character that is not there whole


@pytest.mark.parametrize("name", ["target", "llama-source", "gemma-source"])
def test_trained_tokenizers(name):
    """Every id has a class, which is that of what the tokenizer decodes it to where it decodes to whole text."""
    tokenizer = tokenizer_of(model_path(f"zoo:{name}"))
    view = view_of(tokenizer)
    classes = token_classes(view)
    assert classes.dtype == np.uint8 and len(classes) == view.size
    specials = {i for i in range(view.size) if CLASSES[classes[i]] == "specials"}
    assert specials == {i for i in range(view.size) if not view.pieces[i] or view.is_control(i)}
    assert set(tokenizer.all_special_ids) <= specials
    for number in sorted(set(range(view.size)) - specials):
        text = tokenizer.decode([number], clean_up_tokenization_spaces=False)
        if text.strip() and "\ufffd" not in text:
            assert CLASSES[classes[number]] == class_of(text)


@pytest.mark.skipif(not REAL.exists(), reason="there are no real tokenizers here")
@pytest.mark.parametrize(("file", "some"), [
    ("llama2.model", {"▁the": "letters", "<0x0A>": "newline", "▁return": "letters", "▁{": "code", "7": "digits",
                      "的": "other scripts", "</s>": "specials", "▁(": "punctuation", "();": "code"}),
    ("mistral-v3.model", {"▁the": "letters", "<0x0A>": "newline", "[INST]": "specials", "的": "other scripts"}),
    ("llama3.tiktoken", {"Ġthe": "letters", "Ċ": "newline", "Ġ{": "code", "123": "digits", "();": "code"}),
])  # fmt: skip
def test_real_tokenizers(file, some):
    found = named(view_of(load_raw_tokenizer(str(REAL / file))))
    assert {piece: found[piece] for piece in some} == some
    counts = {name: list(found.values()).count(name) for name in CLASSES}
    assert counts["letters"] > 0.4 * len(found) and all(counts[name] or name == "specials" for name in CLASSES)


def pair() -> tuple[NamedTokenizer, NamedTokenizer, Rules]:
    sides = [NamedTokenizer(t, view_of(t)) for t in (byte_level(), sentencepiece())]
    views = sides[0].view, sides[1].view
    return *sides, Rules(*views, exact_map(*views))


def test_coverage_by_class():
    """Shares by hand, from the plan of every text and the images of every token."""
    pivot, source, rules = pair()
    texts = align_texts(["the mé\n\tnot é 的的，on the\n\nme 饕 the é\n", "not on the me"], pivot, source, "chat_v2")
    found = coverage({"all": texts}, rules).classes
    ours, theirs = (token_classes(side.view) for side in (pivot, source))
    tokens, rows, kept, lost, astray, mass = (dict.fromkeys(CLASSES, 0) for _ in range(6))
    for text in texts:
        rule = plan_of(text.alignment, text.pivot_ids, text.source_ids, rules).rule
        for i, r in zip(text.pivot_ids, rule, strict=True):
            tokens[CLASSES[ours[i]]] += 1
            rows[CLASSES[ours[i]]] += r < RowRule.FALLBACK
        for i in text.source_ids:
            name, image = CLASSES[theirs[i]], rules.images[i]
            mass[name] += 1
            lost[name] += image < 0
            astray[name] += image >= 0 and bool(rules.altered[i])
            kept[name] += image >= 0 and not rules.altered[i]
    assert set(found) == {name for name in CLASSES if tokens[name] or mass[name]} >= {"letters", "newline"}
    for name, c in found.items():
        assert c.tokens == pytest.approx(tokens[name] / sum(tokens.values()))
        assert c.taken == pytest.approx(rows[name] / max(tokens[name], 1))
        assert c.mass == pytest.approx(mass[name] / sum(mass.values()))
        of = max(mass[name], 1)
        assert (c.kept, c.altered, c.unmapped) == pytest.approx((kept[name] / of, astray[name] / of, lost[name] / of))
    assert math.fsum(c.mass for c in found.values()) == pytest.approx(1)


def test_mass_may_be_probability():
    """Half of the mass on a piece without an image is half unmapped; classes that occur nowhere are left out."""
    _, source, rules = pair()
    mass = np.zeros(rules.source.size)
    here, gone = source.view.pieces.index("▁the"), int(np.flatnonzero(
        (rules.images < 0) & (token_classes(rules.source) == CLASSES.index("letters"))
    )[0])  # fmt: skip
    mass[[here, gone]] = 0.25
    nothing = np.zeros(rules.pivot.size, np.int64)
    found = by_class(rules, nothing, nothing, mass)
    assert set(found) == {"letters"} and found["letters"] == (0, 0, 1, 0.5, 0, 0.5)
