"""Generation: what a token depends on, the distribution of whole answers, edges, shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, logits
from fusion_jax.models.parameters import init_params
from fusion_jax.sampling import sizes
from fusion_jax.sampling.generate import SampleSettings, generate, generate_ids
from fusion_jax.sampling.samplers import Sampler, restrict
from tests.programs import finished
from tests.small import small_model, virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "tie_word_embeddings": True,
    "initializer_range": 0.2,
})  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_params(CONFIG, jax.random.key(1)))


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, n).tolist() for n in (3, 17, 70, 5)]


def sample(model, which, *, num_samples=3, batch_size=4, seed=7, sampler=Sampler(1.0), new=6, **more):
    return generate_ids(
        model.params, model.config, which, max_new_tokens=new, sampler=sampler, seed=seed,
        num_samples=num_samples, batch_size=batch_size, stop_ids=[2], **more,
    )  # fmt: skip


def only_ids(out):
    return [[c.ids for c in row] for row in out]


def test_samples_depend_on_seed_prompt_and_number_only(model):
    together = sample(model, prompts())
    assert together == sample(model, prompts())
    assert together == [sample(model, [p])[0] for p in prompts()]  # alone: the last bit of the log-probs too
    assert together[::-1] == sample(model, prompts()[::-1])
    assert [row[:2] for row in only_ids(together)] == only_ids(sample(model, prompts(), num_samples=2, batch_size=2))
    assert only_ids(together) != only_ids(sample(model, prompts(), seed=8))
    assert all(len({tuple(c.ids) for c in row}) > 1 for row in together)


def test_row_ids_replace_the_prompts_content(model):
    prompt = prompts()[1]
    same = only_ids(sample(model, [prompt, prompt]))
    assert same[0] == same[1]
    first, second = only_ids(sample(model, [prompt, prompt], row_ids=["a", "b"]))
    assert first != second
    assert only_ids(sample(model, [prompts()[0], prompt], row_ids=["x", "b"]))[1] == second
    with pytest.raises(InputError, match="field 'row_ids': has 1 entries for 2 prompts"):
        sample(model, [prompt, prompt], row_ids=["a"])


def test_caches_that_grow_change_nothing(model, monkeypatch):
    expected = sample(model, prompts()[:2], new=40)
    assert max(len(c.ids) for row in expected for c in row) > 32
    monkeypatch.setattr(sizes, "FIRST_CAPACITY", 16)
    assert only_ids(sample(model, prompts()[:2], new=40)) == only_ids(expected)


def restricted(model, context, sampler):
    """Logits [1,V] behind a context, as the sampler restricts them."""
    return jax.jit(lambda ids: restrict(logits(model, ids)[:, -1], sampler))(np.asarray([context]))


@pytest.mark.slow
def test_sampled_tokens_follow_the_softmax(model):
    """4,000 pairs of tokens: the second follows the distribution behind the first; chi-square below 99.9 %."""
    count, prompt, sampler = 4000, prompts()[1], Sampler(0.7, 0.9, 8)
    out = sample(model, [prompt], num_samples=count, batch_size=1, sampler=sampler, new=2)[0]
    first = [c.ids[0] if c.ids else 2 for c in out]
    common = int(np.bincount([t for t in first if t != 2]).argmax())
    second = [c.ids[1] if len(c.ids) > 1 else 2 for c in out if c.ids and c.ids[0] == common]
    for context, drawn in ((prompt, first), ([*prompt, common], second)):
        last = restricted(model, context, sampler)
        expected = np.asarray(jax.nn.softmax(last))[0] * len(drawn)
        seen = np.bincount(drawn, minlength=96)
        assert seen[expected == 0].sum() == 0
        large = expected >= 5
        degrees = int(large.sum()) - 1
        assert degrees >= 1
        chi = ((seen[large] - expected[large]) ** 2 / expected[large]).sum()
        assert chi < degrees + 3.1 * np.sqrt(2 * degrees) + 6
        warmer = np.asarray(jax.nn.softmax(last / 1.4))[0] * len(drawn)
        assert ((seen[large] - warmer[large]) ** 2 / warmer[large]).sum() > chi


def test_every_token_has_its_own_randomness(model):
    """Where all tokens are equally likely, a token repeats the one before, or the other sample's, as chance has it."""
    flat = Model(CONFIG, jax.tree.map(jnp.zeros_like, model.params))
    rng = np.random.default_rng(1)
    rows = [rng.integers(3, 96, 5).tolist() for _ in range(64)]
    out = generate_ids(flat.params, CONFIG, rows, max_new_tokens=16, sampler=Sampler(1.0), num_samples=4, batch_size=64)
    tokens = np.asarray(only_ids(out))
    assert tokens.shape == (64, 4, 16)
    for same in (tokens[..., 1:] == tokens[..., :-1], tokens[:, 1:] == tokens[:, :-1], tokens[1:] == tokens[:-1]):
        deviation = np.sqrt(95 / 96 / 96 / same.size)
        assert abs(same.mean() - 1 / 96) < 4 * deviation


