"""Golden winners of both modes, and the controls that choose otherwise."""

from __future__ import annotations

import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.losses.fusion import teacher_target
from fusion_jax.teachers import advantage, shares
from fusion_jax.teachers.advantage import by_reading, by_writing, min_ce, surprise_of, vote
from fusion_jax.teachers.rows import FusionRows
from fusion_jax.teachers.settings import FusionSettings
from tests.conftest import GOLDEN

CASES = json.loads((GOLDEN / "profuser.json").read_text())
RNG = np.random.default_rng(0)


def numbers(values) -> np.ndarray:
    return np.asarray([np.nan if value is None else value for value in values], np.float64)


@pytest.mark.parametrize("case", CASES["min_ce"], ids=lambda case: case["note"])
def test_the_lowest_cross_entropy(case):
    scored = [numbers(nll)[np.asarray(mask, bool)] for nll, mask in zip(case["nll"], case["mask"], strict=True)]
    found = [surprise_of(float(nll.sum()), len(nll)) for nll in scored]
    np.testing.assert_allclose(found, numbers(case["ce"]), rtol=0, atol=1e-10)
    assert min_ce(found) == case["winner"] == by_reading(found, "min_ce", RNG)


@pytest.mark.parametrize("case", CASES["rm_vote"], ids=lambda case: case["note"])
def test_the_vote_of_the_judges(case):
    found = vote(np.asarray(case["scores"]), case["valid"])
    assert found.votes.tolist() == case["votes"] and found.winner == case["winner"]
    np.testing.assert_allclose(found.score, numbers(case["tiebreak"]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES["topk_dist"], ids=lambda case: f"k {case['k']}, T {case['temperature']}")
def test_a_teacher_is_the_softmax_over_its_largest_logits(case):
    with jax.enable_x64(True):
        top, indices = jax.lax.top_k(jnp.asarray(case["logits"], jnp.float64), case["k"])
        assert indices.tolist() == case["indices"] and top.tolist() == case["top_logits"]
        count = jnp.full(top.shape[:-1], case["k"])
        target = teacher_target(indices, top, count, temperature=case["temperature"])
    np.testing.assert_allclose(target.probs, case["probs"], rtol=2e-5)  # made in float32


def test_other_ways_to_choose():
    scores, all_valid = np.asarray([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [900.0, 0.0, 100.0]]), [True] * 3
    assert by_writing(scores, all_valid, "vote", RNG) == 1 == by_writing(scores, all_valid, "first", RNG)
    assert by_writing(scores, [True, False, True], "vote", RNG) == 0
    assert by_writing(np.asarray([[0.0, 1.0], [0.0, 1.0], [0.0, -9.0]]), [True] * 2, "mean_z", RNG) == 1
    assert {by_writing(scores, [True, False, True], "random", RNG) for _ in range(50)} == {0, 2}
    assert by_writing(np.asarray([[np.nan, 1.0]]), [True] * 2, "vote", RNG) == 1
    assert by_writing(scores, [False] * 3, "vote", RNG) is None is by_writing(scores, [False] * 3, "random", RNG)
    assert by_reading([2.0, 1.0, np.nan], "max_ce", RNG) == 0 and by_reading([np.nan] * 2, "random", RNG) is None
    assert {by_reading([2.0, 1.0, np.inf], "random", RNG) for _ in range(50)} == {0, 1}


@pytest.mark.parametrize("module", [advantage, shares], ids=lambda module: module.__name__)
def test_the_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_shares_of_an_average_and_without_the_pivot():
    rows = FusionRows(np.asarray([30, 10]), np.asarray([[1.0, 2.0, 2.0], [3.0, 2.5, 9.0]]), None, "")
    alone = shares.shares_taken(rows, FusionSettings(pivot=False))
    assert alone.tolist() == [0.0, 1.0, 0.0]
    mean = shares.shares_taken(rows, FusionSettings(function="avgce"))
    scores = np.exp(-rows.metrics)
    wanted = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True) * [[0.75], [0.25]]).sum(0)
    np.testing.assert_allclose(mean, wanted, rtol=1e-12)
    assert shares.shares_taken(rows, FusionSettings(choice="token")) is None
    unknown = FusionRows(rows.sizes, rows.metrics * np.nan, None, "")
    assert shares.shares_taken(unknown, FusionSettings()) is None
