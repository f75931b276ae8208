"""The kinds of record and their validation. A malformed record is an error; an unusable one is a counted drop.

Files (JSON lines):
  prompts     {"prompt": str, "prompt_id"?: str, "answer"?: str, "skill"?: str}
  responses   {"prompt": str, "source_model": str, "response": str, "prompt_id"?: str, "sample"?: int,
               "reward"?: number, "answer"?: str, "skill"?: str}
  quadruples  the official schema of WRPO: {"prompt_id", "prompt": {"role", "content"},
               "chosen": [{"role", "content"} by the source, {...} by the target], "rejected": [{...}]}
  pairs       {"prompt": str or [messages], "chosen": str or [message], "rejected": str or [message]}
  sft         {"prompt": str, "response": str}, {"messages": [...]}, {"conversations": [{"from": "human" or "gpt",
               "value"}, ...]}, or a quadruple (prompt and chosen[0] are used; null is a counted drop)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusion_jax.data.jsonl import Record, Records, numbered
from fusion_jax.display import brief
from fusion_jax.errors import InputError

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One training example as text: a conversation and the responses to it (1 for sft, 2 a pair, 3 a quadruple).

    messages: the conversation up to and with the last user message. A response of None is absent (a quadruple whose
    source response is missing).
    """

    name: str
    messages: tuple[Message, ...]
    responses: tuple[str | None, ...]

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True)
class Place:
    """Where a record stands, for messages."""

    file: str | None
    record: int | str

    def error(self, problem: str, field: str, cure: str) -> InputError:
        return InputError(problem, file=self.file, record=self.record, field=field, cure=cure)


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


def messages_of(value: Any, name: str, place: Place) -> tuple[Message, ...]:
    """A conversation: a text (one user message), one message, or a list; checked for roles and their order."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    elif isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and not value:
        raise place.error("is empty", name, "Fill it in or remove the record")
    if not isinstance(value, Sequence):
        raise place.error("is not a text, a message or a list of messages", name, "See the data section of the README")
    out: list[Message] = []
    for i, message in enumerate(value):
        where = f"{name}[{i}]"
        if not isinstance(message, Mapping):
            raise place.error("is not a message", where, 'Write {"role": ..., "content": ...}')
        role = message.get("role")
        if role not in ROLES:
            raise place.error(f"has the role {role!r}", f"{where}.role", f"Use one of {', '.join(ROLES)}")
        content = text(message, "content", place, blank=True)
        if role == "system" and i > 0:
            raise place.error("a system message stands after others", f"{where}.role", "Put it first")
        if out and role != "system" and out[-1]["role"] == role:
            raise place.error(f"two {role} messages follow each other", f"{where}.role", "Alternate user and assistant")
        if role == "assistant" and (not out or out[-1]["role"] == "system"):
            raise place.error(
                "the conversation starts with the assistant", f"{where}.role", "Start with a user message"
            )
        out.append({"role": role, "content": content})
    return tuple(out)


def _prompt(record: Record, place: Place) -> tuple[Message, ...]:
    if "prompt" not in record:
        raise place.error("is missing", "prompt", 'Add "prompt" to the record')
    messages = messages_of(record["prompt"], "prompt", place)
    if messages[-1]["role"] != "user":
        raise place.error("does not end with a user message", "prompt", "Put the response into its own field")
    if not messages[-1]["content"].strip():
        raise place.error("is blank", "prompt", "Fill it in or remove the record")
    return messages


def _response(value: Any, name: str, place: Place) -> str:
    """The text of a response given as a text, a message, or a list ending in an assistant message."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        if value.get("role") != "assistant":
            raise place.error(f"has the role {value.get('role')!r}", f"{name}.role", "A response is by the assistant")
        return text(value, "content", place, blank=True)
    if not isinstance(value, str):
        raise place.error("is not a response", name, "Write a text or an assistant message")
    return text({name: value}, name, place, blank=True)


