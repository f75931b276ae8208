"""Rewards from a sequence-classification folder equal those of `transformers` on the same rendered chats."""

from __future__ import annotations

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
import torch
import transformers

from fusion_jax.data.chat import render_text
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load
from fusion_jax.rewards import select
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.sharding import make_mesh
from tests.small import small_folder

RECORDS = [
    {"prompt_id": "p", "prompt": "What is 1 + 2?", "response": "3", "source_model": "a", "sample": 0},
    {"prompt_id": "p", "prompt": "What is 1 + 2?", "response": "The answer is 3.", "source_model": "a", "sample": 1},
    {"prompt_id": "p", "prompt": "What is 1 + 2?", "response": "", "source_model": "a", "sample": 2},
    {"prompt_id": "q", "prompt": "Reverse a b c", "response": "c b a", "source_model": "a", "sample": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(
        tmp_path_factory.mktemp("reward") / "model", num_labels=1, tie_word_embeddings=False, initializer_range=0.3
    )


def test_scores_equal_transformers(folder):
    model = load(folder)
    scored = score_responses(model, RECORDS, batch_size=3)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for record, ours in zip(RECORDS, scored, strict=True):
        chat = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["response"]}]
        text = render_text(model.tokenizer, chat, header=False)
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected = theirs(ids).logits.item()
        assert ours == {**record, "reward": pytest.approx(expected, abs=1e-4)}
    alone = score_responses(model, RECORDS[1:2], batch_size=3)[0]["reward"]
    assert alone == scored[1]["reward"]
    assert len({r["reward"] for r in scored}) == 4
    assert score_responses(model, []) == []


def test_scores_that_are_not_finite_are_counted_drops(folder):
    model = load(folder)
    broken = dataclasses.replace(model, params={**model.params, "score": {"kernel": np.full((1, 32), np.nan, "f4")}})
    scored = score_responses(broken, RECORDS[:2])
    assert [r["reward"] for r in scored] == [None, None]
    drops = Counter[str]()
    assert select.best_of(scored, drops) == {} and drops == {"reward not finite": 2}


def test_bad_reward_models(folder, tmp_path):
    model = load(folder)
    with pytest.raises(InputError, match="has 0 scores, a reward model has one"):
        score_responses(load(small_folder(tmp_path / "lm")), RECORDS)
    with pytest.raises(InputError, match="has no tokenizer"):
        score_responses(dataclasses.replace(model, tokenizer=None), RECORDS)
    with pytest.raises(InputError, match=r"record 2, field 'response': the chat has \d+ tokens"):
        score_responses(model, [RECORDS[0], {**RECORDS[0], "response": "word " * 200}])


def test_a_mesh_of_one_device_changes_nothing(folder):
    mesh = make_mesh(devices=jax.devices()[:1])
    sharded = score_responses(load(folder, mesh=mesh), RECORDS, mesh=mesh)
    plain = score_responses(load(folder), RECORDS)
    assert [r["reward"] for r in sharded] == pytest.approx([r["reward"] for r in plain], abs=1e-5)
