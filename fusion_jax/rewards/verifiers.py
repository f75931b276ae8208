"""Rule-based rewards: pure functions (response, answer) -> float in [0, 1], chosen by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated

from fusion_jax.errors import InputError
from fusion_jax.options import OneOf

Verifier = Callable[[str, str], float]

# A minus behind a digit, a letter or a bracket is a dash or a subtraction, not a sign.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)")
_MARKERS = re.compile(r"(?:####|\bA:|\banswer is:?|\banswer:|\\boxed\{)\s*", re.IGNORECASE)


def number(text: str) -> Fraction | None:
    """The value of a number as people write it ("$1,234.50", "3/4", "-7"), exactly."""
    cleaned = text.strip().replace("$", "").replace(",", "").rstrip(".%")
    try:
        return Fraction(cleaned)
    except (ValueError, ZeroDivisionError):
        return None


def final_number(text: str) -> Fraction | None:
    """The final answer of a worked solution: the first number behind its last marker (####, A:, answer is, \\boxed),
    else the last number of the text."""
    behind = _MARKERS.split(text)
    if len(behind) > 1:
        found = _NUMBER.search(behind[-1])
        if found:
            return number(found.group())
    every = _NUMBER.findall(text)
    return number(every[-1]) if every else None


def gsm8k(response: str, answer: str) -> float:
    """1 if the final numbers of the response and of the reference solution are equal."""
    expected = final_number(answer)
    return float(expected is not None and final_number(response) == expected)


def gsm8k_format(response: str, answer: str) -> float:
    """`gsm8k`, and 0.1 for a wrong response that at least marks a final number."""
    if gsm8k(response, answer):
        return 1.0
    behind = _MARKERS.split(response)
    return 0.1 if len(behind) > 1 and _NUMBER.search(behind[-1]) else 0.0


def normalise(text: str) -> str:
    """Lower case, single spaces, no outer punctuation."""
    return " ".join(text.lower().split()).strip(" .,!?:;\"'*}$")


def exact(response: str, answer: str) -> float:
    """1 if the texts are equal up to case, white space and outer punctuation."""
    return float(normalise(response) == normalise(answer))


def contains(response: str, answer: str) -> float:
    """1 if the answer stands somewhere in the response as whole words, up to case and white space."""
    wanted = normalise(answer)
    return float(bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalise(response)) is not None)


def final_answer(response: str) -> str:
    """The short answer that a response states: what follows its last marker (answer is, answer:, A:, ####) or all."""
    return normalise(_MARKERS.split(response)[-1])


def answer(response: str, answer: str) -> float:
    """1 if the short answer that the response states is the right one."""
    return float(final_answer(response) == normalise(answer))


def graded(response: str, answer: str) -> float:
    """1 for the right short answer, else at most 0.9 by how much of it is there in order; separates near misses."""
    stated, expected = final_answer(response), normalise(answer)
    if stated == expected:
        return 1.0
    return round(0.9 * difflib.SequenceMatcher(None, stated, expected, autojunk=False).ratio(), 6)


VERIFIERS: dict[str, Verifier] = {
    "gsm8k": gsm8k,
    "gsm8k_format": gsm8k_format,
    "exact": exact,
    "contains": contains,
    "answer": answer,
    "graded": graded,
}
VerifierName = Annotated[str, OneOf(tuple(VERIFIERS))]


def verifier(name: str, field: str = "verifier") -> Verifier:
    """A verifier by name; InputError names the nearest and the setting, `field`."""
    if name not in VERIFIERS:
        near = difflib.get_close_matches(name, VERIFIERS, 1)
        cure = f"Did you mean '{near[0]}'? " if near else ""
        raise InputError(f"no verifier is called '{name}'", field=field, cure=f"{cure}Known: {', '.join(VERIFIERS)}")
    return VERIFIERS[name]
