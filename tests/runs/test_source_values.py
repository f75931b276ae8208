"""What a source makes of a text that it did not write, against PyTorch; which rows stay; the values of each."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_jax.data.chat import ChatSettings
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.models.folder import load
from fusion_jax.runs.desk import Stage
from fusion_jax.runs.source_values import TOO_LONG, _measured, uncut, with_values
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo import model_path

TEXT = TextSettings(
    ChatSettings(header="prompt"), tokens=TokeniseSettings(max_length=96, max_prompt_length=64, eos="if_missing")
)
STAGE = Stage("values", "--preference", TrainSettings(batch_size=4, micro_batches=1), TEXT)
ROWS = [
    Row(str(i), ({"role": "user", "content": prompt},), responses)
    for i, (prompt, responses) in enumerate([
        ("What is 12 + 30?", ("The answer is 42.", "It is 41.")), ("Reverse a b c", ("c b a", "a b c and so on")),
        ("Say it", ("höher", "42 ")),
    ])
]  # fmt: skip


def by_torch(folder: str, row: Row, response: str) -> tuple[float, int]:
    """Log-prob and tokens of a response and its end of turn, by rules 1 to 4 of section A3."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(list(row.messages), tokenize=False, add_generation_prompt=True)
    answered = [*row.messages, {"role": "assistant", "content": response.strip()}]
    text = tokenizer.apply_chat_template(answered, tokenize=False)
    assert text.startswith(prompt)
    first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest = tokenizer(text[len(prompt) :].rstrip("\n"), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*first, *rest]])).logits[0].log_softmax(-1)
    places = range(len(first) - 1, len(first) + len(rest) - 1)
    return float(sum(logits[place, token] for place, token in zip(places, rest, strict=True))), len(rest)


@pytest.mark.parametrize("source", ["zoo:plants-qwen", "zoo:gemma-source"])
def test_log_probs_in_the_sources_own_tokens(source):
    folder, dropped = model_path(source), Counter[str]()
    rows = uncut(ROWS, load(model_path("zoo:target")), TEXT, dropped)
    assert rows[2].responses == ("höher", "42")
    found = _measured(load(folder), "s", rows, STAGE)
    for row, record in zip(rows, found, strict=True):
        for place, response in enumerate(row.responses):
            assert response is not None
            logprob, tokens = by_torch(str(folder), row, response)
            assert record["tokens"][place] == tokens
            assert record["logprobs"][place] == pytest.approx(logprob, rel=1e-5, abs=1e-4)
    assert not +dropped


def test_what_a_source_cannot_read_as_a_whole_has_no_value():
    model = load(model_path("zoo:plants-qwen"))
    long = Row("long", ({"role": "user", "content": "word " * 400},), ("yes", "no"))
    found = _measured(model, "s", [ROWS[0], long], STAGE)
    assert found[0]["logprobs"] is not None and found[1]["logprobs"] is None
    assert found[1]["dropped"] == TOO_LONG


def test_rows_that_the_target_would_cut_are_left_out():
    dropped = Counter[str]()
    long = Row("long", ({"role": "user", "content": "Say it"},), ("word " * 90, "no"))
    assert uncut([long, ROWS[0]], load(model_path("zoo:target")), TEXT, dropped) == [ROWS[0]]
    assert dropped[TOO_LONG] == 1


def record(logprobs: Any, tokens: Any) -> dict[str, Any]:
    return {"logprobs": logprobs, "tokens": tokens}


def test_values_by_hand():
    a = [record([-2.0, -6.0], [2, 3]), record([-1.0, -1.0], [1, 1]), record(None, None)]
    b = [record([-3.0, -8.0], [3, 2]), record(None, None), record([-1.0, -1.0], [1, 1])]
    c = [record([-1.0, -4.0], [1, 4]), record([-2.0, -3.0], [2, 1]), record(None, None)]
    dropped = Counter[str]()
    rows = with_values(ROWS, [a, b, c], length_norm=True, dropped=dropped)
    assert rows[0].values == ((-1.0, -1.0, -1.0), (-2.0, -4.0, -1.0))
    assert rows[1].values[0][0] == -1.0 and math.isnan(rows[1].values[0][1]) and rows[1].values[1][2] == -3.0
    assert [row.name for row in rows] == ["0", "1"]
    assert dropped == {"scored by too few sources": 1, "note: scored without one of the sources": 1}
    [plain] = with_values(ROWS[:1], [a[:1], b[:1]], length_norm=False, dropped=Counter())
    assert plain.values == ((-2.0, -3.0), (-6.0, -8.0))


def test_scores_that_are_not_finite_are_counted(monkeypatch):
    from fusion_jax.runs import source_values

    broken = lambda *args, **more: np.full((3, 2), np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr(source_values, "sequence_logprobs", broken)
    found = _measured(load(model_path("zoo:target")), "s", ROWS, STAGE)
    assert {r["dropped"] for r in found} == {"log-probs that are not finite"}


def test_a_row_that_just_fits_is_whole_under_either_rule():
    model, row = load(model_path("zoo:target")), ROWS[0]
    [example], _ = make_examples([row], model.tokenizer, TEXT)
    longest = max(map(len, example.rows))
    for rule in ("fit", "official"):
        tokens = replace(TEXT.tokens, max_length=longest, max_prompt_length=longest - 4, truncation=rule)
        assert uncut([row], model, replace(TEXT, tokens=tokens), Counter()) == [row]
        shorter = replace(tokens, max_length=longest - 1)
        assert uncut([row], model, replace(TEXT, tokens=shorter), Counter()) == []
