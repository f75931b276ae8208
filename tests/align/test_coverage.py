"""Coverage by hand on a few tokens, and against what the rules do with rows."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_jax.align.coverage import RULE_NAMES, AlignedText, align_texts, coverage
from fusion_jax.align.distributions import RowRule, Rules, TopRows, align_distributions, planned_rules
from fusion_jax.align.sequences import Alignment, align
from fusion_jax.align.views import TokenizerView
from fusion_jax.align.vocabulary import count_pairs, exact_map, mapping_statistics, mined_map
from fusion_jax.errors import InputError
from fusion_jax.zoo.tasks import corpus
from tests.align.test_properties import NAMES, side, texts


def view(*pieces: str) -> TokenizerView:
    return TokenizerView(pieces, tuple(p.replace("▁", " ") for p in pieces), "▁")


PIVOT, SOURCE = view("▁ab", "▁c", "de", "x", "▁q"), view("▁ab", "c", "▁d", "e", "▁ab▁c", "y", "▁q")


def ranges(first: list[int], last: list[int]) -> Alignment:
    return Alignment(np.asarray(first, np.int32), np.asarray(last, np.int32), 0.0)


def test_counted_by_hand():
    """ " ab", " c" ends with "c", "de" of " d" and "e", "x" stands across from "y", the last has nothing."""
    ours, theirs = np.asarray([0, 1, 2, 3, 3]), np.asarray([0, 1, 2, 3, 5])
    text = AlignedText(ours, theirs, ranges([0, 1, 2, 4, -1], [0, 1, 3, 4, -1]))
    same = AlignedText(np.asarray([0, 4]), np.asarray([0, 6]), ranges([0, 1], [0, 1]))
    found = coverage({"a": [text], "b": [same, same]}, Rules(PIVOT, SOURCE, exact_map(PIVOT, SOURCE)))
    a, b, everything = found.groups
    assert (a.group, a.texts, a.pivot_tokens, a.source_tokens) == ("a", 1, 5, 5)
    assert a.rules == {"exact": 0.2, "suffix": 0.2, "one-to-many": 0.2, "fallback": 0.4, "empty": 0.0}
    assert a.taken == pytest.approx(0.6) and b.taken == 1.0 and b.rules["exact"] == 1.0
    assert a.unmapped == a.inexact == 0.8 and b.unmapped == 0.0
    assert (everything.group, everything.texts, everything.pivot_tokens) == ("all", 3, 9)
    assert everything.rules["fallback"] == pytest.approx(2 / 9) and everything.unmapped == pytest.approx(4 / 9)
    assert found.unmapped_types == found.inexact_types == pytest.approx(5 / 7)
    (worst,) = found.worst
    assert worst == (3, "x", 2, 2, "a", ("y",))


def test_a_map_leaves_nothing_unmapped_yet_inexact():
    text = AlignedText(np.asarray([3]), np.asarray([5]), ranges([0], [0]))
    (group,) = (found := coverage({"a": [text]}, Rules(PIVOT, SOURCE, mined_map(PIVOT, SOURCE), "fusellm"))).groups
    assert group.unmapped == 0.0 and group.inexact == 1.0
    assert found.unmapped_types == 0.0 and found.inexact_types == pytest.approx(5 / 7)


def test_a_token_without_a_partner_has_an_empty_example():
    text = AlignedText(np.asarray([3, 0]), np.asarray([0]), ranges([-1, 0], [-1, 0]))
    (worst,) = coverage({"a": [text]}, Rules(PIVOT, SOURCE, exact_map(PIVOT, SOURCE))).worst
    assert worst.example == () and (worst.fallbacks, worst.occurrences) == (1, 1)
    assert not coverage({"a": [text]}, Rules(PIVOT, SOURCE, exact_map(PIVOT, SOURCE)), worst=0).worst


def rules_of(pivot: str, source: str, variant: str, aligned: list[AlignedText]) -> Rules:
    ours, theirs = side(pivot)[1], side(source)[1]
    counts = count_pairs(aligned, ours, theirs)
    if variant == "fusellm":
        return Rules(ours, theirs, mined_map(ours, theirs), "fusellm")
    vocab_map = mapping_statistics(counts, ours, theirs, variant)
    return Rules(ours, theirs, vocab_map, variant, counts=counts if variant == "chat_v1" else None)


@pytest.mark.parametrize("variant", ["fusellm", "chat_v1", "chat_v2"])
@pytest.mark.parametrize(("pivot", "source"), [(a, b) for a in NAMES[:2] for b in NAMES[2:]])
def test_the_rules_are_those_of_rows(pivot, source, variant):
    """With rows the same rules, but for taken rows of which nothing has an image."""
    aligned = align_texts(texts(6, 15), side(pivot), side(source), variant)
    rules, rng = rules_of(pivot, source, variant, aligned), np.random.default_rng(0)
    for text in aligned:
        n = len(text.source_ids)
        logits = -np.sort(-rng.normal(size=(n, 3)).astype(np.float32), 1)
        rows = TopRows(rng.integers(0, rules.source.size, (n, 3)), logits, np.full(n, 3))
        made = align_distributions(rows, text.alignment, text.pivot_ids, text.source_ids, rules)
        planned = planned_rules(text.alignment, text.pivot_ids, text.source_ids, rules)
        assert planned.dtype == np.uint8
        np.testing.assert_array_equal(np.where(made.counts == 0, RowRule.EMPTY, planned), made.rule)
    (group,) = coverage({"all of them": aligned}, rules).groups
    assert sum(group.rules.values()) == pytest.approx(1) and list(group.rules) == list(RULE_NAMES)


def test_equal_tokenizers_are_exact():
    for method in ("dp", "byte_offsets"):
        aligned = align_texts(texts(7, 10), side("target"), side("target"), "chat_v2", method=method)
        ours = side("target")[1]
        found = coverage({"a": aligned}, Rules(ours, ours, exact_map(ours, ours)))
        (group,) = found.groups
        assert group.taken == 1.0 and group.unmapped == found.unmapped_types == 0.0
        # Halves of one character end at one place: by offsets, they are several tokens.
        assert method != "dp" or group.rules["exact"] == 1.0


def test_long_texts_are_cut_into_windows():
    (text,) = corpus(0, 1)[:1]
    whole = align_texts([text], side("target"), side("qwen-source"), "fusellm")
    parts = align_texts([" ", text], side("target"), side("qwen-source"), "fusellm", max_length=5)
    assert len(whole) == 1 and len(parts) > 1
    assert max(len(ids) for part in parts for ids in part[:2]) <= 5
    for part in whole:
        found = align(part.pivot_ids, part.source_ids, side("target")[1], side("qwen-source")[1], "fusellm")
        np.testing.assert_array_equal(found.first, part.alignment.first)


def test_bad_input():
    rules = Rules(PIVOT, SOURCE, exact_map(PIVOT, SOURCE))
    with pytest.raises(InputError, match="no group of texts"):
        coverage({}, rules)
    with pytest.raises(InputError, match="'b': holds no text"):
        coverage({"b": []}, rules)
    with pytest.raises(InputError, match="not among the tokenizer's 5"):
        coverage({"a": [AlignedText(np.asarray([9]), np.asarray([0]), ranges([0], [0]))]}, rules)
    with pytest.raises(InputError, match="Known: dp, byte_offsets"):
        align_texts(["a"], side("target"), side("target"), "fusellm", method="spans")  # type: ignore[arg-type]