def test_stop_tokens_end_and_are_left_out(model):
    free = generate_ids(model.params, CONFIG, prompts(), max_new_tokens=8, batch_size=4)
    stop = free[1][0].ids[3]
    stopped = generate_ids(model.params, CONFIG, prompts(), max_new_tokens=8, batch_size=4, stop_ids=[stop, 95])
    for (a,), (b,) in zip(free, stopped, strict=True):
        ends = [i for i, t in enumerate(a.ids) if t in (stop, 95)]
        assert b.ids == (a.ids[: ends[0]] if ends else a.ids)
        assert b.finished == bool(ends)
        assert b.logprob > a.logprob if ends and ends[0] < 7 else b.logprob == a.logprob
    assert stopped[1][0].finished and not any(row[0].finished for row in free)


def test_the_repetition_penalty_looks_at_the_prompt_and_at_what_is_there(model):
    """Every greedy token is the best after transformers' penalty on the model's own logits of all before it."""
    rows, penalty = prompts()[:3], RepetitionPenaltyLogitsProcessor(1.5)
    free, found = ([row[0] for row in sample(model, rows, num_samples=1, sampler=s, new=12)] for s in (
        Sampler(), Sampler(repetition_penalty=1.5)))  # fmt: skip
    assert [c.ids for c in found] != [c.ids for c in free]
    texts = [[*prompt, *completion.ids] for prompt, completion in zip(rows, found, strict=True)]
    padded = np.asarray([[*ids, *[0] * (96 - len(ids))] for ids in texts])
    every = np.asarray(jax.jit(lambda ids: logits(model, ids))(padded))  # of each token and those before it
    for prompt, ids, of_text in zip(rows, texts, every, strict=True):
        for place in range(len(prompt), len(ids)):
            allowed = penalty(torch.tensor([ids[:place]]), torch.tensor(of_text[None, place - 1]))
            assert int(allowed.argmax()) == ids[place]
    alone = sample(model, rows[:1], num_samples=2, sampler=Sampler(1.0, repetition_penalty=1.5))
    assert alone[0] == sample(model, rows, num_samples=2, sampler=Sampler(1.0, repetition_penalty=1.5))[0]


def test_edges(model):
    assert only_ids(sample(model, prompts()[:1], new=0)) == [[[], [], []]]
    assert [len(c.ids) for c in sample(model, prompts()[:1], new=1, sampler=Sampler())[0]] == [1, 1, 1]
    assert generate_ids(model.params, CONFIG, [], max_new_tokens=3) == []
    assert [len(row) for row in sample(model, [[3] * 90], new=6)] == [3]
    seen: list[int] = []
    sample(model, prompts(), batch_size=2, progress=seen.append)
    assert seen[-1] == 4 and seen == sorted(seen)


@pytest.mark.parametrize(
    "which, message",
    [
        ([[3], []], "record 2, field 'prompt': has no token"),
        ([[3] * 91], "91 tokens and 6 new ones exceed the model's 96 positions"),
        ([[3, 96]], "holds a token id outside 0..95"),
    ],
)
def test_bad_prompts(model, which, message):
    with pytest.raises(InputError, match=message):
        sample(model, which)


def test_half_precision(model):
    """On a CPU half-precision weights are computed with in float32; a GPU or TPU takes the dtype asked for."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    options = {"max_new_tokens": 4, "batch_size": 1}
    out = generate_ids(half, CONFIG, prompts()[:1], dtype=jnp.bfloat16, **options)
    assert len(out[0][0].ids) == 4
    if jax.default_backend() == "cpu":
        assert only_ids(out) == only_ids(generate_ids(wide, CONFIG, prompts()[:1], **options))


def test_weights_that_are_not_finite(model):
    broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), model.params)
    with pytest.raises(InputError, match="logits are not finite"):
        generate_ids(broken, CONFIG, prompts()[:1], max_new_tokens=2, batch_size=4)


def test_text_in_text_out():
    model = small_model()
    texts = ["What is 1 + 2?", "Reverse a b c"]
    out = generate(model, texts, max_new_tokens=5, temperature=1.0, num_samples=2, batch_size=2)
    assert [len(row) for row in out] == [2, 2] and all(isinstance(t, str) for row in out for t in row)
    assert out[1:] == generate(model, texts[1:], max_new_tokens=5, temperature=1.0, num_samples=2, batch_size=2)
    with pytest.raises(InputError, match="the model has no tokenizer"):
        generate(Model(model.config, model.params), texts, max_new_tokens=5)
    assert SampleSettings().sampler == Sampler(0.8, 0.95, 0)


@pytest.mark.slow
def test_every_mesh_gives_what_one_device_gives():
    script = Path(__file__).with_name("sharded_generation.py")
    results = json.loads(finished([str(script)], os.environ | virtual_devices(8)))
    assert len(results) == 7 and all(results.values()), results
