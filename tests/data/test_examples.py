"""From rows of text to examples: what a template loses, what cutting leaves, where a turn ends, how long texts are cut."""

from __future__ import annotations

import copy
import random
import time

import pytest

from fusion_jax.data import clip
from fusion_jax.data.chat import ChatSettings, LostText, generation_prompt, render
from fusion_jax.data.clip import Clip
from fusion_jax.data.examples import NOTHING_LEFT, REASONING_CUT, SAME_TOKENS, TEXT_LOST, TextSettings, make_examples
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings, tokenise_row
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path

ZOO = {name: model_path(f"zoo:{name}") for name in ("target", "llama-source", "qwen-source", "gemma-source")}
TURN = "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'system' %}SYS{% else %} ANSWER{{ eos_token }}{% endif %}"


def template(answer: str, system: str = "<<{{ m.content }}>>") -> str:
    turn = TURN.replace("SYS", system).replace("ANSWER", answer)
    return "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"


CUTS = "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}"
CUTS_EARLIER = "{% set c = m.content %}{% if not loop.last and '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c | trim }}"
USER = ({"role": "user", "content": "2+2?"},)
SYSTEM = ({"role": "system", "content": "Answer in French."}, *USER)
TALK = (*USER, {"role": "assistant", "content": "<think>sum</think>4"}, {"role": "user", "content": "sure?"})


def speaking(answer: str, **rest: str):
    tokenizer = copy.deepcopy(load_tokenizer(ZOO["target"]))
    tokenizer.chat_template = template(answer, **rest)
    return tokenizer


def row(*responses: str | None, messages=USER, name: str = "7") -> Row:
    return Row(name, messages, responses)


def short(length: int = 64, prompt: int = 48, **rest) -> TextSettings:
    return TextSettings(tokens=TokeniseSettings(max_length=length, max_prompt_length=prompt, eos="if_missing", **rest))


@pytest.mark.parametrize(
    ("answer", "system", "messages", "said"),
    [
        ("", "", USER, "leaves out the assistant's message 2 of 2"),
        ("{{ m.content }}", "", SYSTEM, "leaves out the system's message 1 of 3"),
        ("{{ m.content }}{{ m.content }}", "", USER, "renders the assistant's message 2 2 times"),
        ("{{ m.content | upper }}", "", USER, "leaves out the assistant's message 2"),
        ("{{ raise_exception('no answers') if loop.last else m.content }}", "", USER, r"refuses roles .*no answers"),
    ],
)
def test_templates_that_leave_messages_out_are_refused_with_the_record(answer, system, messages, said):
    tokenizer = speaking(answer, system=system)
    with pytest.raises(InputError, match=f"record 7, field 'chat_template': the chat template {said}"):
        make_examples([row("It is 4.", messages=messages)], tokenizer, TextSettings())


@pytest.mark.parametrize("packing", ["none", "reset"])
def test_an_answer_that_the_template_cuts_is_a_counted_drop_and_refused_if_all_are(packing):
    tokenizer = speaking(CUTS)
    settings = TextSettings(packing=packing, tokens=TokeniseSettings(max_length=12, max_prompt_length=8))
    rows = [row("<think>no</think>4"), row("It is 4, and 4, and 4, and 4.", name="8")]
    examples, counts = make_examples(rows, tokenizer, settings)
    assert counts[TEXT_LOST] == 1 and "no" not in tokenizer.decode([i for e in examples for r in e.rows for i in r])
    assert packing != "none" or [e.index for e in examples] == [1]
    with pytest.raises(InputError, match=r"record 7, .*changes or leaves out text of the assistant's message 2"):
        make_examples(rows[:1], tokenizer, settings)


@pytest.mark.parametrize("short_content", ["4", "a", "x"])
def test_a_short_answer_is_not_found_in_the_words_of_the_template(short_content):
    """The text of the template holds the answer, the answer itself is left out."""
    tokenizer = speaking("exact: 4 {% if m.content | length > 1 %}{{ m.content }}{% endif %}")
    with pytest.raises(LostText):
        render(tokenizer, USER, short_content)
    assert render(tokenizer, USER, "44")[1].endswith("exact: 4 44</s>")


def test_reasoning_of_earlier_answers_may_go_and_is_counted():
    tokenizer = speaking(CUTS_EARLIER)
    examples, counts = make_examples([row("<think>yes</think> 4", messages=TALK), row("4")], tokenizer, TextSettings())
    text = tokenizer.decode(list(examples[0].rows[0]))
    assert counts[REASONING_CUT] == 1 and "sum" not in text and "yes" in text and len(examples) == 2


def test_a_template_of_words_alone_is_refused():
    tokenizer = speaking("")
    tokenizer.chat_template = "{{ bos_token }}hello{{ eos_token }}"
    with pytest.raises(InputError, match="leaves out the user's message 1 of 2"):
        make_examples([row("4")], tokenizer, TextSettings())


def test_prompts_for_sampling_hold_what_is_asked():
    tokenizer = speaking("{{ m.content }}")
    assert "2+2?" in generation_prompt(tokenizer, USER)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    with pytest.raises(LostText, match="the user's message 1"):
        generation_prompt(tokenizer, [{"role": "user", "content": "what does </think> mean?"}])


