"""Hallucination rates that can be compared: of a model that refuses, the rate over what it answers is one over
questions that it has chosen itself.

Of every model are told: (a) the rate over answered questions; (b) the share that is refused, of all and of each class;
(c) hallucinated answers over all questions; (d) the rate of another model, the one with standard training, on the
questions that this one has answered. An answer whose verdict could not be read is in no rate, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.intervals import wilson

CLASSES = ("no_need_fact", "need_and_have_fact", "need_and_have_no_fact")


@dataclass(frozen=True)
class Judged:
    """One question. label: its class, "" where it has none; refused: whether it was refused; hallucinated: None where
    it was not judged, or the verdict could not be read."""

    id: str
    label: str
    refused: bool
    hallucinated: bool | None


@dataclass(frozen=True)
class Rate:
    """A share. nan where there is nothing to count."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else math.nan

    def __str__(self) -> str:
        if not self.of:
            return ""
        low, high = wilson(self.count, self.of)
        return f"{100 * self.share:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({self.of})"


@dataclass(frozen=True)
class Account:
    """A model's figures, (a) to (d). of_class: class -> share that is refused; unread: answers without a verdict."""

    answered: Rate
    refused: Rate
    of_class: Mapping[str, Rate]
    of_all: Rate
    other_on_answered: Rate
    unread: int

    def row(self, name: str) -> dict[str, Any]:
        """A line of a table, in percent with 95 % intervals and counts."""
        line = {"model": name, "hallucinated, of all": str(self.of_all), "of the answered": str(self.answered)}
        line |= {"standard on the same": str(self.other_on_answered), "refused": str(self.refused)}
        return (
            line | {f"refused, {label}": str(rate) for label, rate in self.of_class.items()} | {"unread": self.unread}
        )


def account(own: Sequence[Judged], other: Sequence[Judged] = ()) -> Account:
    """The figures of a model on its questions.

    (a) sum h / |A|, (b) |R| / |Q|, (c) sum h / |Q|, (d) sum h' / |A|, with Q all questions whose answer is refused or
    has a verdict, R those that are refused, A the others, h the verdicts, h' those of `other`. A refusal hallucinates
    nothing. Where no answer has a verdict, as without a judge, there is no rate but (b).

    Raises:
      InputError: an id twice, or `other` is about other questions.
    """
    ids = [one.id for one in own]
    if len(set(ids)) < len(ids):
        raise InputError("an id stands twice", field="id", cure="Give each question one of its own")
    verdicts = {one.id: one.hallucinated for one in other if not one.refused}
    if other and {one.id for one in other} != set(ids):
        raise InputError("the two models were asked different questions", field="id", cure="Ask both the same")
    judged = any(one.hallucinated is not None for one in own) or all(one.refused for one in own)
    known = [one for one in own if one.refused or one.hallucinated is not None] if judged else []
    answered = [one for one in known if not one.refused]
    same = [verdicts[one.id] for one in answered if verdicts.get(one.id) is not None]
    wrong = sum(bool(one.hallucinated) for one in answered)
    classes = {label: _refused(one for one in own if one.label == label) for label in CLASSES}
    return Account(
        Rate(wrong, len(answered)), _refused(own), {label: rate for label, rate in classes.items() if rate.of},
        Rate(wrong, len(known)), Rate(sum(map(bool, same)), len(same)),
        sum(not one.refused and one.hallucinated is None for one in own),
    )  # fmt: skip


def _refused(some: Iterable[Judged]) -> Rate:
    told = [one.refused for one in some]
    return Rate(sum(told), len(told))
