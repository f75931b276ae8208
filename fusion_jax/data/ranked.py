"""Records with several answers to a prompt, ranked or scored, read as a pair of a good and a clearly worse one.

Nectar: "answers", a list of {"answer", "rank"}: the first against one of rank 3 or lower (1 and 2 are often equally
good). UltraFeedback: "completions", a list of {"response", "overall_score"}: the highest against one at least 1 below.
Which of several worse ones is taken follows from a hash of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from fusion_jax.data.messages import Place, absent
from fusion_jax.errors import quoted

NO_WORSE = "no answer that is clearly worse"
LOWEST_GOOD_RANK, LEAST_GAP = 2, 1.0


FORMS = (("answers", "answer", "rank"), ("completions", "response", "overall_score"))
_ASKED = ("prompt", "instruction", "question", "messages", "conversations")


def listed(fields: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The form of a record in one of these forms and without a pair: its list, and of an answer text and number."""
    if not absent(fields.get("chosen")) or not absent(fields.get("rejected")):
        return None
    for form in FORMS:
        answers = fields.get(form[0])
        if isinstance(answers, list) and any(isinstance(one, Mapping) and form[2] in one for one in answers):
            return form
    return None


def as_pair(fields: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The record with `chosen` and `rejected`, which is None where no answer is clearly worse; another record as it is.

    Raises:
      InputError: an answer without text or without a number to rank it by.
    """
    form = listed(fields)
    if form is None:
        return dict(fields)
    name, answer, number = form
    found = [_read(one, answer, number, f"{name}[{i}]", place) for i, one in enumerate(fields[name])]
    rest = {key: value for key, value in fields.items() if key != name}
    asked = [rest.get(field) for field in _ASKED]
    return rest | _compared(found, by_rank=number == "rank", prompt=repr(asked))


def _read(one: Any, answer: str, number: str, where: str, place: Place) -> tuple[str, float]:
    if not isinstance(one, Mapping):
        raise place.error(f"is {quoted(one)}, not an object", where, f'Write {{"{answer}": ..., "{number}": ...}}')
    text, value = one.get(answer), one.get(number)
    if not isinstance(text, str):
        raise place.error(f"is {quoted(text)}, not a text", f"{where}.{answer}", "Write a JSON string")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        problem = "is missing" if value is None else f"is {quoted(value)}, not a number"
        raise place.error(problem, f"{where}.{number}", "Write a JSON number")
    return text, float(value)


def _compared(found: list[tuple[str, float]], *, by_rank: bool, prompt: str) -> dict[str, Any]:
    best = (min if by_rank else max)(found, key=lambda one: one[1])
    good = max(LOWEST_GOOD_RANK, best[1])
    worse = [text for text, value in found if (value > good if by_rank else value <= best[1] - LEAST_GAP)]
    if not worse:
        return {"chosen": best[0], "rejected": None}
    return {"chosen": best[0], "rejected": worse[xxhash.xxh3_64_intdigest(prompt.encode()) % len(worse)]}
