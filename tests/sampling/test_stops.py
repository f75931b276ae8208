"""Texts that end an answer: what `generate` returns is the answer without them, cut before the first."""

from __future__ import annotations

import dataclasses

import pytest

from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model
from fusion_jax.runs.revising import completions
from fusion_jax.sampling.generate import SampleSettings, encoded_prompts, generate
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.sampling.stops import Stops, until
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")

PROMPTS = ["What is 1 + 2?", "Reverse a b c", "Sort d a c", "What is 12 + 30?"]
HOW = {"max_new_tokens": 40, "temperature": 1.0, "batch_size": 2, "seed": 3}


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(initializer_range=0.1)


@pytest.fixture(scope="module")
def free(model) -> list[str]:
    return [row[0] for row in generate(model, PROMPTS, **HOW)]


def test_an_answer_is_cut_before_the_first_stop(model, free):
    """Stops that the tokens of an answer spell across their borders, which no token is."""
    tokenizer = model.tokenizer
    strings = [free[0][20:24], free[1][31:33], free[2][1:5]]
    whole = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert all(text and text not in whole for text in strings)
    out = [row[0] for row in generate(model, PROMPTS, stop=strings, **HOW)]
    assert out == [until(text, strings)[0] for text in free]
    assert out[0] != free[0] and out[1] != free[1] and out[2] != free[2]
    assert generate(model, PROMPTS, stop=["no such text"], **HOW) == [[text] for text in free]


def test_a_stopped_answer_writes_no_more_than_its_block(model, free, monkeypatch):
    calls: list[int] = []
    inner = Stops.ended

    def ended(self, ids):
        calls.append(len(ids))
        return inner(self, ids)

    monkeypatch.setattr(Stops, "ended", ended)
    assert generate(model, PROMPTS[:1], stop=[free[0][:3]], **HOW) == [[""]]
    assert calls == [17]


def test_a_special_token_is_a_stop_too(model):
    """It is not part of the decoded answer, so that it is looked for by its id."""
    tokenizer = model.tokenizer
    special = next(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    assert Stops(tokenizer, ("x", special)).ids == (tokenizer.convert_tokens_to_ids(special),)
    ids = [*tokenizer("a b c", add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(special)]
    assert Stops(tokenizer, (special,)).said(ids) == ("a b c", False)


def test_of_long_answers_the_end_is_looked_at(model):
    tokenizer = model.tokenizer
    ids = tokenizer("a b c é " * 40, add_special_tokens=False)["input_ids"]
    more = tokenizer("STOP now", add_special_tokens=False)["input_ids"]
    stops = Stops(tokenizer, ("é STOP",))
    assert not stops.ended(ids) and all(stops.ended([*ids, *more, *ids[:n]]) for n in range(12))
    assert stops.said([*ids, *more]) == ("a b c é " * 39 + "a b c ", True)


def test_settings_hand_stops_and_min_p_on(model, free):
    how = SampleSettings(1.0, 1.0, num_samples=1, max_new_tokens=40, batch_size=2)
    records = [{"prompt": prompt} for prompt in PROMPTS]
    stop = free[0][20:24]
    cut = sample_responses(model, "m", records, dataclasses.replace(how, stop_strings=(stop,)), seed=3)
    assert [one["response"] for one in cut] == [until(text, [stop])[0].strip() for text in free]
    greedy = sample_responses(model, "m", records, dataclasses.replace(how, min_p=1.0), seed=3)
    assert [[one["response"]] for one in greedy] == [
        [row[0].strip()] for row in generate(model, PROMPTS, **HOW | {"temperature": 0.0})
    ]
    prompts = encoded_prompts(model.tokenizer, PROMPTS)
    own = [row[0] for row in completions(model, prompts, dataclasses.replace(how, stop_strings=(stop,)), 3)]
    assert [one.text for one in own] == [one["response"] for one in cut]
    assert own[0].finished and len(own) == 4


def test_every_prompt_has_its_seed(model):
    alone = [generate(model, PROMPTS[:1], **HOW | {"seed": seed})[0] for seed in (1, 2)]
    assert generate(model, PROMPTS[:1] * 2, **HOW | {"seed": [1, 2]}) == alone and alone[0] != alone[1]
    with pytest.raises(InputError, match="field 'seed': has 1 entries for 4 prompts"):
        generate(model, PROMPTS, **HOW | {"seed": [1]})


def test_stops_that_are_refused(model):
    for stop, message in ((["a", ""], "field 'stop': holds an empty text"), ("Q:", "'Q:', not a list of texts")):
        with pytest.raises(InputError, match=message):
            generate(model, PROMPTS, stop=stop, **HOW)
    with pytest.raises(InputError, match="field 'stop_strings': holds an empty text"):
        SampleSettings(stop_strings=("",))
    with pytest.raises(InputError, match="field 'min_p'"):
        SampleSettings(min_p=-0.1)
