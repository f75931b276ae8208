"""Which tokens of a text or a chat count, from characters; checked against what the template writes."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_jax.data.chat import turn_end
from fusion_jax.data.documents import (
    chat_documents,
    encode_documents,
    inside,
    scored_bytes,
    text_documents,
    token_counts,
)
from fusion_jax.data.records import Place, Row, parse_sft
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path

ZOO = {n: load_tokenizer(model_path(f"zoo:{n}")) for n in ("target", "llama-source", "qwen-source", "gemma-source")}
TALK = Row(
    "talk",
    (
        {"role": "user", "content": "Sort: d a"},
        {"role": "assistant", "content": "a d"},
        {"role": "user", "content": "b"},
    ),
    ("The answer is b.",),
)


@pytest.mark.parametrize("name", ZOO)
def test_every_answer_and_what_ends_it_is_scored_and_nothing_else(name):
    tokenizer = ZOO[name]
    (document,) = chat_documents([TALK], tokenizer, tokenizer)
    assert [document.text[a:b] for a, b in document.contents] == ["a d", "The answer is b."]
    (text,) = encode_documents(tokenizer, [document], max_length=128)
    scored = tokenizer.decode(text.ids[text.scored])
    end = tokenizer.convert_ids_to_tokens(turn_end(tokenizer))
    assert scored.count(end) == 2
    assert scored.replace(end, "|").replace("\n", "").replace(" ", "") == "ad|Theanswerisb.|"
    outside = tokenizer.decode(text.ids[~text.scored])
    assert "answer" not in outside and "Sort" in outside


def test_a_reader_s_own_strings_stand_in_the_pivot_s_template():
    """Section 2.2: the same template for all, with each model's BOS and EOS strings."""
    (document,) = chat_documents([TALK], ZOO["target"], ZOO["qwen-source"])
    assert document.text.count("<|endoftext|>") == 2 and "</s>" not in document.text
    assert document.text.startswith("<s>[INST] Sort: d a [/INST]")
    (text,) = encode_documents(ZOO["qwen-source"], [document], max_length=128)
    assert (text.ids[text.scored] == ZOO["qwen-source"].eos_token_id).sum() == 2


def test_plain_text_is_scored_whole_with_eos_and_counted_in_bytes():
    (document,) = text_documents(["Dé 1"])
    (text,) = encode_documents(ZOO["target"], [document], max_length=16)
    assert text.ids[-1] == ZOO["target"].eos_token_id and text.scored.tolist() == [False] + [True] * (len(text.ids) - 1)
    assert text.offsets[-1].tolist() == [4, 4]
    assert scored_bytes(document, text.offsets) == 5 - 1  # nothing predicts the first token, "D"
    assert token_counts(ZOO["target"], [document]) == [len(text.ids)]


def test_tokens_inside_a_span():
    offsets = np.asarray([[0, 2], [2, 2], [2, 5], [5, 5], [5, 6]])
    assert inside(offsets, (2, 5)).tolist() == [False, True, True, False, False]
    assert inside(offsets, (1, 3)).tolist() == [True, True, True, False, False]


def test_a_template_that_changes_an_answer_is_refused():
    import copy

    shouting = copy.deepcopy(ZOO["target"])
    shouting.chat_template = shouting.chat_template.replace("m['content'] | trim", "m['content'] | upper")
    with pytest.raises(InputError, match="record talk, field 'chat_template': the template renders a turn differently"):
        chat_documents([TALK], shouting, shouting)


def test_shared_conversations_become_messages():
    turns = [("gpt", "hello"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    record = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    row = parse_sft(record, Place("f", 1))
    assert [m["content"] for m in row.messages] == ["a", "b", "c"] and row.responses == ("d",)
    with pytest.raises(InputError, match=r"record 1, field 'conversations\[1\]'"):
        parse_sft({"conversations": [turns and {"from": "human", "value": "a"}, {"from": "robot"}]}, Place("f", 1))
    with pytest.raises(InputError, match="does not end with an assistant message"):
        parse_sft({"conversations": record["conversations"][:-1]}, Place("f", 1))
