"""Messages and where they stand: roles, contents and every further key of a message are checked, none is passed over.

A message is {"role", "content"} or, in ShareGPT's form, {"from", "value"}; its content is a text or a list of texts
{"type": "text", "text"}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.errors import InputError, quoted
from fusion_jax.json_files import lone_surrogate

Message = dict[str, str]
Conversation = tuple[Message, ...]
ROLES = ("system", "user", "assistant")
SHARED_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
OTHER_ROLES = {
    **dict.fromkeys(
        ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython"),
        "Leave out conversations with tools: their calls are not rendered",
    ),
    "developer": 'Write "system"',
}

_TOOLS = "calls of tools are not rendered", "Leave such records out"
_LOSS = "shares of the loss are not read", "Remove the field where everything counts, else leave the record out"
_MASK = "sets differ in whether it keeps a message or leaves it out", "Remove the field, or leave the record out"
_THOUGHT = "thoughts beside the answer are not learnt", "Write them into the answer, or remove them"
_MEDIA = "only text is read", "Leave such records out"
_SOURCES = "it is not put before the question", "Write it into the prompt, or remove it"
UNREAD: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("tools", "functions", "tool_calls", "tool_call_id", "function_call", "tool_choice", "available_tools"),
        _TOOLS,
    ),
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "loss_mask", "step_loss_mask"), _LOSS),
    **dict.fromkeys(("reasoning_content", "reasoning", "reasoning_details", "thinking", "thoughts"), _THOUGHT),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos", "attachments"), _MEDIA),
    **dict.fromkeys(("documents", "document", "context", "passage", "persona"), _SOURCES),
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), ("the template is the tokenizer's", "Remove the field")),
}  # what a record may hold that changes what is learnt and that nothing here reads: why, and what to do
UNREAD_IN_MESSAGES = {
    **UNREAD,
    **dict.fromkeys(("loss", "train"), _LOSS),
    "mask": _MASK,
    "name": ("names of speakers are not rendered", "Write it into the content, or remove it"),
}
METADATA = frozenset({
    "id", "uuid", "message_id", "index", "idx", "turn", "turn_id", "turn_identifier", "timestamp", "created_at",
    "create_time", "date", "language", "lang", "source", "model", "model_name", "generator", "category", "score",
    "rating", "rank", "reward", "redacted", "toxic", "toxicity", "hashed_ip", "header", "country", "state", "url",
    "info", "num_tokens", "token_count", "logprobs", "finish_reason",
})  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a record stands, for messages."""

    file: str | None
    record: int | str

    def error(self, problem: str, field: str, cure: str) -> InputError:
        return InputError(problem, file=self.file, record=self.record, field=field, cure=cure)


