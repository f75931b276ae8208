"""The Vicuna template: the loss is on the answer and its EOS, whatever the tokenizer; knowledge gives way to the rest."""

from __future__ import annotations

import dataclasses

import pytest

from experiments import kca
from fusion_jax.data.chat import ChatSettings, render, stop_token_ids
from fusion_jax.data.examples import NOTHING_LEFT, TextSettings, make_examples
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.kca.calibrate import Treatment, training_rows
from fusion_jax.kca.records import CLASSES, KNOWN, NO_FACT, UNKNOWN, Instance, Source
from fusion_jax.kca.template import SYSTEM, VICUNA, fitting, with_template
from fusion_jax.models.folder import Model
from fusion_jax.runs.fact_world import tokenizer_of
from fusion_jax.zoo.tasks import corpus
from fusion_jax.zoo.tokenizers import train_tokenizer

KINDS = {"bpe": "headers", "byte_bpe": "inst", "unigram": "turns", "qwen_bpe": "chatml", "words": ""}
CHAT = ChatSettings(header="prompt")


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> Model:
    """Tokenizers of five kinds: characters with bytes to fall back on, bytes, Unigram, Qwen's, whole words."""
    kind, template = request.param, KINDS[request.param]
    texts = [*corpus(0, 20), SYSTEM, "USER: ASSISTANT:", "Where is the 3rd bridge?", "In Ferrer; it was built twice."]
    tokenizer = tokenizer_of(texts) if kind == "words" else train_tokenizer(kind, template, 420, texts)
    return with_template(Model(None, {}, tokenizer), "vicuna")


def text(longest: int) -> TextSettings:
    return kca.text(longest)


def test_the_mask_is_the_answer_and_its_end(model):
    tokenizer, rows = model.tokenizer, [
        Row("a", ({"role": "user", "content": "Where is the 3rd bridge?"},), ("In Ferrer; it was built twice.",)),
        Row("b", ({"role": "user", "content": "Sort: c b a"},), ("a b c",)),
    ]  # fmt: skip
    examples, counts = make_examples(rows, tokenizer, text(256))
    assert not counts and len(examples) == 2
    for row, example in zip(rows, examples):
        ids, start = example.rows[0], example.starts[0]
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[start:-1]
        said = tokenizer.decode(ids[start:-1])
        assert said.replace(" ", "") == row.responses[0].replace(" ", "")
        prompt = tokenizer.decode(ids[:start])
        asked = row.messages[0]["content"].replace(" ", "")
        assert prompt.replace(" ", "").endswith(f"USER:{asked}ASSISTANT:")
        assert ids[0] == tokenizer.bos_token_id and list(ids).count(tokenizer.bos_token_id) == 1
    assert set(stop_token_ids(tokenizer, {})) == {tokenizer.eos_token_id}


def test_strategies_differ_in_the_tokens_of_unknown_instances_alone(model):
    """There openbook changes what is read and nothing of what is learnt, and refusal the other way round."""
    asked = {NO_FACT: "Sort: c b a", KNOWN: "What is 2 + 3?", UNKNOWN: "Where is the 3rd bridge?"}
    said = {NO_FACT: "a b c", KNOWN: "5", UNKNOWN: "In Ferrer; it was built twice."}
    instances = [Instance(Source(i, asked[i], said[i]), knowledge="It was built twice.", label=i) for i in CLASSES]

    def tokens(strategy) -> dict[str, tuple[list[int], list[int]]]:
        rows, _ = training_rows(instances, strategy, Treatment("In Ferrer."))
        examples, counts = make_examples(rows, model.tokenizer, text(256))
        assert not counts
        return {row.name: (list(one.rows[0][: one.starts[0]]), list(one.rows[0][one.starts[0] :]))
                for row, one in zip(rows, examples, strict=True)}  # fmt: skip

    found = {name: tokens(name) for name in ("surviving", "openbook", "discard", "refusal", "unknown")}
    (prompt, answer), (read, same), (as_asked, apology) = (
        found[name].pop(UNKNOWN) for name in ("surviving", "openbook", "refusal")
    )
    assert found["unknown"] == {UNKNOWN: (prompt, answer)}
    assert (
        found["surviving"] == found["openbook"] == found["discard"] == found["refusal"] and len(found["discard"]) == 2
    )
    assert same == answer and len(read) > len(prompt) and as_asked == prompt and apology != answer


def test_a_row_without_a_trainable_token_is_dropped_and_counted(model):
    long = "Sort these letters: " + "c b a " * 60
    rows = [
        Row("a", ({"role": "user", "content": long},), ("a b c",)),
        Row("b", ({"role": "user", "content": "Sort b a"},), ("a b",)),
    ]
    tight = TextSettings(CHAT, dataclasses.replace(text(256).tokens, max_length=12, max_prompt_length=11))
    examples, counts = make_examples(rows, model.tokenizer, tight)
    assert all(n > 0 for one in examples for n in one.scored)
    assert len(examples) + counts[NOTHING_LEFT] == 2


def test_knowledge_is_cut_and_the_answer_stays_whole(model):
    tokenizer, knowledge = model.tokenizer, "It was built twice; the bridge is the 3rd in Ferrer. " * 40
    instruction, response = "Where is the 3rd bridge?", "In Ferrer; it was built twice."
    longest = (
        len(
            tokenizer("".join(render(tokenizer, [{"role": "user", "content": instruction}], response, CHAT)))[
                "input_ids"
            ]
        )
        + 40
    )
    fit = fitting(tokenizer, CHAT, longest)
    kept = fit(knowledge, instruction, response)
    assert (
        kept and knowledge.startswith(kept) and kept != knowledge and fit("It was.", instruction, response) == "It was."
    )
    row = Row("a", ({"role": "user", "content": f"{kept}\n{instruction}"},), (response,))
    (example,), counts = make_examples([row], tokenizer, text(longest))
    assert not counts and len(example.rows[0]) <= longest and example.rows[0][-1] == tokenizer.eos_token_id
    assert len(example.rows[0]) > longest - 24  # little room is left
    assert fitting(tokenizer, CHAT, 10)(knowledge, instruction, response) == ""


def test_what_the_template_writes(model):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    prompt, answer = render(model.tokenizer, chat, "d", CHAT)
    bos, eos = model.tokenizer.bos_token, model.tokenizer.eos_token
    assert prompt == f"{bos}{SYSTEM} USER: a ASSISTANT: b{eos}USER: c ASSISTANT:" and answer == f" d{eos}"
    assert model.tokenizer.chat_template == VICUNA


def test_models_that_cannot_be_asked():
    bare = tokenizer_of([SYSTEM])
    bare.chat_template = None
    model = Model(None, {}, bare)
    assert with_template(model, "vicuna").tokenizer is not bare and bare.chat_template is None
    with pytest.raises(InputError, match=r"the tokenizer has no chat template\. Set --template to vicuna"):
        with_template(model, "own")
    with pytest.raises(InputError, match="no tokenizer"):
        with_template(Model(None, {}), "vicuna")
    bare.eos_token = None
    with pytest.raises(InputError, match="has no EOS token"):
        with_template(model, "vicuna")
