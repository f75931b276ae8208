"""Rows taken where both models have read the same text: golden pairs, characters of several tokens, ends, kept mass."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fusion_jax.align.distributions import TopRows
from fusion_jax.align.prefixes import PlacedText, prefix_rows, same_prefixes
from fusion_jax.align.rules import RowRule, Rules
from fusion_jax.align.views import TokenizerView
from fusion_jax.align.vocabulary import exact_map
from tests.conftest import GOLDEN

CASES = json.loads((GOLDEN / "profuser.json").read_text())["alignment"]


def side(spans, contents, end=None, ids=None) -> PlacedText:
    offsets = np.asarray(spans, np.int64).reshape(-1, 2)
    return PlacedText(np.arange(len(offsets)) if ids is None else np.asarray(ids), offsets, contents, end)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"])
def test_golden_pairs(case):
    whole = ((0, len(case["text"])),)
    found = same_prefixes(side(case["target_spans"], whole), side(case["source_spans"], whole))
    wanted = [partner if valid else -1 for _, partner, valid in case["pairs"]]
    assert found.tolist() == [*wanted, -1]  # nothing follows the last token


def test_what_stands_around_the_answer():
    """The token before it predicts its first one, its last one the end of the turn, where both are written."""
    ours = side([(0, 3), (3, 5), (5, 6), (6, 9)], ((3, 6),), end=9, ids=[1, 2, 3, 9])
    theirs = side([(0, 1), (1, 2), (2, 4), (4, 5), (5, 7)], ((2, 5),), end=7, ids=[1, 2, 3, 4, 7])
    assert same_prefixes(ours, theirs).tolist() == [1, 2, 3, -1]
    assert same_prefixes(ours, theirs._replace(end=None)).tolist() == [1, 2, -1, -1]
    assert same_prefixes(ours, theirs._replace(ids=theirs.ids + 1)).tolist() == [1, 2, -1, -1]
    reaching = theirs._replace(offsets=np.asarray([(0, 1), (1, 2), (1, 4), (4, 5), (5, 7)]))
    assert same_prefixes(ours, reaching).tolist() == [-1, 2, 3, -1]  # a space of the template in its first token


def test_a_character_of_several_tokens_is_read_at_its_last():
    """Three bytes against one token: there is no prefix within the character, and none that reads on into it."""
    ours = side([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], ((0, 3),))
    theirs = side([(0, 1), (1, 2), (2, 3)], ((0, 3),))
    assert same_prefixes(ours, theirs).tolist() == [-1, -1, -1, 1, -1]
    assert same_prefixes(theirs, ours).tolist() == [-1, 3, -1]
    assert same_prefixes(ours, ours).tolist() == [-1, -1, -1, 3, -1]
    assert same_prefixes(ours, ours, alike=True).tolist() == [0, 1, 2, 3, -1]
    assert same_prefixes(theirs, ours, alike=True).tolist() == [-1, 3, -1]
    whole, within = (side(spans, ((0, 3),)) for spans in ([(0, 1), (1, 2), (2, 3)], [(0, 1), (0, 2), (2, 3)]))
    assert same_prefixes(whole, within).tolist() == [-1, 1, -1]  # its second token ends a character and begins another


def test_masses_of_one_id_are_added_and_poor_rows_fall_back():
    source = TokenizerView(("a", "b", "c", "d"), ("a", "b", "c", "d"), " ")
    pivot = TokenizerView(("a", "b"), ("a", "b"), " ")
    vocab_map = exact_map(pivot, source, "raw")
    assert vocab_map.ids.tolist() == [0, 1, -1, -1]
    vocab_map = replace(vocab_map, ids=np.asarray([0, 1, 0, -1], np.int32), kind="mined")
    rules = Rules(
        pivot, source, vocab_map, fallback="drop", duplicates="logsumexp", pieces="raw", least_mass=0.5, one_to_many=False
    )
    probs = np.asarray([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0], [0.4, 0.4, 0.2]])
    logits = np.log(np.maximum(probs, 1e-30))
    rows = TopRows(np.asarray([[1, 0, 2], [3, 1, 0], [0, 2, 3]]), logits, np.asarray([3, 2, 3]))
    found = prefix_rows(rows, np.asarray([0, 1, -1, 2]), np.zeros(4, int), rules)
    assert found.rule.tolist() == [RowRule.ONE_TO_ONE, RowRule.FALLBACK, RowRule.FALLBACK, RowRule.ONE_TO_ONE]
    assert found.counts.tolist() == [2, 0, 0, 1]
    np.testing.assert_allclose(np.exp(found.logits[0, :2]), [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(np.exp(found.logits[3, 0]), 0.8, atol=1e-12)
