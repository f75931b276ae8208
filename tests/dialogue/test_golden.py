"""Texts, tags, matches and cuts against the golden file: strings and counts exactly."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_jax.dialogue import matching, serialise
from fusion_jax.dialogue.meta import TAGS, TagSettings, metas, tag
from fusion_jax.dialogue.serialise import entity_text, newest, padded
from tests.dialogue.golden import section


@pytest.mark.parametrize("case", section("serialisation"))
def test_entities_are_written(case):
    assert entity_text(case["entity"], keep_missing=case["keep_missing"]) == case["text"]


@pytest.mark.parametrize("thresholds", ["table10", "footnote"])
@pytest.mark.parametrize("case", section("meta_knowledge"), ids=lambda c: f"{c['rank']} {c['score']}")
def test_tags_of_every_form(case, thresholds):
    """An entity of rank r stands behind r - 1 others, which differ from it."""
    before = case["rank"] - 1
    found = metas(
        [0.99] * before + [case["score"]], [None] * before + [case["name"]], case["context"],
        negative=case["negative"], thresholds=thresholds,
    )  # fmt: skip
    assert len(found) == case["rank"]
    for form, wanted in case[f"{thresholds}_thresholds"].items():
        assert tag(found[-1], TagSettings(form)) == wanted
    assert set(tag(found[-1], TagSettings("prefix")).split()) <= set(TAGS)


@pytest.mark.parametrize("case", section("top_k_and_negative"))
def test_the_best_and_the_negative(case):
    assert matching.select(case["scores"], case["k"]) == (tuple(case["selected"]), case["negative"])


@pytest.mark.parametrize("case", section("pseudo_positive"), ids=lambda c: c["context"])
def test_pseudo_positives(case):
    counts = matching.match_counts(f"{case['context']} {case['response']}", matching.values_in(case["kb"]))
    assert counts.tolist() == case["match_counts"]
    assert matching.pseudo_positive(counts) == case["positive_index"]


@pytest.mark.parametrize("case", section("truncation"))
def test_contexts_are_cut_and_padded(case):
    kept = newest(case["ids"], case["max_length"], keep_first=case["keep_first_token"])
    ids, mask = padded([kept], case["max_length"])
    assert kept == case["kept"]
    assert ids[0].tolist() == case["padded"] and mask[0].astype(int).tolist() == case["mask"]
    assert ids.dtype == np.int32 and mask.dtype == bool


def test_occurring_is_of_whole_words():
    text = serialise.normalised("<user> is the River_Inn's dinner cheap?")
    for value, there in {
        "river inn": True,
        "inn": True,
        "dinner": True,
        "din": False,
        "dontknow": False,
        "_": False,
    }.items():
        assert serialise.occurs(value, text) == there, value
    assert not serialise.occurs("dontknow", serialise.normalised("i dontknow"))
