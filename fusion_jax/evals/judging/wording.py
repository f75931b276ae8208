"""What a judge is asked, in this project's words, and how a file of other words is read.

A file is YAML with "system" and "user", in which {question}, {first}, {second}, {reference}, {turns} and {answer} stand
for what is filled in; everything else in braces stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fusion_jax.asking.contract import Question
from fusion_jax.errors import InputError
from fusion_jax.evals.judging.answers import Answered
from fusion_jax.paths import as_path
from fusion_jax.yaml_files import read_yaml

Style = Literal["alpaca", "arena", "mtbench"]
FIRST, SECOND = "m", "M"  # labels that are one token nearly everywhere, and say nothing of quality
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Wording:
    """system: may be empty; user: with its places."""

    system: str
    user: str


WORDINGS: dict[Style, Wording] = {
    "alpaca": Wording(
        "You compare two answers to one request. You judge as the person who made the request would: what is right, "
        "helpful and to the point wins. Length is no merit.",
        "Request:\n{question}\n\nAnswer m:\n{first}\n\nAnswer M:\n{second}\n\n"
        "Which answer is better? Reply with its name alone, m or M, and nothing else.",
    ),
    "arena": Wording(
        "You are a strict and fair judge of two assistants, A and B. Work out an answer to the request yourself before "
        "you judge. Then look for mistakes in both answers, and weigh whether each does what was asked, is to the "
        "point, and leaves out nothing that matters. The order of the answers and their lengths must not sway you.\n"
        "End with exactly one verdict: [[A>>B]] if A is much better, [[A>B]] if A is better, [[A=B]] if they are about "
        "equal, [[B>A]] if B is better, [[B>>A]] if B is much better.",
        "Request:\n{question}\n\nAnswer of assistant A:\n{first}\n\nAnswer of assistant B:\n{second}\n\nYour verdict:",
    ),
    "mtbench": Wording(
        "You grade the answers of an assistant from 1 (useless) to 10 (could not be better): is the answer right, "
        "helpful, relevant, deep enough, and as detailed as was asked? Say briefly what speaks for and against it, "
        "then end with the grade in double brackets, for instance [[5]].",
        "{turns}{reference}The answer to grade is the last one:\n{answer}\n\nYour grade:",
    ),
}
NEEDED: dict[Style, tuple[str, ...]] = {
    "alpaca": ("question", "first", "second"), "arena": ("question", "first", "second"), "mtbench": ("answer",),
}  # fmt: skip


def wording_of(style: Style, file: str = "") -> Wording:
    """The wording of a style, or of a file.

    Raises:
      InputError: the file is no such YAML, or leaves out a place without which nothing can be judged.
    """
    if not file:
        return WORDINGS[style]
    values = read_yaml(as_path(file), "wording")
    if not isinstance(values, dict) or not isinstance(values.get("user"), str):
        raise InputError("is missing or no text", file=file, field="user", cure='Write "system" and "user"')
    found = Wording(str(values.get("system") or ""), values["user"])
    for name in NEEDED[style]:
        if name not in _PLACE.findall(found.user):
            raise InputError(f"lacks the place {{{name}}}", file=file, field="user", cure="Write it where it belongs")
    return found


def filled(wording: Wording, values: Mapping[str, str]) -> Question:
    """The question to a judge; what is filled in is not looked at for places again."""
    return Question.of(_PLACE.sub(lambda place: values.get(place[1], place[0]), wording.user), wording.system)


def pair_question(wording: Wording, asked: Answered, first: Answered, second: Answered) -> Question:
    """Which of two answers to a request is better, the first or the second; of several turns all are shown."""
    of = {"first": _said(first), "second": _said(second), "reference": "\n\n".join(asked.references)}
    return filled(wording, {"question": _said(asked._replace(said=())), **of})


def grade_question(wording: Wording, one: Answered, turn: int) -> Question:
    """What the answer to one turn is worth, with all that was said before it."""
    before = "".join(
        f"User:\n{asked}\n\n" + (f"Assistant:\n{one.said[number]}\n\n" if number < turn else "")
        for number, asked in enumerate(one.turns[: turn + 1])
    )
    right = one.references[turn] if turn < len(one.references) else ""
    told = f"A right answer to the last turn, for comparison:\n{right}\n\n" if right else ""
    return filled(wording, {"turns": before, "question": one.turns[turn], "reference": told, "answer": one.said[turn]})


def _said(one: Answered) -> str:
    """What a model said, or without answers what it was asked: one turn as it stands, several by number."""
    texts = one.said or one.turns
    return texts[0] if len(texts) == 1 else "\n\n".join(f"({number}) {text}" for number, text in enumerate(texts, 1))
