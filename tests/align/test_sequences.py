"""What holds for every alignment: the plain table agrees, each token is used, offsets agree with the text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fusion_jax.align.sequences import Variant, align, align_tokens, byte_offsets
from fusion_jax.align.views import TokenizerView
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path

VARIANTS: tuple[Variant, ...] = ("fusellm", "chat_v1", "chat_v2")
ALPHABET = "aabbcé  \u2581\u0120中文\U0001f469\u200d\U0001f680\n"


def text(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(ALPHABET, k=length))


def cut(rng: random.Random, whole: str, mark: str) -> tuple[list[str], list[str]]:
    """Pieces, with marks for spaces, and texts of a random tokenisation."""
    places = sorted(rng.sample(range(1, len(whole)), rng.randrange(len(whole)))) if len(whole) > 1 else []
    texts = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)])]
    return [t.replace(" ", mark) for t in texts], texts


def tokenised(rng: random.Random, whole: str, mark: str) -> tuple[list[int], TokenizerView]:
    pieces, texts = cut(rng, whole, mark)
    known = list(dict.fromkeys(zip(pieces, texts)))
    view = TokenizerView(tuple(p for p, _ in known), tuple(t for _, t in known), mark)
    return [known.index(k) for k in zip(pieces, texts)], view


def edit_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def token_cost(variant: str, s: int, p: int, source: TokenizerView, pivot: TokenizerView) -> float:
    """Spec section 4, for one pair of ids."""
    if variant == "chat_v2":
        a, b = source.decoded[s].replace(source.mark, ""), pivot.decoded[p].replace(pivot.mark, "")
        if not a or not b:
            a, b = source.decoded[s].replace(source.mark, pivot.mark), pivot.decoded[p]
        return edit_distance(a, b)
    a, b = source.pieces[s].replace(source.mark, ""), pivot.pieces[p].replace(pivot.mark, "")
    near = variant == "chat_v1" and (a in b or b in a)
    return edit_distance(a, b) * 0.1 if near else edit_distance(a, b)


def plain_alignment(variant, ours, theirs, pivot, source) -> tuple[list[int], list[int], float]:
    """The table of section 4, cell by cell."""
    n, m = len(theirs), len(ours)
    table = np.full((n + 1, m + 1), np.inf)
    table[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            least = min(table[i - 1, j], table[i, j - 1], table[i - 1, j - 1])
            table[i, j] = token_cost(variant, theirs[i - 1], ours[j - 1], source, pivot) + least
    ranges: list[list[int]] = [[] for _ in ours]
    moves = [(-1, -1), (0, -1), (-1, 0)] if variant == "chat_v2" else [(-1, -1), (-1, 0), (0, -1)]
    i, j = n, m
    while i and j:
        ranges[j - 1].append(i - 1)
        di, dj = min(moves, key=lambda move: table[i + move[0], j + move[1]])
        i, j = i + di, j + dj
    return [min(r) for r in ranges], [max(r) for r in ranges], table[n, m]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_table_agrees(variant):
    rng = random.Random(1)
    for _ in range(60):
        whole = text(rng, rng.randrange(1, 25))
        ours, pivot = tokenised(rng, whole, "\u2581")
        theirs, source = tokenised(rng, whole if rng.random() < 0.7 else text(rng, 12), rng.choice("\u2581\u0120"))
        found = align(ours, theirs, pivot, source, variant)
        first, last, cost = plain_alignment(variant, ours, theirs, pivot, source)
        np.testing.assert_array_equal(found.first, first)
        np.testing.assert_array_equal(found.last, last)
        assert found.cost == cost


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_token_is_used_once_more_at_most_and_in_order(variant):
    rng = random.Random(2)
    for _ in range(20):
        whole = text(rng, rng.randrange(1, 200))
        (ours, pivot), (theirs, source) = tokenised(rng, whole, "\u2581"), tokenised(rng, whole, "\u0120")
        first, last, cost = align(np.asarray(ours), tuple(theirs), pivot, source, variant)
        assert first.dtype == last.dtype == np.int32 and first.shape == last.shape == (len(ours),)
        assert first[0] == 0 and last[-1] == len(theirs) - 1 and cost >= 0
        assert (first <= last).all() and ((first[1:] - last[:-1]) >= 0).all() and ((first[1:] - last[:-1]) <= 1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_tokenisations_are_aligned_one_to_one(variant):
    rng = random.Random(3)
    for _ in range(20):
        ids, view = tokenised(rng, text(rng, rng.randrange(1, 100)), "\u2581")
        found = align(ids, ids, view, view, variant)
        np.testing.assert_array_equal(found.first, np.arange(len(ids)))
        np.testing.assert_array_equal(found.last, np.arange(len(ids)))
        assert found.cost == 0


def test_bad_ids():
    view = TokenizerView(("a", "b"), ("a", "b"), "\u2581")
    with pytest.raises(InputError, match=r"pivot_ids.*no token"):
        align([], [0], view, view, "fusellm")
    with pytest.raises(InputError, match=r"source_ids.*no token"):
        align([0], np.zeros(0, np.int32), view, view, "fusellm")
    for bad in ([2], [-1], [0.5], [[0]]):
        with pytest.raises(InputError, match="source_ids"):
            align([0], bad, view, view, "fusellm")
    with pytest.raises(InputError, match="Known: fusellm, chat_v1, chat_v2"):
        align([0], [0], view, view, "v3")  # type: ignore[arg-type]


def spans(texts: list[str]) -> np.ndarray:
    ends = np.cumsum([len(t.encode()) for t in texts])
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)


def joined(texts: list[str], indices: list[int]) -> str:
    return "".join(texts[i] for i in sorted(set(indices)))


@pytest.mark.parametrize("tokens", [[1, 2], "abc"])
def test_ids_and_a_text_are_no_token_strings(tokens):
    with pytest.raises(InputError, match=r"field 'target_tokens': is not a list of token strings.*convert_ids_to_to"):
        align_tokens(["a", "b"], tokens)


def test_groups_of_equal_offsets_hold_the_same_text():
    rng = random.Random(4)
    for _ in range(100):
        whole = text(rng, rng.randrange(1, 60))
        ours, theirs = cut(rng, whole, " ")[1], cut(rng, whole, " ")[1]
        first, last, cost = byte_offsets(spans(ours), spans(theirs))
        assert cost == 0 and first.dtype == np.int32
        covered: list[int] = []
        for a, b in sorted(set(zip(first.tolist(), last.tolist()))):
            members = [j for j in range(len(ours)) if (first[j], last[j]) == (a, b)]
            assert joined(ours, members) == joined(theirs, list(range(a, b + 1)))
            covered += range(a, b + 1)
        assert covered == list(range(len(theirs)))


def test_tokens_with_empty_spans_pair_in_place():
    """Special tokens, at (0, 0) wherever they stand, and padding: one to one, the rest without a partner."""
    ours = np.asarray([(0, 0), (0, 2), (2, 4), (0, 0), (4, 6), (0, 0), (0, 0)])  # bos ab cd <sep> ef eos pad
    theirs = np.asarray([(0, 0), (0, 0), (0, 4), (4, 4), (4, 5), (5, 6), (0, 0)])  # bos x abcd <sep> e f eos
    found = byte_offsets(ours, theirs)
    np.testing.assert_array_equal(found.first, [0, 2, 2, 3, 4, 6, -1])
    np.testing.assert_array_equal(found.last, [0, 2, 2, 3, 5, 6, -1])


def test_text_beyond_the_last_common_end_has_no_partner():
    found = byte_offsets(np.asarray([(0, 3), (3, 5), (5, 9)]), np.asarray([(0, 3), (3, 7)]))
    np.testing.assert_array_equal(found.first, [0, -1, -1])
    # An all-space token whose span was trimmed to nothing is text all the same.
    found = byte_offsets(np.asarray([(0, 3), (5, 5), (5, 9)]), np.asarray([(0, 3), (3, 5), (5, 9)]))
    np.testing.assert_array_equal(found.first, [0, 1, 2])


@pytest.mark.parametrize("source", ["llama-source", "qwen-source", "gemma-source"])
def test_offsets_of_real_tokenizers(source):
    whole = "Add 12 and 30 — naïve 中文\n\n  then say: done!"
    tokens = [load_tokenizer(model_path(f"zoo:{n}"))(whole, return_offsets_mapping=True) for n in ("target", source)]
    ours, theirs = (np.asarray(t["offset_mapping"]) for t in tokens)
    first, last, _ = byte_offsets(ours, theirs)
    for j in np.nonzero(ours[:, 1] > ours[:, 0])[0]:
        group = np.nonzero(first == first[j])[0]
        assert theirs[last[j], 1] == ours[group[-1], 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0, 2), int), "no token"),
        (np.zeros((2, 3), int), "integers"),
        (np.zeros((2, 2)), "integers"),
        (np.asarray([(2, 1)]), "before it starts"),
        (np.asarray([(0, 4), (1, 3)]), "go back"),
    ],
)
def test_bad_spans(bad, message):
    with pytest.raises(InputError, match=message):
        byte_offsets(np.asarray([(0, 1)]), bad)
