"""The forms in which people keep prompts, answers and preferences, each read as a conversation and answers to it.

What stands before an answer may be in fields of its own (`prompt`, `instruction` and `input`, `question`, `messages`,
`system`, `history`), in the answer's own list of messages, or in both; both must then say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusion_jax.data.messages import (
    UNREAD,
    Conversation,
    Message,
    Place,
    absent,
    check_order,
    check_unread,
    message,
    messages_of,
    read_messages,
    text,
    transcript,
)  # fmt: skip
from fusion_jax.errors import one_line, quoted

Fields = Mapping[str, Any]
CHATS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query")
ANSWERS = ("response", "completion", "output")
_ASKED = '"prompt", "instruction" and "input", "question", or "messages"'
FORMS = {
    "quad": '"prompt" with "chosen" (two messages) and "rejected" (one)',
    "pair": f'{_ASKED}, with "chosen" and "rejected"; or these two as whole conversations; '
    'or with ranked "answers" or scored "completions"',
    "sft": '"prompt" with "response" or "completion", "instruction" with "output", "question" with "answer", '
    '"messages", "conversations"',
    "prompts": '"prompt", "instruction" and "input", or "question"',
    "responses": '"prompt" with "source_model" and "response", or with "all_generated_responses"',
}


def fields_of(record: Fields, place: Place) -> dict[str, Any]:
    """The fields of a record that are not null, in the names that the readers know; meaning that none reads is refused.

    Raises:
      InputError: a field of `UNREAD` that says something.
    """
    if not isinstance(record, Mapping):
        raise place.error(f"is {quoted(record)}, not an object", "record", "Write one {...} a record")
    fields = {name: value for name, value in record.items() if value is not None}
    if isinstance(fields.get("input"), Mapping) and "preferred_output" in fields:  # OpenAI's preference form
        fields |= fields.pop("input")
        fields["chosen"] = fields.pop("preferred_output")
        if "non_preferred_output" in fields:
            fields["rejected"] = fields.pop("non_preferred_output")
    if "instruction" in fields and "context" in fields and absent(fields.get("input")):  # Dolly's name for it
        fields["input"] = fields.pop("context")
    check_unread(fields, UNREAD, place)
    return fields


def check_paired(fields: Fields, place: Place) -> None:
    """Refuse an answer that is marked as wanted or not and has no other beside it (the KTO form)."""
    for name in ("label", "kto_tag"):
        marks = isinstance(fields.get(name), bool) or "completion" in fields or name == "kto_tag"
        if name in fields and marks and "chosen" not in fields:
            problem = "marks answers without pairs (the KTO form), which no objective learns"
            raise place.error(problem, name, "Pair wanted with unwanted answers, or keep the wanted ones without it")


def missing(field: str, kind: str, fields: Fields, place: Place) -> Exception:
    """The error of a record in none of the forms: what it has and what is known."""
    names = [one_line(str(name), 30) for _, name in zip(range(12), fields)]
    found = ", ".join(names) + (", ..." if len(fields) > len(names) else "")
    return place.error(f"is missing (found: {found or 'nothing'})", field, f"Known: {FORMS[kind]}")


def asked(fields: Fields, place: Place) -> Conversation:
    """What stands before the answer by fields of its own: system, history and prompt; empty where none is there."""
    turns: Conversation = ()
    name = "prompt"
    for other in PROMPTS:
        if absent(fields.get(other)) and not (other == "prompt" and other in fields):
            continue
        found = _prompt(fields, other, place)
        if not turns:
            turns, name = found, other
        elif not _says(found, turns):
            problem = f"stands beside '{name}' and says something else"
            raise place.error(problem, other, "Keep one of the two, or write both into one")
    chat = _chat_field(fields)
    if not turns and chat is None and not absent(fields.get("input")):
        turns, name = _prompt(fields, "input", place), "input"
    elif turns and absent(fields.get("instruction")):
        _check_input(fields, turns, name, place)
    if chat is not None:
        whole = _chat(fields[chat], chat, place)
        if whole[-1:] and whole[-1]["role"] == "user":
            turns, name = joined(turns, whole, chat, place), chat
    return _with_history(fields, turns, name, place)


def _check_input(fields: Fields, turns: Conversation, name: str, place: Place) -> None:
    """Refuse an `input` that belongs to no instruction and says what the question does not."""
    given = fields.get("input")
    if not absent(given) and not (isinstance(given, str) and any(given.strip() in turn["content"] for turn in turns)):
        problem = f"stands beside '{name}', which does not hold it"
        raise place.error(problem, "input", f"Write it into '{name}', or rename '{name}' to instruction")


def _chat_field(fields: Fields) -> str | None:
    return next((name for name in CHATS if not absent(fields.get(name))), None)


def _with_history(fields: Fields, turns: Conversation, name: str, place: Place) -> Conversation:
    """Turns behind the system message and the history that stand in fields of their own."""
    if not absent(fields.get("history")):
        system, body = _split(turns)
        turns = (*system, *_history(fields["history"], place), *body)
        name = "history"
    for field in ("system", "system_prompt"):
        if absent(fields.get(field)):
            continue
        said: Message = {"role": "system", "content": text(fields, field, place)}
        if turns and turns[0]["role"] == "system":
            if turns[0]["content"].strip() != said["content"].strip():
                problem = "differs from the system message of the conversation"
                raise place.error(problem, field, "Keep one of the two")
        else:
            turns = (said, *turns)
    return check_order(turns, name, place)


def _prompt(fields: Fields, name: str, place: Place) -> Conversation:
    value = fields[name]
    said = transcript(value)
    if said is not None:
        if said[-1] == {"role": "assistant", "content": ""}:
            said.pop()
        value = said
    elif name == "instruction" and not absent(fields.get("input")):
        value = f"{text(fields, name, place)}\n{text(fields, 'input', place)}"
    elif not isinstance(value, str) and name != "prompt":
        raise place.error(f"is {type(value).__name__}, not text", name, "Write a JSON string")
    turns = messages_of(value, name, place)
    if turns[-1]["role"] != "user":
        raise place.error("does not end with a user message", name, "Put the response into its own field")
    if not turns[-1]["content"].strip():
        raise place.error("is blank", name, "Fill it in or remove the record")
    return turns


def _history(value: Any, place: Place) -> Conversation:
    """Earlier turns: pairs [asked, answered], or messages."""
    if not isinstance(value, list):
        raise place.error("is not a list", "history", "Write [[asked, answered], ...]")
    if all(isinstance(one, Mapping) for one in value):
        return read_messages(value, "history", place)
    out: list[Message] = []
    for i, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise place.error("is not a pair of texts", f"history[{i}]", "Write [asked, answered]")
        for j, role in enumerate(("user", "assistant")):
            out.append({"role": role, "content": text({f"history[{i}][{j}]": pair[j]}, f"history[{i}][{j}]", place)})
    return tuple(out)


def _chat(value: Any, name: str, place: Place) -> Conversation:
    """A conversation in a field of its own; of ShareGPT's turns those before the first human one are left out, but a
    system's, as FastChat does."""
    if name == "conversations" and not isinstance(value, list | Mapping):
        raise place.error("is not a list of turns", name, 'Write [{"from": ..., "value": ...}, ...]')
    turns = read_messages(value, name, place)
    if isinstance(value, list) and any("from" in turn for turn in value):
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
        turns = tuple(t for i, t in enumerate(turns) if i >= first or t["role"] == "system")
    return check_order(turns, name, place)