def prompt_id(prompt: str) -> str:
    """A stable id of a prompt's text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def parse_quad(record: Record, place: Place) -> Row:
    """A quadruple of the official schema; `chosen[0]` may be null (no source response)."""
    messages = _prompt(record, place)
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if not isinstance(chosen, list) or len(chosen) != 2:
        raise place.error(
            "must hold exactly two responses",
            "chosen",
            "Give [source's message, target's message] (the first may be null)",
        )
    if not isinstance(rejected, list) or len(rejected) != 1:
        raise place.error("must hold exactly one response", "rejected", "Give [message]")
    source = None if chosen[0] is None else _response(chosen[0], "chosen[0]", place)
    target, worst = _response(chosen[1], "chosen[1]", place), _response(rejected[0], "rejected[0]", place)
    return Row(str(record.get("prompt_id", place.record)), messages, (source, target, worst))


def parse_pair(record: Record, place: Place) -> Row:
    """A pair; of a quadruple the target's own two responses are taken (on-policy DPO)."""
    chosen = record.get("chosen")
    if isinstance(chosen, list) and len(chosen) == 2 and "rejected" in record and _both_assistant(chosen):
        quad = parse_quad(record, place)
        return Row(quad.name, quad.messages, quad.responses[1:])
    for name in ("chosen", "rejected"):
        if name not in record:
            raise place.error("is missing", name, f'Add "{name}" to the record')
    responses = tuple(_response(record[name], name, place) for name in ("chosen", "rejected"))
    return Row(str(record.get("prompt_id", place.record)), _prompt(record, place), responses)


def _both_assistant(chosen: list[Any]) -> bool:
    return all(m is None or (isinstance(m, Mapping) and m.get("role") == "assistant") for m in chosen)


def parse_sft(record: Record, place: Place) -> Row:
    """A conversation with its last answer, in any of the documented forms."""
    name = str(record.get("prompt_id", place.record))
    if "messages" in record or "conversations" in record:
        field = "messages" if "messages" in record else "conversations"
        turns = record[field] if field == "messages" else _shared_turns(record[field], place)
        messages = messages_of(turns, field, place)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise place.error("does not end with an assistant message", field, "Add the response")
        return Row(name, messages[:-1], (messages[-1]["content"],))
    if "chosen" in record:
        chosen = record["chosen"]
        value = chosen[0] if isinstance(chosen, list) and chosen else chosen
        absent = isinstance(chosen, list) and len(chosen) == 2 and value is None
        return Row(name, _prompt(record, place), (None if absent else _response(value, "chosen", place),))
    if "response" not in record:
        raise place.error("is missing", "response", 'Add "response" (or "messages" or "conversations") to the record')
    return Row(name, _prompt(record, place), (_response(record["response"], "response", place),))


SHARED_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _shared_turns(value: Any, place: Place) -> list[Message]:
    """ShareGPT turns {"from", "value"} as messages; turns before the first human one are left out, but a system's."""
    if not isinstance(value, list):
        raise place.error("is not a list of turns", "conversations", 'Write [{"from": ..., "value": ...}, ...]')
    out: list[Message] = []
    for i, turn in enumerate(value):
        where = f"conversations[{i}]"
        role = SHARED_ROLES.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        if role is None:
            raise place.error("is not a turn", where, 'Write {"from": "human", "gpt" or "system", "value": ...}')
        if role != "assistant" or (out and out[-1]["role"] != "system"):
            out.append({"role": role, "content": text(turn, "value", place, blank=True)})
    return out


OnBad = Literal["error", "skip"]
PARSERS = {"quad": parse_quad, "pair": parse_pair, "sft": parse_sft}


def unusable(row: Row) -> str | None:
    """Why a well-formed row cannot be trained on, or None."""
    if row.responses[-1] is None:
        return "no source response"
    if any(r is not None and not r.strip() for r in row.responses):
        return "blank response"
    if len(row.responses) > 1 and row.responses[-2] == row.responses[-1]:
        return "chosen equals rejected"
    return None


