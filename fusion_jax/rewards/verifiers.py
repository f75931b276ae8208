"""Rule-based rewards: pure functions (response, answer) -> float in [0, 1], chosen by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Annotated

from fusion_jax.errors import InputError
from fusion_jax.options import OneOf
from fusion_jax.rewards.final_number import final_number, stated_number

Verifier = Callable[[str, str], float]

_MARKERS = re.compile(r"(?:####|\bA:|\banswer is:?|\banswer:|\\boxed\{)\s*", re.IGNORECASE)


def gsm8k(response: str, answer: str) -> float:
    """1 if the final numbers of the response and of the reference solution are equal (see `final_number`)."""
    expected = final_number(answer)
    return float(expected is not None and final_number(response) == expected)


def gsm8k_strict(response: str, answer: str) -> float:
    """The published rule of GSM8K: 1 if the texts of the number behind the first "#### " are equal, commas left out."""
    stated, expected = (_published(text) for text in (response, answer))
    return float(stated is not None and stated == expected)


def _published(text: str) -> str | None:
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return None if found is None else found[1].strip().replace(",", "")


def gsm8k_format(response: str, answer: str) -> float:
    """`gsm8k`, and 0.1 for a wrong response that at least states a final number."""
    if gsm8k(response, answer):
        return 1.0
    return 0.1 if stated_number(response)[0] else 0.0


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


_FIELD = re.compile(r"\s*([^\W\d][^:,;]*?)\s*:\s+([^,;]+?)\s*(?:[,;]|$)")
_LINKS = frozenset(("is", "are", "was", "=", "a", "an", "the", "of", "its", "it", "has", "with", "and"))
_CLAUSES = re.compile(r"[,;.!?\n]+")


def fields(response: str, answer: str) -> float:
    """Share of the fields "name: value, name: value" of the answer that the response states.

    A response states a field in the first of its clauses (ended by , ; . ! ? or a line) that has the field's name as
    whole words: what follows the name there or, where nothing follows, what stands before it has to be the value, but
    for linking words ("is", "a", ...), up to case and white space. Answers without fields are compared as by `answer`.

    >>> fields("The leaf is round, its color is red", "color: red, leaf: round")
    1.0
    >>> fields("a blue color; leaf: thin", "color: blue, leaf: round")
    0.5
    """
    wanted = [(normalise(name), normalise(value)) for name, value in _FIELD.findall(answer)]
    if not wanted:
        return float(final_answer(response) == normalise(answer))
    clauses = [normalise(clause) for clause in _CLAUSES.split(response)]
    return sum(_is_value(_stated(name, clauses), value) for name, value in wanted) / len(wanted)


def _stated(name: str, clauses: Sequence[str]) -> str:
    """What the first clause with a field's name says of it."""
    for clause in clauses:
        found = re.split(rf"(?<!\w){re.escape(name)}(?!\w)", clause, maxsplit=1)
        if len(found) == 2:
            before, after = map(normalise, found)
            return after or before
    return ""


def _is_value(said: str, value: str) -> bool:
    words, wanted = said.split(), value.split()
    return words[-len(wanted) :] == wanted and set(words[: -len(wanted)]) <= _LINKS


_EXPLAINED: dict[str, tuple[Verifier, str]] = {  # with what the help says of each
    "gsm8k": (gsm8k, "the final numbers agree"),
    "gsm8k_format": (gsm8k_format, "the same, 0.1 for another number"),
    "gsm8k_strict": (gsm8k_strict, "numbers behind #### agree, as published"),
    "exact": (exact, "the whole texts agree"),
    "contains": (contains, "the answer stands in the response"),
    "answer": (answer, 'what follows "answer is" or "####", or all, is the answer'),
    "graded": (graded, "the same, a part for a near miss"),
    "fields": (fields, 'share of "name: value" that is stated'),
}
VERIFIERS: dict[str, Verifier] = {name: function for name, (function, _) in _EXPLAINED.items()}
VerifierName = Annotated[str, OneOf(tuple(VERIFIERS), tuple(meaning for _, meaning in _EXPLAINED.values()))]


def verifier(name: str, field: str = "verifier") -> Verifier:
    """A verifier by name; InputError names the nearest and the setting, `field`."""
    if name not in VERIFIERS:
        near = difflib.get_close_matches(name, VERIFIERS, 1)
        cure = f"Did you mean '{near[0]}'? " if near else ""
        raise InputError(f"no verifier is called '{name}'", field=field, cure=f"{cure}Known: {', '.join(VERIFIERS)}")
    return VERIFIERS[name]
