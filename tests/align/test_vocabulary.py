"""Views and maps: their content, their files, and the rules that no golden file shows."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from fusion_jax.align.sequences import Alignment, align
from fusion_jax.align.views import TokenizerView, fingerprint, view_of
from fusion_jax.align.vocabulary import (
    PairCounts,
    count_pairs,
    exact_map,
    load_map,
    mapping_statistics,
    mined_map,
)
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path


def view(*pieces: str, mark: str = "\u2581", **special: int) -> TokenizerView:
    return TokenizerView(pieces, pieces, mark, **special)


@pytest.mark.parametrize(
    ("name", "mark"), [("llama-source", None), ("qwen-source", "\u0120"), ("gemma-source", "\u2581")]
)
def test_view_of_a_tokenizer(name, mark):
    tokenizer = load_tokenizer(model_path(f"zoo:{name}"))
    found = view_of(tokenizer)
    ids = tokenizer("Add 12 and 30.")["input_ids"]
    assert [found.pieces[i] for i in ids] == tokenizer.convert_ids_to_tokens(ids)
    assert [found.decoded[i] for i in ids] == [tokenizer.decode([i]) for i in ids]
    assert found.size == len(tokenizer) and (found.bos, found.eos) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert found.mark == mark or (mark is None and found.mark in "\u2581\u0120")


def test_the_fingerprint_holds_all_content():
    base = TokenizerView(("a", "b"), ("a", "b"), "\u2581", bos=0)
    others = [
        replace(base, pieces=("a", "c")), replace(base, decoded=("ab", "")), replace(base, mark="\u0120"),
        replace(base, bos=None, eos=0), replace(base, bos=1), replace(base, pad=1),
    ]  # fmt: skip
    assert len({fingerprint(v) for v in [base, *others]}) == 7
    assert fingerprint(base) == fingerprint(replace(base))


@pytest.mark.parametrize(
    "bad", [{"pieces": ("a",)}, {"mark": ""}, {"eos": 2}, {"unk": -1}, {"pieces": (), "decoded": ()}]
)
def test_bad_views(bad):
    with pytest.raises(InputError):
        TokenizerView(**{"pieces": ("a", "b"), "decoded": ("a", "b"), "mark": "\u2581", **bad})


@pytest.mark.parametrize("other", [None, "zoo:target"])
def test_only_a_tokenizer_has_a_view(other):
    with pytest.raises(InputError, match=f"is {type(other).__name__}, not a transformers tokenizer. Give model.tok"):
        view_of(other)


def test_marks_inside_are_replaced_and_ids_without_a_piece_have_no_image():
    pivot, source = view("", "\u2581\u2581a", "b"), view("\u0120\u0120a", "", "c", "b", mark="\u0120")
    np.testing.assert_array_equal(exact_map(pivot, source).ids, [1, -1, -1, 2])
    np.testing.assert_array_equal(mined_map(pivot, source).ids, [1, -1, 2, 2])


def test_mined_is_the_plain_search():
    rng = random.Random(5)

    def pieces(count: int) -> list[str]:
        return list(dict.fromkeys("".join(rng.choices("abcdé\u2581", k=rng.randrange(1, 12))) for _ in range(count)))

    pivot, source = view(*pieces(300), "x" * 300), view(*pieces(3000), "y" * 300, "x" * 290, mark="\u0120")
    found = mined_map(pivot, source)
    expected = [min(range(pivot.size), key=lambda i: Levenshtein.distance(s, pivot.pieces[i])) for s in source.pieces]
    np.testing.assert_array_equal(found.ids, expected)
    assert found.ids.dtype == np.int32


def test_a_saved_map_is_read_again_with_its_own_tokenizers_only(tmp_path):
    pivot, source, path = view("a", "b", "c"), view("a", "z"), tmp_path / "map.json"
    saved = exact_map(pivot, source)
    saved.save(path)
    found = load_map(path, pivot, source)
    np.testing.assert_array_equal(found.ids, [0, -1])
    assert found.ids.dtype == np.int32 and (found.kind, found.pivot, found.source) == (
        "exact",
        saved.pivot,
        saved.source,
    )
    assert [p.name for p in tmp_path.iterdir()] == ["map.json"]
    with pytest.raises(InputError, match=r"another pivot tokenizer: 3 ids, fingerprint .* has 2 ids"):
        load_map(path, source, source)
    with pytest.raises(InputError, match="another source tokenizer: 2 ids"):
        load_map(path, pivot, view("a", "y"))


def test_files_that_hold_no_map(tmp_path):
    pivot, source, path = view("a", "b"), view("a"), tmp_path / "map.json"
    with pytest.raises(InputError, match="no such file"):
        load_map(path, pivot, source)
    exact_map(pivot, source).save(path)
    good = json.loads(path.read_text())
    bad = ["{", "[]", *({k: v for k, v in good.items() if k != name} for name in good)]
    bad += [
        {**good, "ids": [7]},
        {**good, "ids": ["a"]},
        {**good, "ids": [0.5]},
        {**good, "ids": [[0]]},
        {**good, "ids": [True]},
    ]
    for content in [*bad, {**good, "ids": [0, 0]}, {**good, "ids": [-1]}]:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError, match=r"map\.json"):
            load_map(path, pivot, source)


def test_pairs_count_each_source_id_of_a_range_once():
    pivot, source = view("a", "b"), view("x", "y", "z")
    alignment = Alignment(np.asarray([0, 2, -1]), np.asarray([2, 3, -1]), 0.0)
    row = ([1, 1, 0], [0, 0, 2, 1], alignment)
    counts = count_pairs([row, row], pivot, source)
    np.testing.assert_array_equal(np.stack(counts, 1), [[1, 0, 2], [1, 1, 2], [1, 2, 4]])
    assert counts.pivot.dtype == counts.source.dtype == np.int32
    empty = count_pairs([], pivot, source)
    assert [len(a) for a in empty] == [0, 0, 0]
    np.testing.assert_array_equal(mapping_statistics(empty, pivot, source).ids, [-1, -1, -1])
    with pytest.raises(InputError, match="record 2"):
        count_pairs([row, ([1], [0], alignment)], pivot, source)


def test_counting_in_parts_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    pivot, source = view(*"abcdefgh"), view(*"abcdexyz")
    rows = [(rng.integers(0, 8, 30), rng.integers(0, 8, 25)) for _ in range(10)]
    aligned = [(p, s, align(p, s, pivot, source, "chat_v1")) for p, s in rows]
    whole = count_pairs(aligned, pivot, source)
    monkeypatch.setattr("fusion_jax.align.vocabulary.PAIRS", 50)
    for a, b in zip(whole, count_pairs(aligned, pivot, source), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("weight", "expected"), [("code", 1), ("inverse", 0), ("max_count", 2)])
def test_weights_of_the_statistics(weight, expected):
    """Equal distances: the code takes the rarer pair, its inverse the more frequent; the count alone is another."""
    pivot, source = view("ax", "ay", "qqq", "s", unk=3), view("az", "n")
    counts = PairCounts(np.asarray([0, 1, 2]), np.asarray([0, 0, 0]), np.asarray([3, 1, 9]))
    np.testing.assert_array_equal(mapping_statistics(counts, pivot, source, weight=weight).ids, [expected, 3])
    default = mapping_statistics(counts, pivot, source)
    np.testing.assert_array_equal(default.ids, mapping_statistics(counts, pivot, source, weight="inverse").ids)


def test_frequent_pairs_stay_apart_beyond_the_logistic():
    """It is 1 from some 37 counts on; the more frequent pair stands first all the same."""
    pivot, source = view("ax", "ay"), view("az")
    counts = PairCounts(np.asarray([0, 1]), np.asarray([0, 0]), np.asarray([50, 90]))
    np.testing.assert_array_equal(mapping_statistics(counts, pivot, source).ids, [1])
    np.testing.assert_array_equal(mapping_statistics(counts, pivot, source, weight="code").ids, [0])


def test_statistics_of_special_tokens_and_of_marks_alone():
    """A source mark alone: empty in v1, so within both pieces and as far from both; in v2 within the second only."""
    pivot = view("<s>", "</s>", "q", "\u2581\u2581x", bos=0, eos=1)
    source = view("B", "E", "\u0120", mark="\u0120", bos=0, eos=1)
    counts = PairCounts(np.asarray([2, 3, 3]), np.asarray([2, 0, 2]), np.asarray([1, 1, 1]))
    np.testing.assert_array_equal(mapping_statistics(counts, pivot, source, "chat_v1").ids, [0, 1, 2])
    np.testing.assert_array_equal(mapping_statistics(counts, pivot, source, "chat_v2").ids, [0, 1, 3])
    for wrong in ({"variant": "fusellm"}, {"weight": "most"}):
        with pytest.raises(InputError, match="unknown"):
            mapping_statistics(counts, pivot, source, **wrong)
