"""Beam search gives the hypotheses and the scores of `transformers` in PyTorch, all N of every prompt."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import fusion_jax as fj
from fusion_jax.models.folder import load
from fusion_jax.sampling.beam_search import BeamSearch, Hypothesis, beam_search
from fusion_jax.zoo import model_path
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_encoders import write_model

NEW, BEAMS, PAD, STOPS = 20, 4, 0, [2, *range(7, 96, 8)]  # more than one block of tokens
WAYS: list[tuple[float, Any]] = [
    (1.0, False), (0.0, False), (1.0, True), (2.0, False), (2.0, True), (1.0, "never"), (-1.0, "never"),
]  # fmt: skip


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, n).tolist() for n in (3, 17, 9, 5, 12)]


def of_transformers(model: Any, which: list[list[int]], **how: Any) -> list[list[Hypothesis]]:
    """Prompts padded in one batch; a hypothesis without the sum of its log-probabilities."""
    width, encoder, beams = max(map(len, which)), model.config.is_encoder_decoder, how["num_beams"]
    ids, mask = torch.full((len(which), width), PAD), torch.zeros((len(which), width), dtype=torch.long)
    for row, prompt in enumerate(which):
        here = slice(0, len(prompt)) if encoder else slice(width - len(prompt), width)
        ids[row, here], mask[row, here] = torch.tensor(prompt), 1
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=STOPS, pad_token_id=PAD,
        num_return_sequences=beams, return_dict_in_generate=True, output_scores=True, **how,
    )  # fmt: skip
    rows = out.sequences[:, 1 if encoder else width :].reshape(len(which), beams, -1).tolist()
    scores = out.sequences_scores.reshape(len(which), beams).tolist()
    return [[hypothesis(*one) for one in zip(*both, strict=True)] for both in zip(rows, scores, strict=True)]


def hypothesis(row: list[int], score: float) -> Hypothesis:
    end = next((place for place, token in enumerate(row) if token in STOPS), None)
    return Hypothesis(row[:end], end is not None, 0.0, score)


def same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]], penalty: float) -> None:
    assert [[one[:2] for one in row] for row in found] == [[one[:2] for one in row] for row in expected]
    for ours, theirs in zip(*(itertools.chain(*out) for out in (found, expected)), strict=True):
        assert ours.score == pytest.approx(theirs.score, rel=1e-5)
        length = len(ours.ids) + ours.finished
        assert ours.logprob == pytest.approx(ours.score * length**penalty, rel=1e-5)


@pytest.mark.parametrize("name", [
    "llama-gqa-tied", "bart", "t5-1.1",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral-window", "gemma2", "deepseek-v2-lite")),
])  # fmt: skip
def test_all_hypotheses_equal_those_of_transformers(name, tmp_path):
    """Prompts of uneven length, more than a batch holds, so that they begin at different times; hypotheses of many
    lengths and at the limit."""
    if name.startswith(("bart", "t5")):
        theirs = write_model(name, tmp_path, **({"num_decoder_layers": 2} if name.startswith("t5") else {}))
    else:
        theirs = write_checkpoint(name, tmp_path, num_hidden_layers=2)
    ours, lengths, ways = load(tmp_path), set(), WAYS if name in ("llama-gqa-tied", "bart", "t5-1.1") else WAYS[:2]
    for penalty, early in ways:
        found = beam_search(
            ours.params, ours.config, prompts(), BeamSearch(BEAMS, penalty, early), max_new_tokens=NEW,
            stop_ids=STOPS, batch_size=3,
        )  # fmt: skip
        how = {"num_beams": BEAMS, "length_penalty": penalty, "early_stopping": early}
        same(found, of_transformers(theirs, prompts(), **how), penalty)
        lengths |= {len(one.ids) for row in found for one in row}
    assert len(lengths) > 2 and NEW in lengths, lengths


@pytest.mark.parametrize("name", ["llama-gqa-tied", pytest.param("bart", marks=pytest.mark.slow)])
def test_no_ngram_occurs_twice(name, tmp_path):
    """Tokens of a prompt count where the decoder reads them; each prompt alone, since padding would count as well."""
    theirs = (write_model if name == "bart" else write_checkpoint)(name, tmp_path, **(
        {} if name == "bart" else {"num_hidden_layers": 2}
    ))  # fmt: skip
    ours, asked = load(tmp_path), [[5, 6, 9, 5, 6], [9] * 8, *prompts()[:2]]
    for size in (1, 3):
        how = BeamSearch(BEAMS, no_repeat_ngram=size)
        found = beam_search(
            ours.params, ours.config, asked, how, max_new_tokens=NEW, stop_ids=STOPS, batch_size=4
        )  # fmt: skip
        for row, prompt in zip(found, asked, strict=True):
            same([row], of_transformers(theirs, [prompt], num_beams=BEAMS, no_repeat_ngram_size=size), 1.0)
    free = beam_search(
        ours.params, ours.config, asked, BeamSearch(BEAMS), max_new_tokens=NEW, stop_ids=STOPS, batch_size=4
    )  # fmt: skip
    assert [row[0].ids for row in free] != [row[0].ids for row in found]


def test_texts_of_a_trained_model():
    """Questions to a model of the zoo, by its chat template."""
    folder = model_path("zoo:target")
    ours, theirs = load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, texts = ours.tokenizer, ["Reverse a b c d e", "What is 12 + 30?", "Sort 9 4 7"]
    found = fj.generate(ours, texts, max_new_tokens=12, beams=4, batch_size=3)
    for (text,), asked in zip(found, texts, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = theirs.generate(**ids, max_new_tokens=12, num_beams=4, do_sample=False, eos_token_id=1, pad_token_id=2)
        assert text == tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len({text for (text,) in found}) == 3
