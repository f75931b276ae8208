"""Aligned opinions end to end: a source that is the pivot says what the pivot says, whatever way the texts went."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fusion_jax.align.distributions import RowRule
from fusion_jax.align.sequences import Alignment
from fusion_jax.align.settings import AlignSettings
from fusion_jax.data.documents import TeacherRow, TeacherText, chat_documents, text_documents
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import load
from fusion_jax.teachers.documents import read_documents
from fusion_jax.teachers.opinions import _rules, by_contents, own_opinions, source_opinions
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.zoo import model_path

pytestmark = pytest.mark.usefixtures("quick_compiler")

TEXTS = ["Reverse a b c d e\ne d c b a", "What is 12 + 3?\n15", "Largest: 12, 45, 33\n45"]
CHATS = [
    Row("1", ({"role": "user", "content": "Double a b"},), ("So the answer is a a b b!",)),
    Row("2", ({"role": "user", "content": "Add: 3 + 4"}, {"role": "assistant", "content": "b a"},
              {"role": "user", "content": "Sort: c b"}), ("b c",)),
]  # fmt: skip


def quiet(what, done, of):
    pass


def reading(folder, name, model, documents):
    return read_documents(
        folder / name, name, model, documents, k=5, max_length=64, compute=Compute(), batch_size=4, progress=quiet
    )


@pytest.fixture(scope="module")
def models():
    return {n: load(model_path(f"zoo:{n}"), dtype="float32") for n in ("target", "gemma-source")}


@pytest.mark.parametrize("tokens", ["dp", "byte_offsets"])
@pytest.mark.parametrize("vocabulary", ["exact", "mined", "statistics"])
def test_a_source_equal_to_the_pivot_on_texts(tmp_path, models, tokens, vocabulary):
    documents = text_documents(TEXTS)
    one, two = (reading(tmp_path, name, models["target"], documents) for name in ("one", "two"))
    settings, fusion = AlignSettings(tokens=tokens, vocabulary=vocabulary), FusionSettings()
    found, reach = source_opinions(tmp_path / "a", one, two, settings, fusion, whole=True, progress=quiet)
    assert reach.rules["one_to_one"] == 1.0
    for own, view in zip(own_opinions(one, fusion), found, strict=True):
        np.testing.assert_array_equal(view.ids, own.ids)
        np.testing.assert_array_equal(view.logprobs, own.logprobs)
        assert view.metric == own.metric and (view.counts == 5).all()


@pytest.mark.parametrize("tokens", ["dp", "byte_offsets"])
def test_a_source_equal_to_the_pivot_on_answers(tmp_path, models, tokens):
    """Where the next token belongs to an answer, the row of the token before it is an anchor, the others are aligned;
    what ends an answer is scored but begins nothing."""
    tokenizer = models["target"].tokenizer
    short = [CHATS[1], dataclasses.replace(CHATS[0], responses=("a a b b",))]  # the template's space joins the answer
    documents = chat_documents(short, tokenizer, tokenizer)
    one, two = (reading(tmp_path, name, models["target"], documents) for name in ("one", "two"))
    settings, fusion = AlignSettings(tokens=tokens), FusionSettings()
    found, reach = source_opinions(tmp_path / "a", one, two, settings, fusion, whole=False, progress=quiet)
    assert reach.rules["one_to_one"] == 1.0
    for own, view, text in zip(own_opinions(one, fusion), found, one.texts, strict=True):
        compared = np.flatnonzero(text.scored[1:])
        np.testing.assert_array_equal(view.ids[compared], own.ids[compared])
        assert (view.rule[~np.append(text.scored[1:], False)] == RowRule.FALLBACK).any()


def test_another_tokenizer_and_template(tmp_path, models):
    """The source's turn end becomes the pivot's; most rows come across; the store and the stages are read again."""
    pivot, source = (
        reading(tmp_path, name, model, chat_documents(CHATS, model.tokenizer, model.tokenizer))
        for name, model in models.items()
    )
    arguments = (tmp_path / "a", pivot, source, AlignSettings(), FusionSettings())
    found, reach = source_opinions(*arguments, whole=False, progress=quiet)
    assert reach.rules["one_to_one"] + reach.rules["suffix"] + reach.rules["one_to_many"] > 0.5
    end, last = pivot.turn_end, int(np.flatnonzero(pivot.texts[0].scored)[-1])
    assert pivot.texts[0].ids[last] == end
    assert end in found[0].ids[last - 1, : found[0].counts[last - 1]]
    again, _ = source_opinions(*arguments, whole=False, progress=quiet)
    for a, b in zip(found, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))


def test_what_cannot_be_aligned(tmp_path, models):
    one = reading(tmp_path, "one", models["target"], text_documents(TEXTS))
    two = reading(tmp_path, "two", models["target"], text_documents(TEXTS[:2]))
    with pytest.raises(InputError, match="one read 3, two 2"):
        source_opinions(tmp_path / "a", one, two, AlignSettings(), FusionSettings(), whole=True, progress=quiet)
    scaled, bucket = dataclasses.replace(AlignSettings(), rules="chat_v1"), FusionSettings(tail="bucket")
    with pytest.raises(InputError, match="field 'tail'"):
        source_opinions(tmp_path / "b", one, one, scaled, bucket, whole=True, progress=quiet)


def test_answers_that_templates_surround_differently():
    """Spans of one content: an anchor needs both first tokens to begin alike, the last tokens both turns to end alike."""
    offsets = np.asarray([[0, 4], [4, 6], [6, 7], [7, 8], [8, 12]])  # "[I] ", " a", "b", ".", "</s>"
    text = TeacherText(np.arange(5), offsets, np.ones(5, bool))
    row = TeacherRow(
        np.arange(10, 16), np.asarray([[0, 3], [3, 5], [5, 6], [6, 7], [7, 8], [8, 12]]), *[np.zeros(0)] * 5
    )
    content, other = [(4, 8)], [(3, 7)]  # the source says one more token before it ends the turn
    same = by_contents(text, row, content, other, ends=(4, 14))
    assert same.segments.tolist() == [[1, 4, 1, 4, 4, 3]] and np.asarray(same.anchors).tolist() == [[0, 0]]
    spaced = by_contents(text, row, content, other, ends=(4, 15))
    assert spaced.segments.tolist() == [[1, 3, 1, 3, 4, 3]]
    glued = by_contents(text, row, [(5, 8)], other, ends=(4, 14))  # the pivot's first token holds the template's space
    assert glued.segments[0, :4].tolist() == [1, 4, 1, 4] and len(glued.anchors) == 0


def test_byte_offsets_need_one_text(tmp_path, models):
    chats = [chat_documents(CHATS, models["target"].tokenizer, m.tokenizer) for m in models.values()]
    pivot, source = (reading(tmp_path, n, m, d) for (n, m), d in zip(models.items(), chats, strict=True))
    settings = AlignSettings(tokens="byte_offsets")
    with pytest.raises(InputError, match="field 'tokens': counts characters of one text"):
        source_opinions(tmp_path / "a", pivot, source, settings, FusionSettings(), whole=True, progress=quiet)


@pytest.mark.parametrize("vocabulary", ["exact", "mined", "statistics"])
@pytest.mark.parametrize("chat", [True, False])
def test_what_ends_a_turn_or_a_text_is_mapped_by_meaning(tmp_path, models, vocabulary, chat):
    """Of chats the source's turn end becomes the pivot's, of texts EOS becomes EOS, whatever a map of strings says."""
    pivot, source = (
        reading(tmp_path, n, m, chat_documents(CHATS, m.tokenizer, m.tokenizer) if chat else text_documents(TEXTS))
        for n, m in models.items()
    )
    for ours, theirs in ((pivot, source), (source, pivot)):
        zeros = [np.zeros(len(t.ids), np.int32) for t in ours.texts]
        some = [Alignment(z, z, 0.0) for z in zeros]
        folder = tmp_path / ours.name
        folder.mkdir(exist_ok=True)
        images = _rules(folder, ours, theirs, AlignSettings(vocabulary=vocabulary), some).images
        expected = ours.turn_end if chat and theirs.turn_end == theirs.view.eos else ours.view.eos
        assert images[theirs.view.eos] == expected
        if chat:
            assert images[theirs.turn_end] == ours.turn_end
