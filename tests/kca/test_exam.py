"""The exam behind a cached prefix is the exam of whole prompts one by one; letters of other tokenizers; long questions."""

from __future__ import annotations

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusion_jax.errors import InputError
from fusion_jax.kca import exam
from fusion_jax.kca.exam import LONG, ExamSettings, sit
from fusion_jax.kca.papers import EXEMPLARS, Paper, asked, common_lead, letter_ids, suffixes, turned
from fusion_jax.kca.records import LETTERS, ExamItem, check_item
from fusion_jax.models.decode import next_logits
from fusion_jax.models.decoder import forward
from fusion_jax.sampling.ids import decoding_mesh
from tests.programs import finished
from tests.small import small_model, virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")
ROOM = 384
PAPER = Paper(
    "Say which.", (ExamItem("1 + 1?", ("1", "2", "3", "4"), "B"), ExamItem("a b c?", ("c", "b", "a", "d"), "A"))
)
ITEMS = [
    ExamItem("What is 2 + 3?", ("4", "5", "6", "7"), "B"),
    ExamItem("Which is the largest: 3, 9, 4?", ("3", "9", "4", "none of them"), "B"),
    ExamItem("Sort d a c", ("a c d", "d a c", "c a d", "a d c"), "A"),
    ExamItem("The last of x y z is", ("x", "y", "z", "w"), "C"),
    ExamItem("What is 1 + 1?", ("1", "2", "3", "4"), "B"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_model(initializer_range=0.5, max_position_embeddings=512)


@functools.cache
def programs(config):
    def logits(params, rows):
        hidden = forward(params, config, rows, dtype=jnp.float32)
        return next_logits(hidden.reshape(-1, hidden.shape[-1]), params, config).reshape(*rows.shape, -1)

    return jax.jit(logits)


def read(model):
    """The model's own logits of rows, compiled once."""
    return lambda params, rows: np.asarray(programs(model.config)(params, rows), np.float64)


def one_by_one(model, item: ExamItem, shots: int) -> np.ndarray:
    """Log-probs of the letters by the whole model on the whole prompt, without anything of the exam's code but its text."""
    text = PAPER.before(shots) + asked(item)
    ids = model.tokenizer(text)["input_ids"]
    letters = [model.tokenizer(f"{text} {letter}")["input_ids"][len(ids) :] for letter in LETTERS]
    rows = np.zeros((4, ROOM), np.int32)  # what stands behind a text changes nothing of it
    for row, own in zip(rows, letters):
        row[: len(ids) + len(own)] = [*ids, *own]
    logits = read(model)(model.params, rows)
    logprobs = logits - np.logaddexp.reduce(logits, -1)[..., None]
    scores = [sum(logprobs[k, len(ids) - 1 + i, token] for i, token in enumerate(own)) for k, own in enumerate(letters)]
    return np.asarray(scores) - np.logaddexp.reduce(scores)


def test_any_batch_is_one_by_one(model):
    """Predictions equal, log-probs to 1e-4; the questions are of several widths, the last batch is not full."""
    wanted = np.stack([one_by_one(model, item, 2) for item in ITEMS])
    for batch_size in (2, 8):
        found, counts = sit(model, ITEMS, PAPER, ExamSettings(batch_size=batch_size))
        logprobs = np.asarray([one.logprobs for one in found])
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)
        assert [one.choice for one in found] == [LETTERS[i] for i in wanted.argmax(-1)]
        assert [one.correct for one in found] == [
            one.choice == item.answer for one, item in zip(found, ITEMS)
        ] and not counts
    np.testing.assert_allclose(np.exp(wanted).sum(-1), 1, rtol=1e-6)


def test_models_that_turn_tokens_otherwise_read_whole_prompts(model, monkeypatch):
    """As those whose rotary embedding changes at a length between the prefix and the end of a question."""
    behind, _ = sit(model, ITEMS, PAPER, ExamSettings(batch_size=8))
    monkeypatch.setattr(exam, "_cacheable", lambda *_: False)
    whole, _ = sit(model, ITEMS, PAPER, ExamSettings(batch_size=8))
    np.testing.assert_allclose([one.logprobs for one in whole], [one.logprobs for one in behind], atol=1e-4)


def windowed():
    """A Mistral whose windows are far shorter than what all prompts begin with."""
    return small_model(
        model_type="mistral",
        sliding_window=24,
        initializer_range=0.5,
        max_position_embeddings=512,
        num_key_value_heads=2,
    )


def test_a_windowed_model_is_one_by_one():
    own = windowed()
    wanted = np.stack([one_by_one(own, item, 2) for item in ITEMS])
    found, _ = sit(own, ITEMS, PAPER, ExamSettings(batch_size=8))
    np.testing.assert_allclose([one.logprobs for one in found], wanted, atol=1e-4)
    assert own.config.decoder[0].windows


@pytest.mark.slow
def test_on_a_mesh_of_four_devices():
    """Questions over two, heads over two; the last batch is not full."""
    alone, apart = json.loads(finished([__file__], os.environ | virtual_devices(4)).splitlines()[-1])
    np.testing.assert_allclose(apart, alone, atol=1e-4)


def on_a_mesh() -> list[list[tuple[float, ...]]]:
    """On one device, then on all of them."""
    own = windowed()
    meshes = (None, decoding_mesh(own.config))
    found = [sit(own, ITEMS, PAPER, ExamSettings(batch_size=4), mesh=mesh)[0] for mesh in meshes]
    return [[one.logprobs for one in some] for some in found]


def test_of_letters_that_are_equal_the_earlier_one_counts():
    logits = np.asarray([[1.0, 2.0, 2.0, 0.0]])
    for answer in "BC":
        found = exam._sat(ITEMS[0]._replace(answer=answer), logits, 0.0)
        assert found.choice == "B" and found.correct == (answer == "B")


def test_turned_options_are_averaged(model):
    """Every question is asked four times with its options moved on; a margin that nothing reaches lets nothing pass."""
    found, _ = sit(model, ITEMS[:2], PAPER, ExamSettings(shots=0, turns=4))
    for item, one in zip(ITEMS, found):
        rows = [np.roll(one_by_one(model, turned(item, by), 0), -by) for by in range(4)]
        mean = np.mean(rows, 0)
        np.testing.assert_allclose(one.logprobs, mean - np.logaddexp.reduce(mean), atol=1e-4)
    strict, _ = sit(model, ITEMS, PAPER, ExamSettings(margin=0.999))
    assert not any(one.correct for one in strict)


def test_long_questions_have_fewer_exemplars_or_are_not_asked(model):
    tokens = [len(model.tokenizer(PAPER.before(shots) + asked(ITEMS[1]))["input_ids"]) for shots in range(3)]
    long = ITEMS[1]._replace(question=ITEMS[1].question * 40)
    short = ITEMS[4]
    found, counts = sit(model, [ITEMS[1], long, short], PAPER, ExamSettings(window=tokens[1] + 1))
    assert found[1] is None and counts == {LONG: 1, "questions with fewer exemplars": 2}
    np.testing.assert_allclose(found[0].logprobs, one_by_one(model, ITEMS[1], 1), atol=1e-4)
    assert sit(model, [], PAPER, ExamSettings()) == ([], {})


def byte_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """Single bytes and a few merges of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["</s>", *alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_letters_of_several_tokens(model):
    """A space of its own before each letter is read with the question; letters of different lengths are summed up."""
    apart, uneven = byte_tokenizer(), byte_tokenizer(("Ġ", "B"))
    ids = letter_ids(apart, "Answer:")
    assert common_lead(ids) == 1 and {len(one) for one in ids} == {2}
    assert [len(one) for one in letter_ids(uneven, "Answer:")] == [2, 1, 2, 2]
    for tokenizer in (apart, uneven):
        own = dataclasses.replace(model, tokenizer=tokenizer)
        found, _ = sit(own, ITEMS[3:], PAPER, ExamSettings(shots=0, batch_size=2))
        for one, item in zip(found, ITEMS[3:]):
            np.testing.assert_allclose(one.logprobs, one_by_one(own, item, 0), atol=1e-4)


def test_letters_that_are_one_token_are_refused(model):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Answer": 2, ":": 3, "A": 4, "B": 5}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(InputError, match="makes the same tokens of the letters C and D"):
        letter_ids(tokenizer, "Answer:")
    joined = byte_tokenizer((":", "Ġ"))
    joined.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with pytest.raises(InputError, match="joins 'Answer:' with a letter"):
        letter_ids(joined, "Answer:")


def test_prefix_and_suffixes_are_the_tokens_of_the_whole(model):
    """Whatever the tokenizer merges where they meet."""
    before, questions = PAPER.before(2), [asked(item) for item in ITEMS]
    merging = byte_tokenizer(("Ċ", "Ċ"), ("ĊĊ", "W"))
    merging.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for tokenizer in (model.tokenizer, byte_tokenizer(), merging):
        cut = suffixes(tokenizer, before, questions)
        whole = [tokenizer(before + text)["input_ids"] for text in questions]
        assert [[*cut.shared, *own.tolist()] for own in cut.own] == whole and all(len(own) for own in cut.own)
    alone = merging(before)["input_ids"]
    assert len(cut.shared) == len(alone) - 1  # what stands between merges with the first letter of some questions


def test_the_built_in_exemplars_are_sound():
    assert not any(map(check_item, EXEMPLARS)) and {one.answer for one in EXEMPLARS} == set(LETTERS)
    assert Paper().before(5).count("Answer:") == 5 and Paper().before(0).count("\n\n") == 1


if __name__ == "__main__":
    print(json.dumps(on_a_mesh()))