def parse_rows(
    records: Iterable[Record], kind: str, *, file: str | None = None, on_bad: OnBad = "error"
) -> tuple[list[Row], Counter[str]]:
    """Records to rows of one kind ("quad", "pair", "sft") with the drops counted by reason.

    Args:
      on_bad: "error" stops at a malformed record; "skip" counts it as a drop.
    """
    rows, drops = [], Counter[str]()
    for number, record in numbered(records):
        try:
            row = PARSERS[kind](record, Place(file, number))
        except InputError as error:
            if on_bad == "error":
                raise
            drops[f"malformed: field '{error.field}' {error.problem}"] += 1
            continue
        reason = unusable(row)
        if reason is None:
            rows.append(row)
        else:
            drops[reason] += 1
    if not rows:
        raise InputError(
            f"no usable {kind} record is left ({dict(drops) or 'the file is empty'})", file=file, cure="Give more data"
        )
    return rows, drops


def parse_prompts(records: Iterable[Record], *, file: str | None = None) -> list[Record]:
    """Prompts of one user message with an id each.

    Raises:
      InputError: another conversation than one user message; a prompt or a given id that stands twice; an answer that
        is no text.
    """
    out, seen = list[Record](), dict[str, int]()
    for number, record in numbered(records):
        place = Place(file, number)
        messages = _prompt(record, place)
        if len(messages) != 1:
            raise place.error("holds more than one user message", "prompt", "Sampling reads single-turn prompts only")
        content = messages[0]["content"]
        identity = str(record.get("prompt_id") or prompt_id(content))
        if identity in seen:
            raise place.error(
                f"repeats record {seen[identity]} (prompt_id {identity})", "prompt_id", "Remove one of the two"
            )
        seen[identity] = number
        _check_answer(record, place)
        out.append({**record, "prompt_id": identity, "prompt": content})
    if not out:
        raise InputError("holds no prompt", file=file, cure="Give at least one")
    return Records(out, list(seen.values()))


def _check_answer(record: Record, place: Place) -> None:
    if record.get("answer") is not None:
        text(record, "answer", place, blank=True)


def check_answers(records: Iterable[Record], *, file: str | None, cure: str) -> None:
    """Refuse parsed prompts or responses if no record of a prompt brings its answer."""
    records = records if isinstance(records, Records) else list(records)
    known = {r["prompt_id"] for r in records if r.get("answer") is not None}
    for number, record in numbered(records):
        if record["prompt_id"] not in known:
            raise Place(file, number).error("is missing", "answer", cure)


def parse_responses(records: Iterable[Record], *, file: str | None = None) -> list[Record]:
    """Ready responses: text fields and numbers checked, ids and sample numbers filled in."""
    out, lines, counts = list[Record](), list[int](), Counter[tuple[str, str]]()
    for number, record in numbered(records):
        place = Place(file, number)
        prompt, source = text(record, "prompt", place), text(record, "source_model", place)
        text(record, "response", place, blank=True)
        identity = str(record.get("prompt_id") or prompt_id(prompt))
        reward = record.get("reward")
        if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
            raise place.error(f"is {reward!r}, not a number", "reward", "Write a number or leave the field out")
        if reward is not None and not math.isfinite(reward):
            raise place.error("is not finite", "reward", "Write a finite number or leave the field out")
        sample = record.get("sample", counts[identity, source])
        if isinstance(sample, bool) or not isinstance(sample, int):
            raise place.error(f"is {sample!r}, not a whole number", "sample", "Number a source's samples from 0")
        counts[identity, source] += 1
        _check_answer(record, place)
        lines.append(number)
        out.append({**record, "prompt_id": identity, "prompt": prompt, "sample": sample})
    if not out:
        raise InputError("holds no response", file=file, cure="Give at least one")
    return Records(out, lines)