def absent(value: Any) -> bool:
    """Whether a field says nothing: null, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def text(record: Mapping[str, Any], name: str, place: Place, *, blank: bool = False) -> str:
    """A string field that must be there (and, unless `blank`, hold more than white space)."""
    if name not in record or record[name] is None:
        raise place.error("is missing", name, f'Add "{name}" to the record')
    value = record[name]
    if not isinstance(value, str):
        raise place.error(f"is {type(value).__name__}, not text", name, "Write a JSON string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"holds half of a surrogate pair at character {error.start}, which no tokenizer reads"
        raise place.error(problem, name, "Write the whole pair, or remove it") from None
    if not blank and not value.strip():
        raise place.error("is blank", name, "Fill it in or remove the record")
    return value


def check_text(record: Mapping[str, Any], place: Place) -> None:
    """Refuse a record that holds half of a surrogate pair in any of its texts or names."""
    field = lone_surrogate(record)
    if field is not None:
        problem = "holds half of a surrogate pair, which is no text"
        raise place.error(problem, field, "Write the whole pair, or remove it")


def check_writable(record: Mapping[str, Any], place: Place) -> None:
    """Refuse what no JSON file can hold: halves of surrogate pairs, numbers that are not finite, other types."""
    check_text(record, place)
    waiting: list[tuple[str, Any]] = [(str(key), value) for key, value in record.items()][::-1]
    while waiting:
        field, one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            problem = "is not finite, which no JSON file can hold"
            raise place.error(problem, field, "Write a number, or remove the field")
        if isinstance(one, dict):
            waiting += [(f"{field}.{key}", value) for key, value in reversed(one.items())]
        elif isinstance(one, list):
            waiting += [(f"{field}[{i}]", value) for i, value in reversed(list(enumerate(one)))]
        elif one is not None and not isinstance(one, str | int | float):
            problem = f"is of the type {type(one).__name__}, which no JSON file can hold"
            raise place.error(problem, field, "Write text or numbers, or remove the field")


def check_unread(
    values: Mapping[str, Any], known: Mapping[str, tuple[str, str]], place: Place, within: str = ""
) -> None:
    """Refuse fields that change what is to be learnt and that nothing reads, unless they say nothing."""
    for name, value in values.items():
        if name not in known or absent(value):
            continue
        why, cure = known[name]
        neutral = value == 1 if why == _LOSS[0] else value is False and why != _MASK[0]
        if not neutral:
            raise place.error(f"is {quoted(value)}, but {why}", within + name, cure)


def message(value: Any, where: str, place: Place) -> Message:
    """One message with the keys "role" and "content" alone."""
    if not isinstance(value, Mapping):
        raise place.error("is not a message", where, 'Write {"role": ..., "content": ...}')
    shared = "from" in value and "role" not in value
    speaker, said = ("from", "value") if shared else ("role", "content")
    named = value.get(speaker)
    role = SHARED_ROLES.get(str(named)) if shared else named
    if role not in ROLES:
        known = ("human", "gpt", "system") if shared else ROLES
        cure = OTHER_ROLES.get(str(named), f"Use one of {', '.join(known)}")
        raise place.error(f"has the role {quoted(named)}", where if shared else f"{where}.role", cure)
    check_unread(value, UNREAD_IN_MESSAGES, place, f"{where}.")
    for key, other in value.items():
        if key in (speaker, said) or key in METADATA or key in UNREAD_IN_MESSAGES or absent(other) or other is False:
            continue
        problem = f"is {quoted(other)}: no such key of a message is read"
        raise place.error(problem, f"{where}.{key}", "Write it into the content, or remove it")
    return {"role": role, "content": _content(value, said, where, place)}


def _content(value: Mapping[str, Any], said: str, where: str, place: Place) -> str:
    """A text, or the texts of a list of parts {"type": "text", "text"} one after the other."""
    parts = value.get(said)
    if not isinstance(parts, list) or not parts or not all(isinstance(p, Mapping) and "type" in p for p in parts):
        return text(value, said, place, blank=True)
    for i, part in enumerate(parts):
        if part["type"] != "text":
            problem = f"is {quoted(part['type'])}, but only text is read"
            raise place.error(problem, f"{where}.{said}[{i}].type", "Leave such records out")
    return "".join(text(part, "text", place, blank=True) for part in parts)


def read_messages(value: Any, name: str, place: Place) -> Conversation:
    """The messages of a list, of one message, or of a text (by the user); their order is not looked at.

    A mapping of columns, as `datasets` gives a sequence of messages, is a list of messages, too.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    elif isinstance(value, Mapping):
        value = _rows(value)
    if isinstance(value, Sequence) and not value:
        raise place.error("is empty", name, "Fill it in or remove the record")
    if not isinstance(value, Sequence):
        raise place.error("is not a text, a message or a list of messages", name, "See the data section of the README")
    return tuple(message(one, f"{name}[{i}]", place) for i, one in enumerate(value))


def _rows(columns: Mapping[str, Any]) -> list[Any]:
    lists = [v for v in columns.values() if isinstance(v, list)]
    speakers = columns.get("role", columns.get("from"))
    if not isinstance(speakers, list) or len(lists) < len(columns) or {len(v) for v in lists} != {len(speakers)}:
        return [columns]
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def check_order(messages: Conversation, name: str, place: Place) -> Conversation:
    """The messages, which must be a system message or none, then the user and the assistant in turn."""
    for i, (now, before) in enumerate(zip(messages, (None, *messages))):
        role, where = now["role"], f"{name}[{i}].role"
        if role == "system":
            if i > 0:
                raise place.error("a system message stands after others", where, "Put it first")
        elif before is not None and before["role"] == role:
            raise place.error(f"two {role} messages follow each other", where, "Alternate user and assistant")
        elif role == "assistant" and (before is None or before["role"] == "system"):
            raise place.error("the conversation starts with the assistant", where, "Start with a user message")
    return messages


def messages_of(value: Any, name: str, place: Place) -> Conversation:
    """A conversation: a text (one user message), one message, or a list; checked for roles and their order."""
    return check_order(read_messages(value, name, place), name, place)


_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def transcript(value: Any) -> list[Message] | None:
    """The turns of a text of Anthropic's hh-rlhf, "\\n\\nHuman: ...\\n\\nAssistant: ...", or None of another text.

    An empty answer at the end, after which the model is to speak, is a turn as well.
    """
    if not isinstance(value, str):
        return None
    value = value.strip()
    if not value.startswith("Human:") or not re.search(r"\n\nAssistant:", value):
        return None
    pieces = _TURN.split(value)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2])]
