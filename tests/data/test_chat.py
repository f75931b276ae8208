"""Chat templates of the families' kinds under the safe rule, and what the official rule makes of them (spec 4.1)."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from fusion_jax.data.chat import ChatSettings, generation_prompt, render, stop_token_ids
from fusion_jax.errors import InputError
from fusion_jax.zoo.tasks import corpus
from fusion_jax.zoo.tokenizers import train_tokenizer

HEADER = "<|start|>{{ m['role'] }}<|sep|>\n\n{{ m['content'] | trim }}<|end|>"
ASK = "{% if add_generation_prompt %}<|start|>assistant<|sep|>\n\n{% endif %}"
TEMPLATES = {
    "llama-3": "{% for m in messages %}{{ bos_token if loop.first }}" + HEADER + "{% endfor %}" + ASK,
    "llama-3.1": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "<|start|>system<|sep|>\n\nCutting Knowledge Date: December 2023\n{{ system }}<|end|>"
        "{% for m in messages %}" + HEADER + "{% endfor %}" + ASK
    ),
    "llama-3.2": (
        "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "<|start|>system<|sep|>\n\nToday Date: {{ date_string }}<|end|>{% for m in messages %}" + HEADER + "{% endfor %}" + ASK
    ),
    "qwen2.5": (
        "{% if messages[0]['role'] != 'system' %}<|start|>system\nYou are a helpful assistant.<|end|>\n{% endif %}"
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    "gemma-2": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "<|start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
    ),
}  # fmt: skip
USER = [{"role": "user", "content": "Hi there"}]
RESPONSE = {
    "llama-3": "<|start|>assistant<|sep|>\n\nHello<|end|>",
    "llama-3.1": "<|start|>assistant<|sep|>\n\nHello<|end|>",
    "llama-3.2": "<|start|>assistant<|sep|>\n\nHello<|end|>",
    "qwen2.5": "<|start|>assistant\nHello<|end|>\n",
    "gemma-2": "<|start|>model\nHello<|end|>\n",
}


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return train_tokenizer("byte_bpe", "headers", 300, corpus(0, 10))


def with_template(base: PreTrainedTokenizerFast, kind: str) -> PreTrainedTokenizerFast:
    base.chat_template = TEMPLATES[kind]
    return base


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_safe_rule(base, kind):
    tokenizer = with_template(base, kind)
    prompt, response = render(tokenizer, USER, "Hello")
    assert response == RESPONSE[kind] and "Hi there" in prompt and "assistant<" not in prompt
    whole, rest = render(tokenizer, USER, "Hello", ChatSettings(header="prompt"))
    assert (
        whole == generation_prompt(tokenizer, USER) and rest.startswith("Hello") and prompt + response == whole + rest
    )
    long = [*USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "More"}]
    assert render(tokenizer, long, "Hello")[1] == RESPONSE[kind]
    assert tokenizer.convert_tokens_to_ids("<|end|>") in stop_token_ids(tokenizer, {})


def test_the_official_rule_is_the_same_on_llama_3_and_unsafe_elsewhere(base):
    official = ChatSettings(rule="official")
    tokenizer = with_template(base, "llama-3")
    assert render(tokenizer, USER, " Hello ", official) == render(tokenizer, USER, " Hello ")
    assert "Cutting Knowledge" in render(with_template(base, "llama-3.1"), USER, "Hello", official)[1]
    assert "helpful assistant" in render(with_template(base, "qwen2.5"), USER, "Hello", official)[1]
    with pytest.raises(InputError, match="refuses roles"):
        render(with_template(base, "gemma-2"), USER, "Hello", official)


def test_the_day_is_fixed_and_a_template_that_looks_ahead_is_refused(base):
    assert "Today Date: 26 Jul 2024" in render(with_template(base, "llama-3.2"), USER, "Hello")[0]
    base.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="they part at character 0"):
        render(base, USER, "Hello")
    base.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        render(base, USER, "Hello")
