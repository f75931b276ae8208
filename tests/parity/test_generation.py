"""Greedy tokens equal those of `transformers` in PyTorch; with and without cache the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from fusion_jax.errors import InputError
from fusion_jax.models.folder import load, logits
from fusion_jax.sampling.generate import generate_ids
from tests.parity.checkpoints import write_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiler")  # tokens and sums are compared

NEW, STOP = 12, 2
LAYERS = {"gemma3": 6, "gemma3-kinds-yarn": 3}  # the fewest that hold every kind of layer; of others two


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, n).tolist() for n in (3, 17, 9, 5)]


def theirs_greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NEW,
        do_sample=False, eos_token_id=STOP, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", [
    "llama-gqa-tied", "llama-3.1", "mistral-window", "qwen2-windows", "gemma-mqa", "gemma2", "qwen3-windows-yarn", "gemma3",
    "gemma3-kinds-yarn", "olmo2-gqa-tied-bias", "glm4-mha-quarter", "phi3-longrope-within", "gpt-neox",
    "mixtral", "qwen3-moe-some-plain", "deepseek-v2", "deepseek-v2-lite", "mpt-clipped-6-heads",
])  # fmt: skip
def test_greedy_equals_transformers_and_the_uncached_model(name, tmp_path):
    theirs, ours = write_checkpoint(name, tmp_path, num_hidden_layers=LAYERS.get(name, 2)), load(tmp_path)
    out = generate_ids(ours.params, ours.config, prompts(), max_new_tokens=NEW, stop_ids=[STOP], batch_size=4)
    rows = np.zeros((4, 32), np.int32)
    for row, prompt, (completion,) in zip(rows, prompts(), out, strict=True):
        expected = theirs_greedy(theirs, prompt)
        assert completion.ids == [t for t in expected if t != STOP]
        assert completion.finished == (STOP in expected)
        row[: len(prompt) + len(completion.ids)] = prompt + completion.ids
    whole = np.asarray(jax.jit(lambda rows: logits(ours, rows))(rows))  # this package's own
    logprobs = whole - np.logaddexp.reduce(whole, -1, keepdims=True)
    for row, prompt, (completion,) in zip(logprobs, prompts(), out, strict=True):
        tokens = completion.ids + [STOP] * completion.finished
        scores = row[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
        assert scores.argmax(-1).tolist() == tokens
        assert completion.logprob == pytest.approx(scores[np.arange(len(tokens)), tokens].sum(), abs=1e-3)


def test_a_text_that_crosses_the_length_where_rotations_change_is_refused(tmp_path):
    """What is kept of the prompt was turned for shorter texts; transformers reads all of it again there."""
    write_checkpoint("phi3-longrope-within", tmp_path, num_hidden_layers=2)
    ours = load(tmp_path)
    with pytest.raises(InputError, match="record 2, field 'prompt': 40 tokens and 12 new ones cross 48"):
        generate_ids(ours.params, ours.config, [[5] * 4, [5] * 40], max_new_tokens=12, stop_ids=[STOP], batch_size=2)
    generate_ids(ours.params, ours.config, [[5] * 49], max_new_tokens=2, stop_ids=[STOP], batch_size=1)