@pytest.mark.parametrize("rule", ["safe", "official"])
def test_real_conversations_pass_in_all_the_zoo(rule):
    for name in ("target", "qwen-source"):
        tokenizer = load_tokenizer(ZOO[name])
        rows = [row(" It is 4.\n", "5", messages=m) for m in (USER, SYSTEM)]
        examples, counts = make_examples(rows, tokenizer, TextSettings(chat=ChatSettings(rule=rule)))
        assert len(examples) == 2 and not counts[TEXT_LOST]


def test_what_becomes_equal_or_empty_is_dropped_and_counted():
    tokenizer = speaking("{{ m.content | trim }}")
    settings = short(24, 16)
    same = "one two three four five six seven eight nine ten eleven twelve "
    rows = [
        row("4", " 4\n"),
        row(same + "a", same + "b"),
        row("5", same, same + "b"),
        row("4", "5"),
        row(None, "4", "5"),
        row("  ", "5"),
    ]
    examples, counts = make_examples(rows, tokenizer, settings)
    assert [e.index for e in examples] == [3, 4] and counts[SAME_TOKENS] == 3 and counts["blank response"] == 1
    header = speaking("answer number one two three four five six seven: {{ m.content }}")
    examples, counts = make_examples([row("12345678"), row("4")], header, short(24, 22, truncation="official"))
    assert not examples and counts[NOTHING_LEFT] == 2


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_truncation_fits_by_default():
    """A 65-token prompt with a 68-token answer keeps 63 answer tokens of 128, not 32; BOS stays in front."""
    settings = TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")
    assert settings.truncation == "fit"
    cut = tokenise_row(encode, "p" * 65, ["a" * 68], settings, bos_id=None, eos_id=1)
    assert (len(cut.prompts[0]), len(cut.responses[0])) == (65, 63)
    long = tokenise_row(encode, "s" + "p" * 200 + "q", ["a" * 20], settings, bos_id=ord("s"), eos_id=1)
    assert len(long.prompts[0]) == 107 and long.prompts[0][0] == ord("s") and long.prompts[0][-1] == ord("q")
    from experiments import dpo, sft, wrpo

    assert {m.PRESETS["llama3-8b"].text.tokens.truncation for m in (dpo, sft, wrpo)} == {"official"}


@pytest.mark.parametrize("name", ZOO)
def test_a_turn_that_ends_with_white_space_gets_no_second_eos(name):
    tokenizer = load_tokenizer(ZOO[name])
    for eos in (tokenizer.eos_token, tokenizer.all_special_tokens[-1]):  # as a ChatML tokenizer has it, and as it is
        tokenizer.eos_token = eos
        (example,), _ = make_examples([row("It is 4.")], tokenizer, TextSettings(tokens=TokeniseSettings(eos="if_missing")))
        (always,), _ = make_examples([row("It is 4.")], tokenizer, TextSettings())
        answer = example.rows[0][example.starts[0] :]
        special = [i for i in answer if i in tokenizer.all_special_ids]
        assert answer[-1] in tokenizer.all_special_ids and special.count(answer[-1]) == 1
        assert always.rows[0][-1] == tokenizer.eos_token_id and always.rows[0][: len(example.rows[0])] == example.rows[0]


def test_an_eos_inside_an_answer_or_none_at_all_still_gets_one():
    settings = TokeniseSettings(eos="if_missing")
    row = tokenise_row(encode, "p", ["a\x01b", "a", "a\x01\n"], settings, bos_id=None, eos_id=1, blank=lambda ids: ids == [10])
    assert [r[1:] for r in row.responses] == [[1, ord("b"), 1], [1], [1]]


def test_long_texts_are_cut_before_they_are_tokenised(monkeypatch):
    """The ids kept of a text cut to its bound are those of the whole text, and 20 MB take no time."""
    draw = random.Random(0)
    words = ["twelve", "plus", "\n", "4,", "du", "\u4f60\u597d", "  ", "42.", "supercalifragilistic"]
    for name in ZOO:
        tokenizer = load_tokenizer(ZOO[name])
        rows = [
            row(" ".join(draw.choices(words, k=draw.randint(1, 3000))), messages=({"role": "user", "content": text},))
            for text in (" ".join(draw.choices(words, k=draw.choice([5, 4000]))) for _ in range(6))
        ]
        cut, counts = make_examples(rows, tokenizer, short())
        assert any(len(Clip(tokenizer, 64)(r.responses[0])) < len(r.responses[0]) for r in rows)
        monkeypatch.setattr(clip, "NEVER", 10**9)
        whole, same_counts = make_examples(rows, tokenizer, short())
        monkeypatch.undo()
        assert [e.rows for e in cut] == [e.rows for e in whole] and counts == same_counts
    began = time.process_time()
    (example,), counts = make_examples([row("word " * 4_000_000)], tokenizer, TextSettings())
    assert len(example.rows[0]) == 2048 and counts["truncated"] == 1 and time.process_time() - began < 3