def _split(turns: Conversation) -> tuple[Conversation, Conversation]:
    system = 1 if turns and turns[0]["role"] == "system" else 0
    return turns[:system], turns[system:]


def _plain(turns: Conversation) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in turns]


def _says(one: Conversation, whole: Conversation) -> bool:
    """Whether all that one conversation says is said by the other: its beginning, its end, or one of its turns."""
    ours, theirs = _plain(one), _plain(whole)
    if len(ours) == 1 and any(said == ours[0][1] for role, said in theirs if role != "assistant"):
        return True
    return ours == theirs[: len(ours)] or ours == theirs[len(theirs) - len(ours) :]


def joined(base: Conversation, before: Conversation, name: str, place: Place) -> Conversation:
    """What stands before an answer: the prompt's conversation and the one in the answer's own list.

    before: empty, more turns that follow the prompt (it starts with the assistant), or a whole conversation.

    Raises:
      InputError: they do not agree.
    """
    if not base or not before:
        return base or before
    if before[0]["role"] == "assistant":
        return (*base, *before)
    (our_system, ours), (their_system, theirs) = _split(base), _split(before)
    system = their_system or our_system
    agree = _says(ours, before) if not our_system else _says(ours, theirs)
    if our_system and their_system and _plain(our_system) != _plain(their_system):
        agree = False
    if not agree:
        problem = "holds another conversation than the fields before it"
        raise place.error(problem, name, "Make both the same, or leave one of the two out")
    return (*system, *theirs)


