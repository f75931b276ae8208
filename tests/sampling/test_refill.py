"""Continuous batching: a row that is finished gives its place to the next prompt, which changes no result."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params
from fusion_jax.sampling import ids, sizes
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.session import tokens_kept

pytestmark = pytest.mark.usefixtures("quick_compiler")

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
    "initializer_range": 0.2,
})  # fmt: skip
ROWS, NEW = 3, 64


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, init_params(CONFIG, jax.random.key(1)))


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, length).tolist() for length in (17, 3, 40, 8, 21, 5, 33, 12, 9, 26)]


def answers(model, which, **more):
    """Stop tokens that make the answers of very different lengths."""
    given = {"sampler": Sampler(1.0), "seed": 5, "stop_ids": [2, 30, 31], "batch_size": ROWS} | more
    return generate_ids(model.params, CONFIG, which, max_new_tokens=NEW, **given)


def lengths(out) -> list[int]:
    return [len(c.ids) for row in out for c in row]


def same(found, expected) -> None:
    assert [[c.ids for c in row] for row in found] == [[c.ids for c in row] for row in expected]
    assert [[c.finished for c in row] for row in found] == [[c.finished for c in row] for row in expected]
    logprobs = [np.asarray([c.logprob for row in out for c in row]) for out in (found, expected)]
    np.testing.assert_allclose(*logprobs, rtol=1e-5)


class Watched:
    """`go_on`, with what each call did. steps: tokens that its longest row has written; rooms: of its cache."""

    def __init__(self, monkeypatch) -> None:
        self.steps: list[int] = []
        self.rooms: list[int] = []
        inner = ids.go_on

        def watched(how, writing):
            program = inner(how, writing)

            def call(params, texts, rules, draft, blocks, vacant):
                before = np.asarray(draft.counts)
                self.rooms.append(tokens_kept(draft.cache))
                open_ = np.asarray(draft.open)
                draft = program(params, texts, rules, draft, blocks, vacant)
                done = np.asarray(draft.counts) - before + np.asarray(draft.ended)
                self.steps.append(int(done[open_].max(initial=0)))
                return draft

            return call

        monkeypatch.setattr(ids, "go_on", watched)


def in_turn(lengths: list[int]) -> int:
    """Steps of a batch that waits for its longest row, over batches of prompts in turn; the first token of a row comes
    from its prompt, and a stop token is one too."""
    groups = [lengths[i : i + ROWS] for i in range(0, len(lengths), ROWS)]
    return sum(max(min(length + 1, NEW) for length in group) - 1 for group in groups)


@pytest.mark.parametrize("samples", [1, 2])
def test_every_prompt_gets_what_it_gets_alone(model, samples, monkeypatch):
    seen: list[int] = []
    watched = Watched(monkeypatch)
    together = answers(model, prompts(), num_samples=samples, progress=seen.append)
    if samples == 1:
        written = lengths(together)
        assert min(written) < 8 and max(written) == NEW and len(set(written)) > 5
        in_order = [written[i] for i in sorted(range(len(written)), key=lambda i: len(prompts()[i]))]
        assert sum(watched.steps) < 0.8 * in_turn(in_order)
    assert seen == list(range(1, len(prompts()) + 1))
    same(together, [answers(model, [prompt], num_samples=samples)[0] for prompt in prompts()])
    same(answers(model, prompts()[::-1], num_samples=samples)[::-1], together)


def test_caches_grow_and_shrink_and_change_nothing(model, monkeypatch):
    expected = answers(model, prompts(), batch_size=1)
    monkeypatch.setattr(sizes, "FIRST_CAPACITY", 16)
    watched = Watched(monkeypatch)
    same(answers(model, prompts(), batch_size=1), expected)
    assert {16, 32, 64} == set(watched.rooms)
    assert any(after < before for before, after in zip(watched.rooms, watched.rooms[1:]))


def test_what_ends_a_row_is_asked_at_every_block(model):
    """A row that says it is done gives its place away like one with a stop token, with all that it has written."""
    free = answers(model, prompts(), stop_ids=())
    assert set(lengths(free)) == {NEW}
    asked: list[int] = []

    def ended(tokens) -> bool:
        asked.append(len(tokens))
        return tokens[0] % 3 > 0 and len(tokens) > 20

    found = answers(model, prompts(), stop_ids=(), ended=ended)
    assert {length % sizes.BLOCK for length in asked} == {1}
    for (one,), (whole,) in zip(found, free, strict=True):
        done = whole.ids[0] % 3 > 0
        assert one.finished == done and one.ids == whole.ids[: 33 if done else NEW]
    assert {one.finished for (one,) in found} == {True, False}


def test_every_prompt_has_its_seed(model):
    one = prompts()[1]
    found = answers(model, [one] * 4, seed=[5, 6, 5, 2**40], num_samples=2)
    assert found[0] == found[2] == answers(model, [one], num_samples=2)[0]
    assert found[1] == answers(model, [one], num_samples=2, seed=6)[0] and found[1] != found[0] != found[3] != found[1]


def test_a_penalty_forgets_what_others_were_given(model):
    """Tokens count as seen in the row that wrote them, also while other rows are filled again."""
    sampler = Sampler(1.0, repetition_penalty=1.7)
    alone = [answers(model, [prompt], sampler=sampler)[0] for prompt in prompts()[:6]]
    same(answers(model, prompts()[:6], sampler=sampler), alone)
