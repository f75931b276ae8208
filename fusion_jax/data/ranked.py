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


def as_pair(fields: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The record with `chosen` and `rejected`, which is None where no answer is clearly worse; another record as it is.

    Raises:
      InputError: an answer without text or without a number to rank it by.
    """
    if not absent(fields.get("chosen")) or not absent(fields.get("rejected")):
        return dict(fields)
    for name, answer, number in (("answers", "answer", "rank"), ("completions", "response", "overall_score")):
        listed = fields.get(name)
        if isinstance(listed, list) and listed and all(isinstance(one, Mapping) and number in one for one in listed):
            found = [_read(one, answer, number, f"{name}[{i}]", place) for i, one in enumerate(listed)]
            rest = {key: value for key, value in fields.items() if key != name}
            asked = next((rest[field] for field in ("prompt", "instruction", "question") if field in rest), "")
            return rest | _compared(found, by_rank=number == "rank", prompt=str(asked))
    return dict(fields)


def _read(one: Mapping[str, Any], answer: str, number: str, where: str, place: Place) -> tuple[str, float]:
    text, value = one.get(answer), one[number]
    if not isinstance(text, str):
        raise place.error(f"is {quoted(text)}, not a text", f"{where}.{answer}", "Write a JSON string")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise place.error(f"is {quoted(value)}, not a number", f"{where}.{number}", "Write a JSON number")
    return text, float(value)


def _compared(found: list[tuple[str, float]], *, by_rank: bool, prompt: str) -> dict[str, Any]:
    best = (min if by_rank else max)(found, key=lambda one: one[1])
    worse = [text for text, value in found if (value > LOWEST_GOOD_RANK if by_rank else value <= best[1] - LEAST_GAP)]
    if not worse:
        return {"chosen": best[0], "rejected": None}
    return {"chosen": best[0], "rejected": worse[xxhash.xxh3_64_intdigest(prompt.encode()) % len(worse)]}
