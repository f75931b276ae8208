"""A model of ours as an answerer: as `generate` writes, first tokens by the logits, questions that do not fit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import fusion_jax as fj
from fusion_jax.asking.ask import Kept, ask
from fusion_jax.asking.contract import Decoding, Failure, Message, Question
from fusion_jax.asking.local import LONG, Local, from_folder
from fusion_jax.asking.log import ReplyLog
from fusion_jax.data.chat import generation_prompt
from fusion_jax.errors import InputError
from tests.small import compiled, small_folder, small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")
TEXTS = ["What is 1 + 2?", "Reverse a b c", "a", "Sort: 3 1 2, then say so"]


@pytest.fixture(scope="module")
def model():
    return small_model(initializer_range=0.5)


def asked(answerer: Local, texts, **how):
    return ask(answerer, [Question.of(text) for text in texts], Decoding(**how))


def test_replies_are_those_of_generate(model):
    found = asked(Local(model, "m", batch_size=2), TEXTS, max_tokens=6)
    wanted = fj.generate(model, TEXTS, max_new_tokens=6, batch_size=2)
    assert [one.text for one in found] == [text for (text,) in wanted] and {one.finish for one in found} <= {
        "stop",
        "length",
    }
    plain = asked(Local(model, "m", chat=False, batch_size=2), TEXTS, max_tokens=6)
    assert [one.text for one in plain] == [
        text for (text,) in fj.generate(model, TEXTS, max_new_tokens=6, chat=False, batch_size=2)
    ]
    assert [one.text for one in plain] != [one.text for one in found]


def test_samples_follow_from_the_seed_and_their_number(model, tmp_path):
    answerer, questions, how = (
        Local(model, "m"),
        [Question.of(text) for text in TEXTS],
        Decoding(6, temperature=1.5, seed=3),
    )
    with ReplyLog.of(tmp_path) as log:
        first, again, second = (ask(answerer, questions, how, Kept(log), sample=sample) for sample in (0, 0, 1))
    assert first == again != second
    assert [one.text for one in first] == [
        text for (text,) in fj.generate(model, TEXTS, max_new_tokens=6, temperature=1.5, seed=3)
    ]


def test_a_reply_ends_before_a_stop(model):
    (whole,) = asked(Local(model, "m"), TEXTS[:1], max_tokens=12)
    stop = whole.text[3:5]
    assert len(stop) == 2
    (cut,) = asked(Local(model, "m"), TEXTS[:1], max_tokens=12, stop=(stop,))
    assert cut.text == whole.text.partition(stop)[0] and cut.finish == "stop"


def test_first_tokens_are_the_logits(model):
    """Softmax of the model's own logits behind the rendered question, to 1e-4; also where one token is all that is asked."""
    answerer, question = Local(model, "m"), Question((Message("system", "be short"), Message("user", "m or M?")))
    ids = model.tokenizer(
        generation_prompt(model.tokenizer, [m._asdict() for m in question.messages]), add_special_tokens=False
    )["input_ids"]
    wanted = np.asarray(jax.nn.log_softmax(compiled(fj.logits, model, np.asarray([ids]))[0, -1]))
    for tokens in (4, 1):
        (reply,) = ask(answerer, [question], Decoding(tokens, top_logprobs=5))
        best = np.argsort(-wanted)[:5]
        assert [one.token for one in reply.logprobs] == [model.tokenizer.decode([i]) for i in best]
        np.testing.assert_allclose([one.logprob for one in reply.logprobs], wanted[best], atol=1e-4)
    (written,) = ask(answerer, [question], Decoding(1))
    assert (written.text, written.finish, written.logprobs) == (reply.text, reply.finish, None)


def test_questions_that_do_not_fit_or_are_changed_fail_alone(model):
    long = Question.of("word " * 300)
    answerer = Local(model, "m")
    assert not answerer.fits(long, Decoding(4)) and answerer.fits(Question.of("a"), Decoding(4))
    first, failed, last = asked(answerer, ["a", "word " * 300, "b"], max_tokens=4)
    assert failed.reason == LONG and "room for 128" in failed.detail
    assert [first.text, last.text] == [one.text for one in asked(answerer, ["a", "b"], max_tokens=4)]
    assert asked(Local(model, "m", window=8), ["a"], max_tokens=4)[0].reason == LONG
    trimming = dataclasses.replace(model)
    trimming.tokenizer.chat_template, kept = (
        "{% for m in messages %}{{ m.content | replace('axe', 'saw') }}{% endfor %}",
        model.tokenizer.chat_template,
    )
    try:
        changed, whole = asked(Local(trimming, "m"), ["an axe falls", "no letter"], max_tokens=4)
    finally:
        model.tokenizer.chat_template = kept
    assert isinstance(changed, Failure) and changed.reason == "chat template changes the question" and whole.finish


def test_a_model_without_a_template_reads_the_text(model):
    tokenizer, kept = model.tokenizer, model.tokenizer.chat_template
    tokenizer.chat_template = None
    try:
        (found,) = asked(Local(model, "m"), ["What is"], max_tokens=4)
        two = Local(model, "m").encoded([Question.of("b", "a")])
    finally:
        tokenizer.chat_template = kept
    assert found.text == fj.generate(model, ["What is"], max_new_tokens=4, chat=False)[0][0]
    assert two == [tokenizer("a\n\nb")["input_ids"]]


def test_a_folder_is_known_by_its_content(tmp_path):
    one, other = small_folder(tmp_path / "one"), small_folder(tmp_path / "other", initializer_range=0.5, hidden_size=16)
    found = from_folder(one)
    assert found.identity == from_folder(one).identity and found.identity.startswith("one@")
    ids = {
        from_folder(folder, name="n", **more).identity
        for folder, more in [
            (one, {}),
            (other, {}),
            (one, {"chat": False}),
            (one, {"window": 64}),
            (one, {"weights": "int8"}),
        ]
    }
    assert len(ids) == 5
    wide = from_folder(one, window=400)
    assert wide.model.config.max_positions == 400 and wide.fits(Question.of("word " * 50), Decoding(4))
    with pytest.raises(InputError, match="400 tokens are more than its 128 positions"):
        from_folder(small_folder(tmp_path / "llama3", rope_scaling={"rope_type": "dynamic", "factor": 2.0}), window=400)
