"""The probability of right wordings against transformers, and the mean reward of samples against counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusion_jax.data.chat import render
from fusion_jax.evals.sampled import mean_rewards, right_probabilities
from fusion_jax.models.folder import load
from fusion_jax.rewards.verifiers import exact
from fusion_jax.sampling.generate import SampleSettings, generate
from fusion_jax.train.settings import TrainSettings, compute_to_read
from fusion_jax.zoo import model_path

PROMPTS = [
    {"prompt": "Remove c from a b c d e", "answer": "a b d e", "wordings": ["a b d e", "The answer is a b d e."]},
    {"prompt": "Sort these letters: d a c b", "answer": "a b c d", "wordings": ["a b c d"]},
    {"prompt": "Double a b", "answer": "a a b b"},
]


@pytest.fixture(scope="module")
def model():
    return load(model_path("zoo:target"), dtype="float32")


def test_the_probability_of_each_wording_is_that_of_transformers_and_adds_up(model):
    theirs = AutoModelForCausalLM.from_pretrained(model_path("zoo:target"), dtype=torch.float32).eval()
    wanted = []
    for prompt in PROMPTS[:2]:
        total = 0.0
        for wording in prompt["wordings"]:
            header, answer = render(model.tokenizer, [{"role": "user", "content": prompt["prompt"]}], wording)
            start = len(model.tokenizer(header, add_special_tokens=False)["input_ids"])
            ids = torch.tensor([model.tokenizer(header + answer, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logprobs = theirs(ids).logits[0].double().log_softmax(-1)
            scored = range(start, ids.shape[1])
            total += float(torch.exp(sum(logprobs[t - 1, ids[0, t]] for t in scored)))
        wanted.append(total)
    found = right_probabilities(model, PROMPTS, compute_to_read(TrainSettings()), batch_size=2)
    np.testing.assert_allclose(found[:2], wanted, rtol=1e-4)
    assert found[2] is None and all(0 < value < 1 for value in wanted)


def test_prompts_without_wordings_have_no_probability(model):
    assert right_probabilities(model, PROMPTS[2:], compute_to_read(TrainSettings())) == [None]


def test_a_wording_that_the_model_cannot_read_leaves_the_probability_unknown(model):
    long = {"prompt": "Double a b", "wordings": ["a a b b", "a " * 500]}
    assert right_probabilities(model, [PROMPTS[1], long], compute_to_read(TrainSettings()))[1] is None


def test_the_mean_reward_is_that_of_the_same_samples(model):
    how = SampleSettings(num_samples=4, max_new_tokens=12, batch_size=2)
    found = mean_rewards(model, PROMPTS, exact, how, seed=7)
    texts = generate(
        model, [p["prompt"] for p in PROMPTS], max_new_tokens=12, temperature=0.8, top_p=0.95, num_samples=4, seed=7,
        batch_size=2,
    )  # fmt: skip
    wanted = [np.mean([exact(text, p["answer"]) for text in row]) for p, row in zip(PROMPTS, texts)]
    assert found == wanted and 0 < sum(wanted) < 3
