"""Chat templates are programs of strangers: sane ones render as transformers renders them, others end in one error."""

from __future__ import annotations

import copy
import threading
import time

import pytest

from fusion_jax.data.chat import generation_prompt, render_text
from fusion_jax.errors import InputError
from fusion_jax.models.folder import load_tokenizer
from fusion_jax.zoo import model_path

LOOP = "{% set ns = namespace(x=START) %}{% for i in range(64) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
SAY = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
UNBOUNDED = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "multiplication": "{{ 'a' * 10**9 }}",
    "a multiplied list": "{{ ([0] * 10**9) | length }}",
    "padding": "{{ 'a'.ljust(10**9) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "recursion": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "doubling": LOOP.replace("START", "'aa'").replace("STEP", "ns.x ~ ns.x"),
    "nested lists": LOOP.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]"),
    "output": "{% for i in range(99999) %}" + "a" * 50 + "{% endfor %}",
    "brackets": "{{ " + "(" * 10**5 + "1" + ")" * 10**5 + " }}",
    "no words": "{{ raise_exception('') }}",
}
SANE = {
    "loop controls": "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}\n{% endfor %}",
    "namespace and macro": (
        "{% set ns = namespace(n=0) %}{% macro say(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ say(m) }}{% endfor %}"
        "{{ dict(a='ä') | tojson(indent=2) }}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "blocks\n": "{% for m in messages %}\n    {% if m.role != 'tool' %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n",
}
CHAT = [
    {"role": "user", "content": "Hi <b>&amp;\"there\"</b> \u4f60\u597d"}, {"role": "assistant", "content": "Yes\n\n no "},
    {"role": "user", "content": "{{ 1 }}"},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return copy.deepcopy(load_tokenizer(model_path("zoo:target")))


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_templates_without_bounds_are_refused(tokenizer, kind):
    tokenizer.chat_template = UNBOUNDED[kind] + SAY
    with pytest.raises(InputError, match=r"field 'chat_template': the chat template .*\(.+\)"):
        generation_prompt(tokenizer, CHAT[:1])
    tokenizer.chat_template = SAY  # the next one is rendered as if nothing had been
    assert generation_prompt(tokenizer, CHAT[:1]) == f"[user] {CHAT[0]['content']}</s>"


@pytest.mark.parametrize("kind", SANE)
@pytest.mark.parametrize("header", [False, True])
def test_sane_templates_render_as_in_transformers(tokenizer, kind, header):
    tokenizer.chat_template = SANE[kind]
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=header)
    assert render_text(tokenizer, CHAT, header=header) == expected


def test_in_any_thread_and_with_a_clock_that_stands(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%d.%m.%Y') }} " + SAY
    out = []
    threads = [threading.Thread(target=lambda: out.append(render_text(tokenizer, CHAT, header=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out) == 4 and len(set(out)) == 1 and out[0].startswith("26.07.2024 [user] Hi")


def test_many_are_not_slow(tokenizer):
    """Processor time of this process beside transformers' own for 300 conversations."""
    tokenizer.chat_template = SAY
    chats = [[{"role": "user", "content": f"question {i} " * 50}] for i in range(300)]
    render_text(tokenizer, chats[0], header=False)
    began = time.process_time()
    for chat in chats:
        render_text(tokenizer, chat, header=False)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("template", [7, ["x"], {"default": 3}])
def test_templates_that_are_no_text_are_refused(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="not text"):
        render_text(tokenizer, CHAT, header=False)
