"""The Vicuna template (version 1.1), through which KCA trains and asks base models, which have none of their own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from fusion_jax.data.chat import ChatSettings, render
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateName = Literal["vicuna", "own"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)  # as Vicuna's models were trained with
PLAIN = (  # Vicuna's without a system sentence of its own
    "{{ bos_token if bos_token else '' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '' if loop.index0 and messages[loop.index0 - 1]['role'] == 'assistant' else ' ' }}USER: {{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %} ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
VICUNA = PLAIN.replace("{% endif %}", "{% else %}" + SYSTEM + "{% endif %}", 1)
MARGIN = 8  # tokens that may be more where two texts meet


def with_template(model: Model, name: TemplateName) -> Model:
    """The model with the template in its tokenizer, so that its folder has it, too.

    Raises:
      InputError: no tokenizer, no EOS token, or no template where it is the model's own that is asked for.
    """
    tokenizer = model.reader
    if name == "own" and not tokenizer.chat_template:
        problem, cure = "the tokenizer has no chat template", "Set --template to vicuna"
        raise InputError(problem, file=model.folder or None, field="--template", cure=cure)
    if tokenizer.eos_token_id is None:
        raise InputError("has no EOS token", file=model.folder or None, field="eos_token", cure="Set one")
    if name == "own":
        return model
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = VICUNA
    return dataclasses.replace(model, tokenizer=tokenizer)


def fitting(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings, longest: int) -> Callable[[str, str, str], str]:
    """(knowledge, instruction, response) -> the beginning of the knowledge that leaves room for the other two in a row
    of `longest` tokens, cut between words; "" where there is none."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def fit(knowledge: str, instruction: str, response: str) -> str:
        prompt, answer = render(tokenizer, [{"role": "user", "content": instruction}], response, chat)
        room = longest - count(prompt + answer) - MARGIN
        if room <= 0:
            return ""
        if count(knowledge) <= room:
            return knowledge
        words = knowledge.split(" ")
        low, high = 0, len(words)
        while low < high:  # the most words that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(" ".join(words[:middle])) <= room else (low, middle - 1)
        return " ".join(words[:low]).rstrip()

    return fit
