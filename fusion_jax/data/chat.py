"""Chat templates: from a conversation and its answer to (prompt text, response text).

The safe rule renders [prompt] and [prompt, answer] and takes what the second adds. Rendering the answer alone, as the
official code does, breaks templates that open with a system block (Llama-3.1, Qwen2.5) or demand alternating roles
(Gemma-2); it stays available as the rule "official" (WRPO spec sections 4.1 and 10).
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fusion_jax.arguments import listed
from fusion_jax.data.templates import TemplateError, render_ahead, render_request, template_request
from fusion_jax.errors import InputError, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGES = "Give a list of messages, also for one: [{'role': 'user', 'content': ...}]"
DATE = "26 Jul 2024"  # templates that print the day get a fixed one, so that a run can be repeated
AT_ONCE = 64  # conversations that are rendered in one exchange with the process that renders
REASONING_ENDS = ("</think>", "[/THINK]", "</seed:think>")  # templates leave out what precedes it in earlier answers


@dataclass(frozen=True)
class ChatSettings:
    """How messages become text; see the module for the rules."""

    rule: Literal["safe", "official"] = "safe"
    """How the chat template is used: as it must be for each template, or as the published code does."""
    header: Literal["response", "prompt"] = "response"
    """Whether the assistant's header is scored with the response or given with the prompt."""
    date: str = DATE
    """The date that templates with a clock write."""


Error = TypeVar("Error", bound=InputError)


class Unfaithful(InputError):
    """The rendered text does not hold what it renders."""


class LostText(Unfaithful):
    """The template renders such a conversation, but changes what one of these messages says."""


def in_record(error: Error, record: int | str) -> Error:
    """The same error with the record that it is about."""
    return type(error)(error.problem, file=error.file, record=record, field=error.field, cure=error.cure)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if not template:
        raise InputError(
            "the tokenizer has no chat template", file=tokenizer.name_or_path, field="chat_template",
            cure="Put chat_template.jinja into the model folder, or \"chat_template\" into its tokenizer_config.json",
        )  # fmt: skip
    if isinstance(template, Mapping):
        template = template.get("default", next(iter(template.values())))
    if not isinstance(template, str):
        raise InputError(
            f"the chat template is {quoted(template)}, not text", file=tokenizer.name_or_path, field="chat_template",
            cure="Write a Jinja template",
        )  # fmt: skip
    return template


def _check_messages(messages: object) -> None:
    for number, message in enumerate(listed(messages, "messages", "messages", _MESSAGES), 1):
        if not isinstance(message, Mapping):
            raise InputError(f"is {quoted(message)}, not a message", record=number, field="messages", cure=_MESSAGES)


def render_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    *,
    header: bool,
    date: str = DATE,
    special: Mapping[str, str] = {},
) -> str:
    """A conversation through the template; `header` appends the assistant's header (generation prompt).

    The text holds what every message says, in order and to the letter: a template may trim outer white space, put the
    system message elsewhere, and leave out the reasoning of answers before the last message, nothing else.

    special: strings to put in the place of the tokenizer's own, such as "eos_token".

    Raises:
      LostText: the template changes what one of these messages says.
      Unfaithful: the template leaves out messages of a role, or renders an answer twice.
      InputError: the template refuses the roles, or has no bounds.
    """
    _check_messages(messages)
    variables = _variables(tokenizer, header, date, special)
    text = _applied(tokenizer, {**variables, "messages": [dict(m) for m in messages]})
    _check_holds(tokenizer, text, messages, variables)
    return text


def warm(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[tuple[Sequence[Mapping[str, str]], bool]],
    *,
    date: str = DATE,
) -> None:
    """Render many (messages, header) at once, for the next calls of `render_text` to find."""
    template = _template(tokenizer)
    with_header, without = (_variables(tokenizer, header, date, {}) for header in (True, False))
    render_ahead([
        _request(template, {**(with_header if header else without), "messages": [dict(m) for m in messages]})
        for messages, header in chats
    ])  # fmt: skip


def _variables(
    tokenizer: PreTrainedTokenizerBase, header: bool, date: str, special: Mapping[str, str]
) -> dict[str, Any]:
    """What a template sees beside the messages."""
    known = {k: v if isinstance(v, list) else str(v) for k, v in tokenizer.special_tokens_map.items()}
    given = {"tools": None, "documents": None, "date_string": date, **special, "add_generation_prompt": header}
    return {**known, **given}


def _request(template: str, variables: Mapping[str, Any]) -> str:
    return template_request(template, variables, day=_day(str(variables["date_string"])))