def side(value: Any, name: str, place: Place) -> tuple[Conversation, str]:
    """(what the value itself puts before the answer, the answer): of a text, a message or a list of messages."""
    said = transcript(value)
    if said is not None:
        value = said
    if isinstance(value, str):
        return (), text({name: value}, name, place, blank=True)
    if isinstance(value, Mapping) and not any(isinstance(v, list) for k, v in value.items() if k in ("role", "from")):
        one = message(value, name, place)
        _check_assistant(one, name, place)
        return (), one["content"]
    if not isinstance(value, list | Mapping) or not value:
        raise place.error("is not a response", name, "Write a text or an assistant message")
    turns = read_messages(value, name, place)
    _check_assistant(turns[-1], f"{name}[{len(turns) - 1}]" if len(turns) > 1 else name, place)
    return turns[:-1], turns[-1]["content"]


def _check_assistant(one: Message, where: str, place: Place) -> None:
    if one["role"] != "assistant":
        raise place.error(f"has the role {one['role']!r}", f"{where}.role", "A response is by the assistant")


def answered(
    kind: str, fields: Fields, sides: Iterable[tuple[str, Any]], place: Place
) -> tuple[Conversation, tuple[str | None, ...]]:
    """The one conversation that all sides answer, and their answers; a side of None is absent.

    Raises:
      InputError: there is no conversation, or the sides answer different ones.
    """
    base, answers = asked(fields, place), list[str | None]()
    before: list[tuple[str, Conversation]] = []
    for name, value in sides:
        if value is None:
            answers.append(None)
            continue
        own, answer = side(value, name, place)
        answers.append(answer)
        before.append((name, check_order(joined(base, own, name, place), name, place)))
    name, turns = next(((n, found) for n, found in before if found), ("prompt", base))
    if not _split(turns)[1]:
        raise missing("prompt", kind, fields, place)
    for other, found in before:
        if found != turns:
            problem = f"answers another conversation than '{name}'"
            raise place.error(problem, other, "Give both the same turns before the last answer, or leave it out")
    if turns[-1]["role"] != "user":
        raise place.error("has no user message before the answer", name, "Add it")
    if not turns[-1]["content"].strip():
        raise place.error("is blank", "prompt", "Fill it in or remove the record")
    _check_beside(fields, turns, answers, place)
    return turns, tuple(answers)


def _check_beside(fields: Fields, turns: Conversation, answers: Sequence[str | None], place: Place) -> None:
    """Refuse a whole conversation beside prompt and answers (as in ultrafeedback_binarized) that is none of these."""
    chat = _chat_field(fields)
    whole = _chat(fields[chat], chat, place) if chat is not None else ()
    if chat is None or whole[-1]["role"] == "user":
        return
    ours = [_plain((*_split(turns)[1], {"role": "assistant", "content": answer or ""})) for answer in answers]
    if _plain(_split(whole)[1]) not in ours:
        problem = "holds another conversation than prompt and answers"
        raise place.error(problem, chat, "Make both the same, or leave one of the two out")


