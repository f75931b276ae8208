"""Chat templates: from a conversation and its answer to (prompt text, response text).

The safe rule renders [prompt] and [prompt, answer] and takes what the second adds. Rendering the answer alone, as the
official code does, breaks templates that open with a system block (Llama-3.1, Qwen2.5) or demand alternating roles
(Gemma-2); it stays available as the rule "official" (WRPO spec sections 4.1 and 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from fusion_jax.errors import InputError, first_line

DATE = "26 Jul 2024"  # templates that print the day get a fixed one, so that a run can be repeated


@dataclass(frozen=True)
class ChatSettings:
    """How messages become text; see the module for the rules."""

    rule: Literal["safe", "official"] = "safe"
    """How the chat template is used: as it must be for each template, or as the published code does."""
    header: Literal["response", "prompt"] = "response"
    """Whether the assistant's header is scored with the response or given with the prompt."""
    date: str = DATE
    """The date that templates with a clock write."""


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if not template:
        raise InputError(
            "the tokenizer has no chat template", file=tokenizer.name_or_path, field="chat_template",
            cure="Put chat_template.jinja into the model folder, or \"chat_template\" into its tokenizer_config.json",
        )  # fmt: skip
    return template if isinstance(template, str) else str(template.get("default", next(iter(template.values()))))


def render_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    *,
    header: bool,
    date: str = DATE,
    special: Mapping[str, str] = {},
) -> str:
    """A conversation through the template; `header` appends the assistant's header (generation prompt).

    special: strings to put in the place of the tokenizer's own, such as "eos_token".
    """
    _template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=header, date_string=date,
            **special,
        )  # fmt: skip
    except Exception as error:  # the template's own raise_exception, or a jinja fault
        raise InputError(
            f"the chat template refuses roles {[m['role'] for m in messages]} ({first_line(error)})",
            file=tokenizer.name_or_path, field="chat_template", cure="Change the messages' roles or the template",
        ) from None  # fmt: skip
    return str(text)


def generation_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, date: str = DATE
) -> str:
    """The text after which the assistant's answer starts."""
    return render_text(tokenizer, messages, header=True, date=date)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    response: str,
    settings: ChatSettings = ChatSettings(),
) -> tuple[str, str]:
    """(prompt text, response text) of a conversation and its answer.

    Raises:
      InputError: no template, roles the template refuses, or (safe rule) a template that renders the prompt
        differently when an answer follows.
    """
    if settings.rule == "official":
        return _official(tokenizer, messages, response, settings)
    answer = {"role": "assistant", "content": response}
    whole = render_text(tokenizer, [*messages, answer], header=False, date=settings.date)
    prompt = render_text(tokenizer, messages, header=settings.header == "prompt", date=settings.date)
    if not whole.startswith(prompt):
        at = next((i for i, (a, b) in enumerate(zip(whole, prompt)) if a != b), min(len(whole), len(prompt)))
        raise InputError(
            f"the rendered prompt is not the start of the rendered conversation (they part at character {at}: "
            f"{prompt[at : at + 20]!r} against {whole[at : at + 20]!r})", file=tokenizer.name_or_path,
            field="chat_template", cure="Use a template that renders a message without looking at later ones",
        )  # fmt: skip
    return prompt, whole[len(prompt) :]


def _official(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    response: str,
    settings: ChatSettings,
) -> tuple[str, str]:
    """Spec section 4.1: prompt with an empty system message where the template knows systems, answer on its own."""
    template = _template(tokenizer)
    messages = list(messages)
    if ("system" in template or "<|im_start|>" in template) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": ""})
    prompt = render_text(tokenizer, messages, header=False, date=settings.date)
    answer = render_text(tokenizer, [{"role": "assistant", "content": response}], header=False, date=settings.date)
    return prompt, answer.removeprefix(tokenizer.bos_token or "")


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: generation_config's, the tokenizer's EOS, and the token that closes a rendered turn."""
    given = generation.get("eos_token_id")
    ids = set(given if isinstance(given, list) else [] if given is None else [given])
    ids |= {i for i in (tokenizer.eos_token_id, turn_end(tokenizer)) if i is not None}
    return tuple(sorted(ids))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that closes a rendered answer, or None where the template writes none."""
    if not tokenizer.chat_template:
        return None
    _, response = render(tokenizer, [{"role": "user", "content": "a"}], "b")
    tail = tokenizer(response.rstrip(), add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return int(tail[-1]) if tail and tail[-1] in special else None