def _applied(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> str:
    """The template's text, unchecked."""
    try:
        return render_request(_request(_template(tokenizer), variables))
    except TemplateError as error:
        roles = [m["role"] for m in variables["messages"]]
        raise InputError(
            f"the chat template refuses roles {quoted(roles) if len(roles) > 9 else roles} ({error})",
            file=tokenizer.name_or_path, field="chat_template", cure="Change the messages' roles or the template",
        ) from None  # fmt: skip


@functools.cache
def _day(date: str) -> str:
    """The date as ISO; `DATE` where it is written in another way."""
    try:
        return datetime.datetime.strptime(date, "%d %b %Y").date().isoformat()
    except ValueError:
        return "2024-07-26"


_MARK = re.compile(r"Aq7Zx(\d+)Bk")  # stands for the content of a message; nothing that a template would touch


@functools.lru_cache(1024)
def _pieces(template: str, roles: tuple[str, ...], variables: str) -> tuple[str, ...]:
    """What the template writes around messages of these roles: (literal, message number, literal, ...)."""
    given = json.loads(variables)
    marked = [{"role": role, "content": f"Aq7Zx{i}Bk"} for i, role in enumerate(roles)]
    return tuple(_MARK.split(render_request(_request(template, {**given, "messages": marked}))))


def _check_holds(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]
) -> None:
    """Refuse a text that does not hold its messages; see `render_text`."""
    roles, said = tuple(m["role"] for m in messages), [m["content"] for m in messages]
    try:
        pieces = _pieces(_template(tokenizer), roles, json.dumps(dict(variables)))
    except TemplateError:  # it renders these contents, but not any
        pieces = ()
    if pieces:
        _check_places(tokenizer, roles, said, [int(i) for i in pieces[1::2]])
        if _is_filled(text, pieces, said):
            return
    at = 0
    for i, content in enumerate(said):
        core, earlier = content.strip(), roles[i] == "assistant" and i + 1 < len(roles)
        forms = [core, *({without_reasoning(core)} if earlier else ())]
        start = 0 if roles[i] == "system" else at
        found = next((text.find(f, start) + len(f) for f in forms if text.find(f, start) >= 0), -1)
        if found < 0 or (0 < len(core) < 16 and not _is_due_to(tokenizer, text, core, i, messages, variables)):
            raise LostText(
                f"the chat template changes or leaves out text of the {roles[i]}'s message {i + 1}, {quoted(core)}",
                file=tokenizer.name_or_path, field="chat_template",
                cure="Use a template that keeps the text (some cut what stands before </think>, or the white space "
                "around it), or write the text as the template does",
            )  # fmt: skip
        at = at if roles[i] == "system" else found


def _check_places(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], said: Sequence[str], places: Sequence[int]
) -> None:
    """Refuse a template that leaves out messages of a role, repeats answers, or does not keep the order."""
    lost = next((i for i, content in enumerate(said) if content.strip() and i not in places), None)
    twice = next((i for i, role in enumerate(roles) if role == "assistant" and places.count(i) > 1), None)
    first = [i for i in dict.fromkeys(places) if roles[i] != "system"]
    if lost is not None:
        problem = f"the chat template leaves out the {roles[lost]}'s message {lost + 1} of {len(roles)}"
    elif twice is not None:
        problem = f"the chat template renders the assistant's message {twice + 1} {places.count(twice)} times"
    elif first != sorted(first):
        problem = "the chat template changes the order of the messages"
    else:
        return
    raise Unfaithful(
        problem, file=tokenizer.name_or_path, field="chat_template",
        cure="Use a template that renders every message once (chat_template.jinja in the model folder)",
    )  # fmt: skip


def _is_filled(text: str, pieces: Sequence[str], said: Sequence[str]) -> bool:
    """Whether the text is the pieces with the messages' contents, whole or trimmed, in their places."""
    if not text.startswith(pieces[0]):
        return False
    at = len(pieces[0])
    for number, literal in zip(pieces[1::2], pieces[2::2]):
        c = said[int(number)]
        forms = dict.fromkeys((c, c.strip(), c.rstrip(), c.lstrip(), c.strip("\n"), c.rstrip("\n"), c.lstrip("\n")))
        found = next((f for f in forms if text.startswith(f, at) and text.startswith(literal, at + len(f))), None)
        if found is None:
            return False
        at += len(found) + len(literal)
    return at == len(text)


def _is_due_to(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    core: str,
    i: int,
    messages: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any],
) -> bool:
    """Whether a short text stands there because message i says it: without the message it stands there less often."""
    other = [dict(m) for m in messages]
    other[i]["content"] = "\ue000"
    core = core if core in text else without_reasoning(core)
    return _applied(tokenizer, {**variables, "messages": other}).count(core) < text.count(core)


def without_reasoning(content: str) -> str:
    """An answer without what it thought first, as templates render answers of earlier turns."""
    for end in REASONING_ENDS:
        content = content.rsplit(end, 1)[-1]
    return content.strip()


def reasoning_left_out(messages: Sequence[Mapping[str, str]], text: str) -> int:
    """How many answers in a rendered conversation lost their reasoning."""
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    return sum(without_reasoning(a) != a and a not in text for a in answers)


def render_each(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Mapping[str, str]]],
    *,
    header: bool,
    names: Sequence[str] = (),
) -> Iterator[str | LostText]:
    """`render_text` of many conversations in their order; where one's text is lost, the error in its place.

    Errors name a conversation by its name or, without `names`, by its number from 1.
    """
    for number, messages in enumerate(chats):
        if number % AT_ONCE == 0:
            warm(tokenizer, [(chat, header) for chat in chats[number : number + AT_ONCE]])
        try:
            yield render_text(tokenizer, messages, header=header)
        except LostText as error:
            yield in_record(error, names[number] if names else number + 1)
        except InputError as error:
            raise in_record(error, names[number] if names else number + 1) from None


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
      LostText: the template changes what one of these messages says.
      InputError: no template, roles the template refuses, a template that leaves messages out, or (safe rule) that
        renders the prompt differently when an answer follows.
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
    if response.strip() not in whole[len(prompt) :]:
        raise LostText(
            "part of the answer stands in the rendered prompt", file=tokenizer.name_or_path, field="chat_template",
            cure="Use a template that writes nothing into the prompt that answers begin with",
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
    try:
        _, response = render(tokenizer, [{"role": "user", "content": "a"}], "b")
    except InputError:  # said of the first record that meets it
        return None
    tail = tokenizer(response.rstrip(), add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return int(tail[-1]) if tail and tail[-1] in special else None
