"""Generation against `transformers`, against the uncached model, and against the distribution it should draw from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fusion_jax.errors import InputError
from fusion_jax.models.folder import load, logits
from fusion_jax.sampling.generate import generate_ids
from fusion_jax.sampling.samplers import Sampler, restrict
from tests.parity.checkpoints import write_checkpoint


def prompts(count=4):
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, n).tolist() for n in (3, 17, 9, 5)[:count]]


@pytest.mark.parametrize("name", ["llama-gqa-tied", "llama-3.1", "mistral-window", "qwen2-windows", "gemma2"])
def test_greedy_equals_transformers_and_the_uncached_model(name, tmp_path):
    theirs, ours = write_checkpoint(name, tmp_path), load(tmp_path)
    out = generate_ids(ours.params, ours.config, prompts(), max_new_tokens=12, stop_ids=[2], batch_size=4)
    for prompt, (completion,) in zip(prompts(), out, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12,
            do_sample=False, eos_token_id=2, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert completion.ids == [t for t in expected if t != 2]
        assert completion.finished == (2 in expected)
        whole = np.asarray(logits(ours, np.asarray([prompt + completion.ids])))[0]
        assert whole[len(prompt) - 1 : -1].argmax(-1).tolist() == completion.ids


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint("llama-gqa-tied", folder, initializer_range=0.1)
    return load(folder)


def sample(model, which, *, num_samples=3, batch_size=4, seed=7, sampler=Sampler(1.0), new=6):
    out = generate_ids(
        model.params, model.config, which, max_new_tokens=new, sampler=sampler, seed=seed,
        num_samples=num_samples, batch_size=batch_size, stop_ids=[2],
    )  # fmt: skip
    return [[c._replace(logprob=0.0) for c in row] for row in out]  # equal tokens; log-probs differ in the last bit


def test_samples_depend_on_seed_prompt_and_number_only(model):
    together = sample(model, prompts())
    assert together == sample(model, prompts())
    alone = [sample(model, [p])[0] for p in prompts()]
    assert together == alone
    assert together[::-1] == sample(model, prompts()[::-1], batch_size=2)
    assert [row[:2] for row in together] == sample(model, prompts(), num_samples=2)
    assert together != sample(model, prompts(), seed=8)
    assert len({tuple(c.ids) for c in together[0]}) > 1


def test_sampled_tokens_follow_the_softmax(model):
    """4,000 first tokens: chi-square over the tokens expected at least 8 times, below the 99.9 % point."""
    count, prompt, sampler = 4000, prompts()[1], Sampler(0.7, 0.9, 20)
    drawn = [
        c.ids[0] if c.ids else 2
        for c in sample(model, [prompt], num_samples=count, batch_size=1, sampler=sampler, new=1)[0]
    ]
    last = logits(model, np.asarray([prompt]))[:, -1]
    expected = np.asarray(jax.nn.softmax(restrict(last, sampler)))[0] * count
    seen = np.bincount(drawn, minlength=96)
    assert seen[expected == 0].sum() == 0
    large = expected >= 8
    chi = ((seen[large] - expected[large]) ** 2 / expected[large]).sum()
    degrees = large.sum() - 1
    assert chi < degrees + 3.1 * np.sqrt(2 * degrees) + 6
    assert ((np.roll(seen, 1)[large] - expected[large]) ** 2 / expected[large]).sum() > 10 * degrees


def test_top_p_keeps_the_smallest_sufficient_set():
    probs = jnp.asarray([[0.5, 0.25, 0.15, 0.1]])
    for p, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.9, 3), (1.0, 4)):
        assert int(jnp.isfinite(restrict(jnp.log(probs), Sampler(1.0, p))).sum()) == kept, p
    assert int(jnp.isfinite(restrict(jnp.log(probs), Sampler(1.0, 1.0, 2))).sum()) == 2


def test_edges(model):
    assert [c.ids for c in sample(model, [prompts()[0]], new=0)[0]] == [[], [], []]
    assert generate_ids(model.params, model.config, [], max_new_tokens=3) == []
    with pytest.raises(InputError, match="record 2, field 'prompt': has no token"):
        sample(model, [[3], []])
    with pytest.raises(InputError, match="exceed the model's 64 positions"):
        sample(model, [[3] * 60])
