"""What must hold for any text in any script, with the zoo's four tokenizers."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest

from fusion_jax.align.coverage import NamedTokenizer, align_texts
from fusion_jax.align.sequences import Variant, align, byte_offsets
from fusion_jax.align.views import view_of
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path

NAMES = ("target", "llama-source", "qwen-source", "gemma-source")
PAIRS = list(itertools.permutations(NAMES, 2))
VARIANTS: tuple[Variant, ...] = ("fusellm", "chat_v1", "chat_v2")
PARTS = (
    "Sort the letters", "add 12 and 30", " 3.14159", "naïve Zażółć", "模型融合", "私は毎朝", "안녕하세요", "Слияние",
    "اللغة العربية", "यह वाक्य है", "ภาษาไทย", "שלום", "\U0001f600\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1ef\U0001f1f5", "\U0001f44d\U0001f3fd", "e\u0301a\u0308\u0323", "Ｆｕｌｌ ﬁ ½", "\u2581the \u0120and", "Ċ\u010a",
    "  ", "\t", "\n\n", "\r\n", "</s>", "[INST] a", "<0x0A>", "\ufffd", "\u200b\ufeff", "\u0301", "a" * 30,
)  # fmt: skip


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    drawn = (
        "".join(p + rng.choice(["", " "]) for p in rng.choices(PARTS, k=rng.randrange(1, 9))) for _ in range(count)
    )
    return [t for t in drawn if t.strip()]


@functools.cache
def side(name: str) -> NamedTokenizer:
    tokenizer = load_tokenizer(model_path(f"zoo:{name}"))
    assert tokenizer is not None
    return NamedTokenizer(tokenizer, view_of(tokenizer))


def ids_of(name: str, text: str) -> list[int]:
    return side(name)[0](text, add_special_tokens=False)["input_ids"]


def spans_of(name: str, text: str) -> np.ndarray:
    encoded = side(name)[0](text, add_special_tokens=False, return_offsets_mapping=True)
    return np.asarray(encoded["offset_mapping"])


def covers(first: np.ndarray, last: np.ndarray, n: int) -> bool:
    """Ranges in order, without a gap, neighbours sharing one token at most, all n source tokens used."""
    steps = first[1:] - last[:-1]
    ordered = (np.diff(first) >= 0).all() and (np.diff(last) >= 0).all() and (first <= last).all()
    return bool(ordered and ((steps == 0) | (steps == 1)).all() and first[0] == 0 and last[-1] == n - 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("pivot", "source"), PAIRS)
def test_every_token_of_both_sides_is_aligned_in_order(pivot, source, variant):
    rng = random.Random(5)
    for text in texts(1, 40):
        ours, theirs = ids_of(pivot, text), ids_of(source, text)
        found = align(ours, theirs, side(pivot)[1], side(source)[1], variant)
        assert covers(found.first, found.last, len(theirs)) and found.cost >= 0, text
        # Cut anywhere, in the midst of a character too: the sides then hold halves that the other has not.
        ours, theirs = ours[rng.randrange(len(ours)) :], theirs[: rng.randrange(1, len(theirs) + 1)]
        found = align(ours, theirs, side(pivot)[1], side(source)[1], variant)
        assert covers(found.first, found.last, len(theirs)), text


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_is_aligned_with_itself_one_to_one(name, variant):
    for text in texts(2, 100):
        ids = ids_of(name, text)
        found = align(ids, ids, side(name)[1], side(name)[1], variant)
        np.testing.assert_array_equal(found.first, np.arange(len(ids)))
        np.testing.assert_array_equal(found.last, np.arange(len(ids)))
        assert found.cost == 0


@pytest.mark.parametrize(("pivot", "source"), PAIRS)
def test_groups_of_equal_offsets_end_where_the_text_does(pivot, source):
    for text in texts(3, 100):
        ours, theirs = spans_of(pivot, text), spans_of(source, text)
        first, last, _ = byte_offsets(ours, theirs)
        known = first >= 0
        assert ((first <= last) & known | ~known & (last == -1)).all()
        assert (np.diff(first[known]) >= 0).all() and (np.diff(last[known]) >= 0).all()
        groups = [np.flatnonzero(first == f) for f in np.unique(first[known])]
        used = [range(first[g[0]], last[g[0]] + 1) for g in groups]
        assert list(itertools.chain(*used)) == list(range(used[-1].stop)) if used else not len(known)
        begins = 0
        for group, range_ in zip(groups, used):
            ends = ours[group[-1], 1], theirs[range_.stop - 1, 1]
            assert ends[0] == ends[1], text
            assert ours[group, 0].min() >= begins and theirs[range_.start, 0] >= begins, text
            between = set(ours[group[:-1], 1].tolist()) & set(theirs[list(range_)[:-1], 1].tolist())
            assert not between - {ends[0]}, text  # no smaller groups could be made
            begins = ends[0]
        assert known.all() or ours[-1, 1] != theirs[-1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_has_its_own_offsets_one_to_one(name):
    """Tokens that end at one place, halves of a character, are one group."""
    for text in texts(4, 100):
        spans = spans_of(name, text)
        first, last, _ = byte_offsets(spans, spans)
        np.testing.assert_array_equal(spans[first, 1], spans[:, 1])
        np.testing.assert_array_equal(spans[last, 1], spans[:, 1])
        assert ((first <= np.arange(len(spans))) & (np.arange(len(spans)) <= last)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_without_a_token(variant):
    ids, view = ids_of("target", "a"), side("target")[1]
    for ours, theirs, field in (([], ids, "pivot_ids"), (ids, [], "source_ids"), ([], [], "source_ids")):
        with pytest.raises(InputError, match=rf"'{field}': there is no token to align.*Leave out samples whose text"):
            align(ours, theirs, view, view, variant)
    spans = spans_of("target", "a")
    with pytest.raises(InputError, match="'source_spans': there is no token"):
        byte_offsets(spans, spans_of("target", "").reshape(0, 2))
    assert align_texts(["", " \n"], side("target"), side("qwen-source"), variant) == []
