"""Tokenisation, truncation and collation against the official code's (tests/golden/wrpo.json), to the token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusion_jax.data.batches import Buckets, Example, collate
from fusion_jax.data.tokenise import TokenisedRow, TokeniseSettings, tokenise_row
from tests.conftest import golden_cases


def toy_encoder(vocab: dict[str, int]):
    """The golden file's tokenizer: greedy longest match."""
    pieces = sorted(vocab, key=len, reverse=True)

    def encode(text: str) -> list[int]:
        ids = []
        while text:
            piece = next(p for p in pieces if text.startswith(p))
            ids.append(vocab[piece])
            text = text[len(piece) :]
        return ids

    return encode


SETTINGS = {
    "wrpo": {"eos": "always", "bos": "template"},
    "dpo": {"eos": "always", "bos": "if_missing"},
    "simpo": {"eos": "if_missing", "bos": "if_missing"},
}


def run_case(case: dict[str, Any], given: dict[str, Any]) -> TokenisedRow:
    responses = [x for k in ("chosen", "rejected") for x in (given[k] if isinstance(given[k], list) else [given[k]])]
    settings = TokeniseSettings(
        max_length=given["max_length"], max_prompt_length=given["max_prompt_length"],
        truncation_mode=given["truncation_mode"], truncation="official", **SETTINGS[given["impl"]],
    )  # fmt: skip
    tokenizer = case["tokenizer"]
    return tokenise_row(
        toy_encoder(tokenizer["vocab"]), given["prompt"], responses, settings,
        bos_id=tokenizer["bos_token_id"], eos_id=tokenizer["eos_token_id"],
    )  # fmt: skip


RUNS = [
    pytest.param(case, run, id=f"{case['name']}-{i}")
    for case in golden_cases("wrpo", "tokenize_row")
    for i, run in enumerate(case["runs"])
]


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_tokenise_row(case, run):
    outputs = run["outputs"]
    if "error" in outputs:
        with pytest.raises(ValueError):
            run_case(case, run["input"])
        return
    row = run_case(case, run["input"])
    names = ["chosen0", "chosen1", "rejected0"] if run["input"]["impl"] == "wrpo" else ["chosen", "rejected"]
    for name, prompt, response in zip(names, row.prompts, row.responses, strict=True):
        assert prompt + response == outputs[f"{name}_input_ids"]
        assert [-100] * len(prompt) + response == outputs[f"{name}_labels"]
    assert row.prompts[0][: len(outputs["prompt_input_ids"])] == outputs["prompt_input_ids"]


def test_fit_cuts_only_what_does_not_fit():
    encode = toy_encoder({c: i + 3 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")})
    settings = TokeniseSettings(max_length=12, max_prompt_length=8, truncation="fit")
    row = tokenise_row(encode, "abc", ["defghijklmnop", "de"], settings, bos_id=None, eos_id=1)
    assert (len(row.prompts[0]), len(row.responses[0]), len(row.responses[1])) == (3, 9, 3) and row.cut
    row = tokenise_row(encode, "abcdefghijk", ["de", "d"], settings, bos_id=None, eos_id=1)
    assert row.prompts[0] == encode("cdefghijk") and row.responses[0] == [*encode("de"), 1]
    row = tokenise_row(encode, "abc", ["de", "d"], settings, bos_id=None, eos_id=1)
    assert not row.cut


@pytest.mark.parametrize("case", golden_cases("wrpo", "collate"), ids=lambda c: c["name"])
def test_collation(case):
    """Our [B,3,T] layout, laid out in the official 3B order, holds the official ids and labels."""
    slots = ("chosen0", "chosen1", "rejected0")
    features, outputs = case["inputs"]["features"], case["outputs"]
    examples = [
        Example(
            tuple(tuple(f[f"{s}_input_ids"]) for s in slots),
            tuple(int(np.sum(np.asarray(f[f"{s}_labels"]) == -100)) for s in slots),
        )
        for f in features
    ]
    width = len(outputs["concatenated_input_ids"][0])
    batch = collate(examples, Buckets([0, width], [width]))
    ids, mask, labels = np.zeros((len(examples) * 3, width)), np.zeros((len(examples) * 3, width)), []
    for row in range(len(ids)):
        g, b = divmod(row, len(features))
        size, places = batch.prompt_lengths[b], np.flatnonzero(batch.scored[b, g])
        start, end = places[0], places[-1] + 1
        assert len(places) == end - start
        whole = [*batch.prompts[b, :size], *batch.tokens[b, g, :end], batch.labels[b, g, end - 1]]
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        line = np.full(width, -100)
        line[size + start + 1 : size + end + 1] = batch.labels[b, g, start:end]
        labels.append(line)
    np.testing.assert_array_equal(ids, outputs["concatenated_input_ids"])
    np.testing.assert_array_equal(mask, outputs["concatenated_attention_mask"])
    np.testing.assert_array_equal(labels, outputs["concatenated_labels"])


def test_the_first_token_of_a_row_is_never_scored():
    batch = collate([Example(((5, 6, 7), (5,)), (0, 1))], Buckets([0], [4]))
    np.testing.assert_array_equal(batch.scored, [[[1, 1, 0, 0], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(batch.tokens[0], [[5, 6, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.labels[0, 0], [6, 7, 0, 0])


def test_rows_share_what_they_have_in_common_before_the_first_scored_token():
    """The last prompt token predicts a scored one and stays with the rows; a prompt cut differently is shared less."""
    rows = ((1, 2, 3, 4, 9), (1, 2, 3, 4, 8, 7), (1, 2, 5, 4, 9))
    batch = collate([Example(rows[:2], (4, 4)), Example(rows[::2], (4, 4))], Buckets([0, 4], [4]))
    np.testing.assert_array_equal(batch.prompt_lengths, [3, 2])
    np.testing.assert_array_equal(batch.tokens, [[[4, 0, 0, 0], [4, 8, 0, 0]], [[3, 4, 0, 0], [5, 4, 0, 0]]])
    np.testing.assert_array_equal(batch.positions[:, 0], [[3, 3, 3, 3], [2, 3, 3, 3]])  # padding stays at the last
    np.testing.assert_array_equal(batch.scored, [[[1, 0, 0, 0], [1, 1, 0, 0]], [[0, 1, 0, 0], [0, 1, 0, 0]]])