def is_quad(chosen: Any) -> bool:
    """Whether `chosen` holds the answers of a source and of the target, and is no conversation."""
    if not isinstance(chosen, list) or len(chosen) != 2:
        return False
    roles = [m.get("role", m.get("from")) for m in chosen if isinstance(m, Mapping)]
    return all(role in ("assistant", "gpt") for role in roles)


def dialogue(fields: Fields, place: Place) -> tuple[Conversation, str] | None:
    """(conversation, last answer) of a record that holds a whole conversation, or None of another record."""
    name = _chat_field(fields)
    if name is None and not any(k in fields for k in (*PROMPTS, *ANSWERS, "chosen", "answer")):
        name = next((k for k in CHATS if k in fields), None)  # it is empty, which is told
    if name is None:
        return None
    whole = _chat(fields[name], name, place)
    if whole and whole[-1]["role"] == "user" and any(k in fields for k in (*ANSWERS, "chosen")):
        return None
    if len(whole) < 2 or whole[-1]["role"] != "assistant":
        raise place.error("does not end with an assistant message", name, "Add the response")
    said = {k: fields[k] for k in ANSWERS if isinstance(fields.get(k), str)}
    if "chosen" in fields and "rejected" in fields:
        said["chosen"] = side(fields["chosen"], "chosen", place)[1]
    same_answers([whole[-1]["content"], *said.values()], [name, *said], place)
    before = _with_history(fields, whole[:-1], name, place)
    own = asked({k: v for k, v in fields.items() if k in (*PROMPTS, "input")}, place)
    return joined(own, before, name, place), whole[-1]["content"]


def same_answers(answers: Sequence[str | None], names: Sequence[str], place: Place) -> None:
    """Refuse fields that all hold the answer and hold different ones."""
    for name, answer in zip(names, answers):
        if (answer or "").strip() != (answers[0] or "").strip():
            problem = f"stands beside '{names[0]}' and says something else"
            raise place.error(problem, name, "Keep one of the two")


def carried(record: Fields, *others: str) -> dict[str, Any]:
    """The fields of a prompt or a response that go on to later stages: without those that these would read as another
    prompt or answer, and without `others`."""
    asked_by = (*CHATS, *PROMPTS[1:], "input", "context", "system", "system_prompt", "history")
    answered_by = (*ANSWERS[1:], "chosen", "rejected", "preferred_output", "non_preferred_output", "label", "kto_tag")
    left = {*asked_by, *answered_by, "all_generated_responses", "all_rm_scores", *others}
    return {name: value for name, value in record.items() if name not in left}


def generated(record: Fields, file: str | None, place: Place) -> list[dict[str, Any]]:
    """Responses with rewards of a record of SimPO's sets, one record each; another record as it is.

    Of {"prompt", "all_generated_responses": [text, ...], "all_rm_scores": [number, ...]} the record's other fields are
    kept; `source_model` is the file's name where none is given.
    """
    texts = record.get("all_generated_responses")
    if absent(texts) or not absent(record.get("response")):
        return [dict(record)]
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise place.error("is not a list of texts", "all_generated_responses", "Write a list of JSON strings")
    scores = record.get("all_rm_scores")
    if absent(scores):
        scores = [None] * len(texts)
    if not isinstance(scores, Sequence) or len(scores) != len(texts):
        problem = f"is {quoted(scores)}, not one number for each of the {len(texts)} responses"
        raise place.error(problem, "all_rm_scores", "Give as many scores as responses, or none")
    source = record.get("source_model") or (file or "generated").rstrip("/").split("/")[-1].split(".")[0]
    kept = {k: v for k, v in record.items() if k not in ("all_generated_responses", "all_rm_scores")}
    return [
        {**kept, "source_model": source, "sample": i, "response": response, "reward": score}
        for i, (response, score) in enumerate(zip(texts, scores))
    ]
