"""Vocabulary maps against the official scripts' (tests/golden/fusion_vocab.json), id by id.

The published comparison is of raw strings: also where a view knows what they spell, as one of a tokenizer does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fusion_jax.align.sequences import align
from fusion_jax.align.views import TokenizerView, detect_mark
from fusion_jax.align.vocabulary import cooccurrence_map, count_pairs, exact_map, mapping_statistics, mined_map
from fusion_jax.data.spelling import plain_notation
from tests.conftest import GOLDEN

DATA: dict[str, Any] = json.loads((GOLDEN / "fusion_vocab.json").read_text())
VIEWS = {
    name: TokenizerView(tuple(v["pieces"]), tuple(v["decoded"]), v["mark"], v["bos"], v["eos"], v["unk"], v["pad"])
    for name, v in DATA["vocab"].items()
}
SPELLED = {
    name: replace(v, piece_bytes=tuple(map(plain_notation(dict.fromkeys(v.pieces, 0)).bytes_of, v.pieces)))
    for name, v in VIEWS.items()
}
views = pytest.mark.parametrize("views", [VIEWS, SPELLED], ids=["strings", "spelled"])
pairs = pytest.mark.parametrize("case", DATA["pairs"], ids=lambda c: f"{c['pivot']}-{c['source']}")


@pytest.mark.parametrize("name", VIEWS)
def test_mark(name):
    assert detect_mark(VIEWS[name].pieces) == DATA["vocab"][name]["mark"]


@views
@pairs
def test_exact_and_mined(case, views):
    pivot, source = views[case["pivot"]], views[case["source"]]
    exact, mined = exact_map(pivot, source, "raw"), mined_map(pivot, source, "raw")
    assert np.sum(exact.ids >= 0) == case["n_same_string"]
    np.testing.assert_array_equal(mined.ids, case["mined_pivot_id_for_source_id"])
    np.testing.assert_array_equal(mined.ids[exact.ids >= 0], exact.ids[exact.ids >= 0])


@views
@pairs
def test_cooccurrence(case, views):
    pivot, source = case["pivot"], case["source"]
    rows = DATA["cooccurrence_corpus_ids"]
    found = cooccurrence_map(views[pivot], views[source], rows[pivot], rows[source], pieces="raw")
    np.testing.assert_array_equal(found.ids, case["cooccurrence_pivot_id_for_source_id"])


@views
@pairs
def test_mapping_statistics(case, views):
    pivot, source, given = views[case["pivot"]], views[case["source"]], case["ms"]
    rows = [
        (ours, theirs, align(ours, theirs, pivot, source, "chat_v2", "raw"))
        for ours, theirs in zip(given["corpus_pivot_ids"], given["corpus_source_ids"], strict=True)
    ]
    counts = count_pairs(rows, pivot, source)
    np.testing.assert_array_equal(np.stack(counts, 1), given["counts_pivot_source_count"])
    found = mapping_statistics(counts, pivot, source, weight="code", pieces="raw")
    np.testing.assert_array_equal(found.ids, given["pivot_id_for_source_id"])
