"""Alignments against the official code's (tests/golden/fusion_align.json), range by range."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest

from fusion_jax.align.sequences import align, align_tokens
from fusion_jax.align.views import TokenizerView
from tests.conftest import GOLDEN

DATA: dict[str, Any] = json.loads((GOLDEN / "fusion_align.json").read_text())


@functools.cache
def view(name: str) -> TokenizerView:
    """A view of the ids that the golden file uses; it decodes only those of the chat mode."""
    entries = [e for mode in DATA["tokenizations"][name].values() for e in mode.values()]
    size = max(max(e["ids"]) for e in entries) + 1
    pieces, decoded = [""] * size, [""] * size
    for entry in entries:
        for number, i in enumerate(entry["ids"]):
            pieces[i] = entry["tokens"][number]
            decoded[i] = entry["decoded"][number] if "decoded" in entry else decoded[i]
    return TokenizerView(tuple(pieces), tuple(decoded), DATA["word_boundary_marks"][name])


def ids(name: str, case: dict[str, Any]) -> list[int]:
    mode = "fusellm" if case["function"] == "fusellm" else "chat"
    return DATA["tokenizations"][name][mode][str(case["text"])]["ids"]


@pytest.mark.parametrize(
    "case", DATA["alignments"], ids=lambda c: f"{c['function']}-{c['pivot']}-{c['source']}-{c['text']}"
)
def test_alignment(case):
    pivot, source = case["pivot"], case["source"]
    found = align(ids(pivot, case), ids(source, case), view(pivot), view(source), case["function"], "raw")
    np.testing.assert_array_equal(np.stack([found.first, found.last], 1).ravel(), case["map"])
    assert found.cost == case["cost"]


@pytest.mark.parametrize("case", DATA["alignments"][::17], ids=lambda c: f"{c['function']}-{c['text']}")
def test_alignment_of_strings(case):
    sides = []
    for name in (case["source"], case["pivot"]):
        side = view(name)
        table = side.decoded if case["function"] == "chat_v2" else side.pieces
        sides.append(([table[i] for i in ids(name, case)], side.mark))
    (source, source_mark), (pivot, pivot_mark) = sides
    found = align_tokens(source, pivot, variant=case["function"], source_mark=source_mark, target_mark=pivot_mark)
    np.testing.assert_array_equal(np.stack([found.first, found.last], 1).ravel(), case["map"])
