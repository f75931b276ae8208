"""Sessions of every kind of attention: whatever was read, taken back, replaced or packed, the log-probabilities are those
of the plain forward pass over the whole text."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from fusion_jax.errors import InputError
from fusion_jax.models.decode import next_logits
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, logits
from fusion_jax.models.parameters import init_params
from fusion_jax.sampling import session as sessions
from fusion_jax.sampling.drafts import Rules, Writing, begin, commit_draft, empty_draft, go_on
from fusion_jax.sampling.prompts import Ready, ready
from fusion_jax.sampling.session import (
    Candidate,
    behind,
    commit,
    extend,
    pack,
    replace,
    rollback,
    scored,
    scores,
    start,
    tokens_kept,
)
from tests.parity.checkpoints import CONFIGS, LATENT, SMALL
from tests.small import ROOT

pytestmark = pytest.mark.usefixtures("quick_compiler")

LAYERS = {"num_hidden_layers": 2, "max_position_embeddings": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped": ("llama", {**SMALL, **LAYERS}),
    "windowed": ("gemma2", {**SMALL, **CONFIGS["gemma2"][1], **LAYERS}),
    "latent": ("deepseek_v2", {**SMALL, **LATENT, **LAYERS, "q_lora_rank": 20, "n_shared_experts": 1}),
    "distances": ("mpt", {**SMALL, **LAYERS, "max_seq_len": 128}),
    "parallel": ("gpt_neox", {**SMALL, **LAYERS, "hidden_size": 64}),
    "encoder": ("bart", {
        "vocab_size": 96, "d_model": 48, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 80, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.25,
        "max_position_embeddings": 128, "decoder_start_token_id": 2}),
    "encoder, buckets": ("t5", {
        "vocab_size": 96, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 1, "num_decoder_layers": 2,
        "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        "decoder_start_token_id": 0}),
}  # fmt: skip
PLAIN = 8, 96  # rows and tokens of the forward pass that is compared with


class Subject(NamedTuple):
    """A model, and the same ready to go on."""

    model: Model
    ready: Ready


@functools.cache
def subject(name: str) -> Subject:
    family, options = FAMILIES[name]
    config = config_from_hf(transformers.AutoConfig.for_model(family, **options).to_dict())
    model = Model(config, init_params(config, jax.random.key(3)))
    return Subject(model, ready(model.params, config, jnp.float32))


@functools.cache
def compiled(name: str) -> Any:
    model = subject(name).model
    if model.config.encoder:
        return jax.jit(lambda ids, lengths, own: logits(model, ids, lengths, decoder_tokens=own))
    return jax.jit(lambda ids: logits(model, ids))


def padded(texts, rows, width) -> np.ndarray:
    out = np.zeros((rows, width), np.int32)
    for row, text in enumerate(texts):
        out[row, : len(text)] = text
    return out


def plain(name: str, texts, asked=None) -> list[np.ndarray]:
    """Log-probabilities [len(text),V] behind every token of each text; asked: what an encoder reads."""
    rows, width = PLAIN
    if asked is None:
        found = compiled(name)(padded(texts, rows, width))
    else:
        lengths = np.ones(rows, np.int32)
        lengths[: len(asked)] = [len(one) for one in asked]
        found = compiled(name)(padded(asked, rows, 24), lengths, padded(texts, rows, width))
    found = np.asarray(jax.nn.log_softmax(jnp.asarray(found, jnp.float32), -1))
    return [found[row, : len(text)] for row, text in enumerate(texts)]


def drawn(seed: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 96, length).tolist() for length in lengths]


def check(name: str, session, candidates, asked=None, **how) -> None:
    """What every candidate of a session gets, and what the next token is chosen from, beside the plain forward pass."""
    known = subject(name)
    found = scored(known.ready, session, candidates, greedy=True, **how)
    assert [len(row) for row in found] == [len(row) for row in candidates]
    for text, row, told, number in zip(session.texts, candidates, found, range(len(found)), strict=True):
        if not row:
            continue
        whole = [[*text[: one.start], *one.ids] for one in row]
        every = plain(name, whole, None if asked is None else [asked[number]] * len(whole))
        for one, ids, logprobs, got in zip(row, whole, every, told, strict=True):
            places = np.arange(one.start, len(ids))
            expected = logprobs[places - 1, ids[one.start :]]
            np.testing.assert_allclose(got.logprobs, expected, atol=1e-5)
            assert got.greedy.tolist() == (logprobs[places - 1].argmax(-1) == ids[one.start :]).tolist()
    ends = plain(name, session.texts, asked)
    last = jax.nn.log_softmax(next_logits(session.read.last, known.ready.apart.rest, known.model.config), -1)
    for row, logprobs in enumerate(ends):
        np.testing.assert_allclose(last[row], logprobs[-1], atol=1e-5 * np.abs(logprobs[-1]).max())
    assert session.read.lengths[: len(session.texts)].tolist() == [len(text) for text in session.texts]


def best(name: str, texts, asked=None) -> list[int]:
    return [int(logprobs[-1].argmax()) for logprobs in plain(name, texts, asked)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_session_says_what_the_whole_text_says(name):
    """Read, extended, taken back, continued by a candidate that replaces the end, replaced, grown past its room."""
    known = subject(name)
    asked = drawn(0, 9, 14, 5) if known.model.config.encoder else None
    session = start(known.ready, asked or drawn(0, 9, 14, 5))
    more = drawn(1, 9, 14, 5) if asked else drawn(1, 4, 0, 11)
    session = extend(known.ready, session, more)
    texts = [[*text] for text in session.texts]
    greedy = best(name, texts, asked)
    new = drawn(2, 5, 3, 4, 6, 2)
    check(name, session, [
        [Candidate(len(texts[0]), [greedy[0], *new[0]]), Candidate(len(texts[0]) - 3, new[1]), Candidate(4, ())],
        [],
        [Candidate(2, new[2])],
    ], asked)  # fmt: skip

    lengths = [len(texts[0]) - 2, len(texts[1]), len(texts[2]) - 1]
    session = rollback(known.ready, session, lengths)
    texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    assert [[*text] for text in session.texts] == texts
    offered = [[Candidate(lengths[0], new[3]), Candidate(lengths[0] - 4, new[4])], [], [Candidate(lengths[2], new[0])]]
    packed = pack(known.ready, session, offered)
    told = scores(known.ready, packed)
    session = commit(known.ready, session, packed, [1, None, 0])
    texts[0], texts[2] = [*texts[0][: lengths[0] - 4], *new[4]], [*texts[2], *new[0]]
    assert [[*text] for text in session.texts] == texts
    expected = plain(name, [texts[2]], asked and asked[2:])[0]
    places = np.arange(lengths[2], len(texts[2]))
    np.testing.assert_allclose(told[2][0].logprobs, expected[places - 1, new[0]], atol=1e-5)
    check(name, session, [[Candidate(len(texts[0]), new[1])], [Candidate(1, new[2])], [Candidate(3, new[0])]], asked)

    other = drawn(3, 23)[0]
    session, before = replace(known.ready, session, {1: other}), session.texts
    asked = asked and [asked[0], other, asked[2]]
    assert session.texts[0] == before[0] and session.texts[2] == before[2]
    assert [*session.texts[1]] == ([known.model.config.start] if asked else other)
    for number in range(3):  # the third text outgrows its room of 64
        session = extend(known.ready, session, drawn(4 + number, 2, 0, 20))
    assert len(session.texts[2]) > 64 and tokens_kept(session.read.kept) == 128
    lengths = [len(text) for text in session.texts]
    check(name, session, [[Candidate(lengths[0] - 1, new[0])], [], [Candidate(lengths[2], new[1])]], asked)


def test_a_longer_text_for_an_encoder():
    """One that its room does not hold, in place of another."""
    model = subject("encoder").ready
    session = start(model, drawn(0, 9, 14, 5))
    long = drawn(6, 70)[0]
    session = replace(model, session, {1: long})
    alone = start(model, [long], room=20)
    offered = [Candidate(1, drawn(7, 4)[0])]
    found = scored(model, session, [[], offered, []])[1][0].logprobs
    np.testing.assert_allclose(found, scored(model, alone, [offered])[0][0].logprobs, atol=1e-5)


def test_a_draft_that_is_committed_is_a_text():
    """Greedy tokens of a draft, all but the last of which are taken."""
    model = subject("grouped").ready
    session = start(model, drawn(0, 9, 14, 5))
    writing = Writing(6, block=6, traced=True)
    rules = Rules(jnp.zeros((3, 2), jnp.uint32), jnp.asarray([-1]), np.int32(6))
    draft = empty_draft(model.how, writing, 3, 0)()
    draft = begin(model.how, writing)(model.apart, session.read, rules, draft, jnp.ones(3, bool))
    draft = go_on(model.how, writing)(model.apart, session.read, rules, draft, np.int32(9), np.int32(9))
    ids = np.asarray(draft.ids)
    texts = [[*text, *own[:count].tolist()] for text, own, count in zip(session.texts, ids, (5, 0, 2), strict=True)]
    session = commit_draft(model, session, draft, (5, 0, 2))
    assert [[*text] for text in session.texts] == texts
    assert best("grouped", texts) == [ids[0, 5], ids[1, 0], ids[2, 2]]
    check("grouped", session, [[Candidate(len(text), one)] for text, one in zip(texts, drawn(2, 3, 4, 5))])


def test_more_candidates_than_a_row_holds():
    """In several forward passes, a candidate that is longer than a row among them."""
    known = subject("grouped")
    session = start(known.ready, drawn(0, 9, 14, 5))
    offered = [[Candidate(9 - number % 3, ids) for number, ids in enumerate(drawn(5, 3, 12, 2, 30, 1, 7))], [], []]
    check("grouped", session, offered, most=16)
    assert scored(known.ready, session, [[], [], []]) == [[], [], []]


def test_only_what_differs_is_a_candidate():
    assert behind([5, 6, 7], [5, 6, 8, 9], 3) == Candidate(2, [8, 9])
    assert behind([5, 6, 7], [5, 6, 7, 9], 2) == Candidate(2, [7, 9])
    assert behind([5, 6, 7], [5, 6], 3) == Candidate(2, [])


def test_the_examples_of_the_page():
    page = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
    known: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "docs/sampling.md", "exec"), known)
    model, session, found = known["model"], known["session"], known["found"]
    assert [model.tokenizer.decode(one.ids) for one in known["scored"]] == ["42", "41"]
    assert known["best"].logprob == max(one.logprob for one in known["scored"])
    assert [model.tokenizer.decode(text) for text in session.texts] == ["Reverse a b c", "What is 12 + 30"]
    whole = [*session.texts[0], *known["encode"](" d e")]
    expected = np.asarray(jax.nn.log_softmax(logits(model, np.asarray([whole]))[0].astype(jnp.float32)))
    places = np.arange(len(session.texts[0]), len(whole))
    np.testing.assert_allclose(found[0][0].logprobs, expected[places - 1, np.asarray(whole)[places]], atol=1e-5)


def test_what_is_no_text_and_no_candidate():
    model = subject("grouped").ready
    with pytest.raises(InputError, match="record 2, field 'text': has no token"):
        start(model, [[3], []])
    session = start(model, drawn(0, 9, 14, 5))
    for place in (0, 10):
        with pytest.raises(ValueError, match=f"starts at place {place} of a text of 9 tokens"):
            pack(model, session, [[Candidate(place, [3])], [], []])


def test_many_logits_are_judged_as_few_are(monkeypatch):
    """The vocabulary in pieces, and at once; another number of rows is another program."""
    known = subject("grouped")
    rng = np.random.default_rng(4)
    after = rng.normal(size=(3, 9, known.model.config.width)).astype(np.float32)
    labels, firsts = rng.integers(0, 96, (3, 9)), rng.integers(0, 96, (3, 4))
    judged = sessions._judged(known.ready.how, True)
    few = judged(known.ready.apart.rest, after[:2], labels[:2], firsts[:2])
    monkeypatch.setattr(sessions, "MOST_LOGITS", 0)
    many = judged(known.ready.apart.rest, after, labels, firsts)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(one, other[:2], atol=1e-5)
