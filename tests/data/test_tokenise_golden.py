"""Tokenisation, truncation and collation against the official code's (tests/golden/wrpo.json), to the token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusion_jax.data.batches import Example, collate
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
        truncation_mode=given["truncation_mode"], **SETTINGS[given["impl"]],
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
    batch = collate(examples, tokens_buckets=[width], score_buckets=[width])
    in_official_order = {
        k: np.asarray(getattr(batch, k)).swapaxes(0, 1).reshape(-1, width) for k in ("tokens", "segment_ids")
    }
    np.testing.assert_array_equal(in_official_order["tokens"], outputs["concatenated_input_ids"])
    np.testing.assert_array_equal(in_official_order["segment_ids"], outputs["concatenated_attention_mask"])
    labels = np.full((len(slots) * len(features), width), -100)
    for row in range(len(labels)):
        g, b = divmod(row, len(features))
        n = batch.score_counts[b, g]
        labels[row, batch.score_positions[b, g, :n] + 1] = batch.score_labels[b, g, :n]
    np.testing.assert_array_equal(labels, outputs["concatenated_labels"])


def test_the_first_token_of_a_row_is_never_scored():
    batch = collate([Example(((5, 6, 7), (5,)), (0, 1))], tokens_buckets=[4], score_buckets=[2])
    np.testing.assert_array_equal(batch.score_counts, [[2, 0]])
    np.testing.assert_array_equal(batch.score_positions[0, 0], [0, 1])
    np.testing.assert_array_equal(batch.score_labels[0, 0], [6, 7])
