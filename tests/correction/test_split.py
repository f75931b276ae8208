"""The split into stages and for validation: published sizes, no pair on two sides, nothing but the seed decides."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.correction.split import SplitSettings, stage_sizes, stage_split, validation_split
from fusion_jax.errors import InputError
from tests.conftest import GOLDEN

CASES = json.loads((GOLDEN / "alirector.json").read_text(encoding="utf-8"))["stage_split"]
SINGLE = [Pair(f"s{i}", f"t{i}") for i in range(90)]
REPEATED = [*[Pair(f"l{i}", "x") for i in range(60)], *5 * [Pair(f"h{i}", "x") for i in range(8)]]


@pytest.mark.parametrize("case", CASES)
def test_golden_sizes(case):
    assert stage_sizes(case["n"]) == (case["stage1"], case["stage2"])


def test_file_order_cuts_the_list_where_it_stands():
    first, second = stage_split(SINGLE, SplitSettings("file_order"))
    assert (first, second) == (SINGLE[:62], SINGLE[62:])


def test_single_pairs_are_shuffled_to_the_published_sizes():
    first, second = stage_split(SINGLE)
    assert (len(first), len(second)) == (62, 28) and sorted([*first, *second], key=SINGLE.index) == SINGLE
    assert first != SINGLE[:62] and first == sorted(first, key=SINGLE.index)
    assert stage_split(SINGLE) == (first, second) != stage_split(SINGLE, SplitSettings(seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_is_in_both_stages(seed):
    first, second = stage_split(REPEATED, SplitSettings(seed=seed))
    assert not set(first) & set(second) and Counter([*first, *second]) == Counter(REPEATED)
    assert int(0.7 * len(REPEATED)) - 5 < len(first) <= int(0.7 * len(REPEATED))
    copied = stage_split(REPEATED, SplitSettings("file_order"))
    assert set(copied[0]) & set(copied[1])  # what the published order does


def test_about_the_share_of_either_part_is_in_stage_1():
    """Also of the repeated pairs, which all stand behind the cut of the file."""
    pairs = [*[Pair(f"l{i}", "x") for i in range(6000)], *5 * [Pair(f"h{i}", "x") for i in range(500)]]
    first, _ = stage_split(pairs)
    for part, count in (("l", 6000), ("h", 2500)):
        assert abs(sum(p.source.startswith(part) for p in first) / count - 0.7) < 0.06


def test_triples_and_other_shares():
    triples = [Triple(p.source, p.target, "") for p in SINGLE]
    first, second = stage_split(triples, SplitSettings(share=0.9))
    assert (len(first), len(second)) == (81, 9) and isinstance(first[0], Triple)


def test_splits_that_leave_a_stage_nothing():
    with pytest.raises(InputError, match="'share': 1 pairs leave stage 1 none"):
        stage_split(SINGLE[:1])
    with pytest.raises(InputError, match="5 pairs leave stage 1 none"):
        stage_split(5 * SINGLE[:1])
    with pytest.raises(InputError, match=r"'share'.*out of range"):
        SplitSettings(share=1.0)


def test_validation_pairs_are_different_and_gone_from_training():
    train, held = validation_split(REPEATED, 20, 7)
    assert len(held) == len(set(held)) == 20 and not set(train) & set(held)
    assert Counter(train) == Counter({p: n for p, n in Counter(REPEATED).items() if p not in held})
    assert validation_split(REPEATED, 20, 7) == (train, held) != validation_split(REPEATED, 20, 8)
    assert train == [p for p in REPEATED if p not in set(held)]


def test_validation_in_file_order_leaves_copies():
    train, held = validation_split(REPEATED, 40, 7, order="file_order")
    assert len(held) == 40 and Counter([*train, *held]) == Counter(REPEATED) and set(train) & set(held)


def test_validation_of_none_and_of_all():
    assert validation_split(SINGLE, 0, 1) == (SINGLE, [])
    for count in (68, 69, -1):
        with pytest.raises(InputError, match=rf"'validation': {count} of 68 different pairs"):
            validation_split(REPEATED, count, 1)
    with pytest.raises(InputError, match="'seed'"):
        validation_split(SINGLE, 3, -1)
