"""Beam search: against every continuation there is, in batches that are filled again, edges, and what it refuses."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, logits
from fusion_jax.models.parameters import init_params
from fusion_jax.sampling import sizes
from fusion_jax.sampling.beam_search import BeamSearch, beam_search
from fusion_jax.sampling.generate import SampleSettings, generate, generate_ids
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.sampling.samplers import Sampler
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")


def config(vocabulary: int):
    return config_from_hf({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": True, "initializer_range": 0.2,
    })  # fmt: skip


CONFIG = config(96)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_params(CONFIG, jax.random.key(1)))


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, n).tolist() for n in (17, 3, 40, 8, 70, 5, 33, 12)]


def search(model, which, beams=3, *, new=40, **more):
    how = BeamSearch(beams, **{name: more.pop(name) for name in list(more) if name in BeamSearch.__dataclass_fields__})
    given = {"stop_ids": [2, 30, 31, 50], "batch_size": 3} | more
    return beam_search(model.params, model.config, which, how, max_new_tokens=new, **given)


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
def test_with_enough_beams_every_continuation_is_found(penalty):
    """5 tokens, one of which stops, at most 4: 341 continuations, of which 256 have no stop token."""
    tiny, most, stop = config(5), 4, 1
    one = Model(tiny, init_params(tiny, jax.random.key(3)))
    prompt = [0, 3, 4]
    every = [
        (*head, *end)
        for length in range(most)
        for head in itertools.product([0, 2, 3, 4], repeat=length)
        for end in ([(stop,)] if length < most - 1 else [(token,) for token in range(5)])
    ]
    texts = np.zeros((len(every), len(prompt) + most), np.int32)
    for row, tokens in zip(texts, every, strict=True):
        row[: len(prompt) + len(tokens)] = [*prompt, *tokens]
    whole = np.asarray(jax.nn.log_softmax(jax.jit(lambda ids: logits(one, ids))(texts)), np.float64)
    scored = {}
    for row, tokens in zip(whole, every, strict=True):
        total = sum(row[len(prompt) - 1 + place, token] for place, token in enumerate(tokens))
        scored[tokens] = total, total / len(tokens) ** penalty
    found = search(one, [prompt], 512, new=most, stop_ids=[stop], length_penalty=penalty, batch_size=1)[0]
    assert len(found) == len(every) == 341
    best = sorted(scored, key=lambda tokens: -scored[tokens][1])
    assert [(*h.ids, *[stop] * h.finished) for h in found[:20]] == best[:20]
    for h in found:
        tokens = (*h.ids, *[stop] * h.finished)
        assert (h.logprob, h.score) == pytest.approx(scored[tokens], rel=1e-5)


def test_every_prompt_gets_what_it_gets_alone(model, monkeypatch):
    """Prompts of several widths that begin at different times, with caches that grow and shrink."""
    seen: list[int] = []
    together = search(model, prompts(), progress=seen.append)
    lengths = {len(h.ids) for row in together for h in row}
    assert seen == list(range(1, 9)) and 40 in lengths and len(lengths) > 5
    assert all(row == sorted(row, key=lambda h: -h.score) and len(row) == 3 for row in together)
    same(search(model, prompts()[::-1])[::-1], together)
    monkeypatch.setattr(sizes, "FIRST_CAPACITY", 16)
    same([search(model, [prompt])[0] for prompt in prompts()], together)


def same(found, expected) -> None:
    assert [[h[:2] for h in row] for row in found] == [[h[:2] for h in row] for row in expected]
    scores = [np.asarray([h[2:] for row in out for h in row]) for out in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_scores_are_those_of_the_model_without_a_cache(model):
    uncached = jax.jit(lambda ids: logits(model, ids))
    found = search(model, prompts()[:3], length_penalty=0.5, stop_ids=[50])
    for row, prompt in zip(found, prompts(), strict=False):
        for h in row:
            tokens = [*h.ids, *[50] * h.finished]
            padded = np.asarray([[*prompt, *tokens, *[0] * (128 - len(prompt) - len(tokens))]])
            whole = np.asarray(jax.nn.log_softmax(uncached(padded)))[0]
            total = whole[np.arange(len(prompt) - 1, len(prompt) - 1 + len(tokens)), tokens].sum()
            assert (h.logprob, h.score) == pytest.approx((total, total / len(tokens) ** 0.5), rel=1e-5)
    assert len({h.finished for row in found for h in row}) == 2


def test_one_beam_that_stops_early_is_greedy(model):
    greedy = generate_ids(
        model.params, CONFIG, prompts(), max_new_tokens=40, stop_ids=[2, 30, 31, 50], batch_size=3
    )  # fmt: skip
    found = search(model, prompts(), 1, early_stopping=True)
    assert [row[0].ids for row in found] == [row[0].ids for row in greedy]
    np.testing.assert_allclose([row[0].logprob for row in found], [row[0].logprob for row in greedy], rtol=1e-5)


def test_allowed_tokens_and_edges(model):
    even = np.arange(96) % 2 == 0
    found = search(model, prompts()[:2], allowed=even, new=5)
    assert all(token % 2 == 0 for row in found for h in row for token in h.ids)
    assert any(token % 2 for row in search(model, prompts()[:2], new=5) for h in row for token in h.ids)
    assert search(model, []) == [] and search(model, prompts()[:1], new=0)[0][0].ids == []
    (row,) = search(model, prompts()[:1], 4, new=1)
    assert [len(h.ids) + h.finished for h in row] == [1] * 4
    with pytest.raises(InputError, match="record 2, field 'prompt': has no token"):
        search(model, [[3], []])
    with pytest.raises(InputError, match="record 1: no continuation has a finite log-probability"):
        search(model, prompts()[:1], allowed=np.zeros(96, bool))
    broken = Model(CONFIG, jax.tree.map(lambda x: x.at[0].set(jnp.nan), model.params))
    with pytest.raises(InputError, match="no continuation has a finite log-probability"):
        search(broken, prompts()[:1])


@pytest.mark.parametrize(("given", "message"), [
    ({"beams": 0}, "field 'beams': 0 is out of range"), ({"length_penalty": 9.0}, "'length_penalty': 9.0 is out of"),
    ({"no_repeat_ngram": -1}, "'no_repeat_ngram': -1 is"), ({"early_stopping": "always"}, "'always' is not known"),
])  # fmt: skip
def test_values_out_of_range(given, message):
    with pytest.raises(InputError, match=message):
        BeamSearch(**{"beams": 2, **given})


@pytest.mark.parametrize(("given", "field"), [
    ({"temperature": 0.5}, "temperature"), ({"repetition_penalty": 1.2}, "repetition_penalty"),
    ({"num_samples": 2}, "num_samples"), ({"stop_strings": ("Q:",)}, "stop_strings"),
])  # fmt: skip
def test_beams_and_samples_do_not_go_together(model, given, field):
    greedy = {"temperature": 0.0, "num_samples": 1}
    with pytest.raises(InputError, match=f"field '{field}': does not go together with beams. .*or beams to 1"):
        SampleSettings(**greedy | {"beams": 4} | given)
    SampleSettings(**greedy | given)
    names = {"temperature", "repetition_penalty"} & given.keys()
    asked = {"sampler": Sampler(**{"temperature": 0.0} | {name: given[name] for name in names})}
    asked |= {"num_samples": given.get("num_samples", 1)}
    asked |= {"ended": lambda ids: True} if "stop_strings" in given else {}
    with pytest.raises(InputError, match="does not go together with beams"):
        generate_ids(model.params, CONFIG, prompts()[:1], max_new_tokens=3, search=BeamSearch(2), **asked)


def test_text_in_text_out():
    model, texts = small_model(), ["What is 1 + 2?", "Reverse a b c"]
    found = generate(model, texts, max_new_tokens=5, beams=BeamSearch(3, 0.0), batch_size=2)
    assert [len(row) for row in found] == [1, 1] and all(isinstance(text, str) for row in found for text in row)
    how = SampleSettings(0.0, num_samples=1, max_new_tokens=5, batch_size=2, beams=3, length_penalty=0.0)
    records = sample_responses(model, "m", [{"prompt": text} for text in texts], how, seed=0)
    assert [one["response"] for one in records] == [text.strip() for (text,) in found]
    assert generate(model, texts, max_new_tokens=5, beams=1) == generate(model, texts, max_new_tokens=5)
