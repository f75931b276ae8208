"""The OpenAI chat API on the wire: the body of a request, and a reply read strictly out of a response's body."""

from __future__ import annotations

from typing import Any, Literal

from fusion_jax.asking.contract import Candidate, Decoding, Question, Reply
from fusion_jax.asking.key import Key
from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.json_files import parse_json

LONGEST = 400  # characters of a body that is no JSON
LONGEST = 400  # characters of a body that is no JSON
TokensField = Literal["max_tokens", "max_completion_tokens"]


def body(model: str, question: Question, decoding: Decoding, limit: TokensField = "max_tokens") -> dict[str, Any]:
    """What is posted to `/chat/completions`.

    Args:
      limit: the field of the longest reply; some hosted models take only the newer one.
    """
    out: dict[str, Any] = {
        "model": model, "messages": [message._asdict() for message in question.messages], limit: decoding.max_tokens,
        "temperature": decoding.temperature, "top_p": decoding.top_p, "seed": decoding.seed, "stream": False,
    }  # fmt: skip
    if decoding.stop:
        out["stop"] = list(decoding.stop)
    if decoding.top_logprobs:
        out |= {"logprobs": True, "top_logprobs": decoding.top_logprobs}
    return out


def reply(raw: bytes, key: Key = Key()) -> Reply:
    """The reply that a body holds.

    Args:
      key: hidden in all that the body says, before anything of it is quoted or cut.

    Raises:
      InputError: the body is no such JSON; names the field.
    """
    answer = Fields(key.hidden_in(parse_json(raw, cure="Look at the server")), cure="Look at the server")
    choices = answer.items("choices")
    if not choices or not isinstance(choices[0], dict):
        raise answer.wrong("choices", "holds no choice")
    choice = Fields(choices[0], within="choices[0]", cure=answer.cure)
    text = choice.object("message").text("content", "")  # null: nothing but reasoning, or a call of a tool
    told = choice.object("logprobs", None)
    return Reply(text, choice.text("finish_reason", ""), None if told is None else _firsts(told))


def _firsts(told: Fields) -> tuple[Candidate, ...] | None:
    """The most probable first tokens; None where there are none, as of an empty reply."""
    tokens = told.items("content", [])
    if not tokens:
        return None
    if not isinstance(tokens[0], dict):
        raise told.wrong("content[0]", "is no object")
    first, found = Fields(tokens[0], within=told.place("content[0]"), cure=told.cure), []
    for number, one in enumerate(first.items("top_logprobs", [])):
        if not isinstance(one, dict):
            raise first.wrong(f"top_logprobs[{number}]", "is no object")
        own = Fields(one, within=first.place(f"top_logprobs[{number}]"), cure=told.cure)
        found.append(Candidate(own.text("token"), own.number("logprob", high=1e-3)))
    return tuple(sorted(found, key=lambda candidate: -candidate.logprob)) or None


def complaint(raw: bytes, key: Key = Key()) -> str:
    """What a server says of an error, or the beginning of its body, without the key."""
    try:
        told = key.hidden_in(parse_json(raw))
    except InputError:
        return key.hidden(raw.decode("utf-8", "replace"))[:LONGEST]
    error = told.get("error", told)
    said = error.get("message", "") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""
