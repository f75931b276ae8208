"""From answers in the exam to classes, and what guessing would give.

An instance's score is s = correct / valid, over its valid questions alone, and it counts as known where s exceeds the
threshold strictly: 0.6 takes two of three, both of two, the one of one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from fusion_jax.intervals import Z95, wilson
from fusion_jax.kca.exam import LONG, Sat
from fusion_jax.kca.records import KNOWN, NEED, NO_FACT, NO_LABEL, NO_NEED, NO_QUESTION, UNKNOWN, Instance

GUESS = 0.25  # chance of a right answer to four options


def needed(valid: int, threshold: float) -> int:
    """How many of so many questions have to be right: the least k with k / valid > threshold.

    >>> [needed(valid, 0.6) for valid in (1, 2, 3)], needed(5, 0.6)
    ([1, 2, 2], 4)
    """
    return math.floor(Fraction(str(threshold)) * valid) + 1


def passing_chance(valid: int, threshold: float, guess: float = GUESS) -> float:
    """The probability of passing by guessing.

    >>> [round(passing_chance(valid, 0.6), 4) for valid in (3, 2, 1)]
    [0.1562, 0.0625, 0.25]
    """
    least = needed(valid, threshold)
    return sum(math.comb(valid, k) * guess**k * (1 - guess) ** (valid - k) for k in range(least, valid + 1))


def classified(instance: Instance, sat: Sequence[Sat | None], threshold: float) -> Instance:
    """An instance with its class; one that is lost says why.

    Args:
      sat: of each of its questions; None where it was not asked.
    """
    if instance.lost or instance.label:
        return instance
    if instance.need.label == NO_NEED:
        return dataclasses.replace(instance, label=NO_FACT)
    if instance.need.label != NEED:
        return dataclasses.replace(instance, lost=NO_LABEL)
    right = [one.correct for one in sat if one is not None]
    if not right:
        return dataclasses.replace(instance, lost=f"questions {LONG}" if sat else NO_QUESTION)
    known = sum(right) >= needed(len(right), threshold)
    return dataclasses.replace(instance, label=KNOWN if known else UNKNOWN)


@dataclass(frozen=True)
class Passed:
    """A partition in numbers. sizes: instances of each class; lost: of each reason; by_valid: number of valid questions
    -> (instances, passed); chance: the share that would pass by guessing; question_share: of all questions, how many
    are right; letters: how often each letter was right, and how often it was chosen."""

    sizes: Mapping[str, int]
    lost: Mapping[str, int]
    by_valid: Mapping[int, tuple[int, int]]
    chance: float
    questions: int
    right: int
    letters: Mapping[str, tuple[int, int]]

    @property
    def examined(self) -> int:
        """Instances that sat the exam."""
        return sum(count for count, _ in self.by_valid.values())

    @property
    def passed(self) -> int:
        return sum(passed for _, passed in self.by_valid.values())

    @property
    def rate(self) -> float:
        """Share of the examined instances that pass; nan where none was examined."""
        return self.passed / self.examined if self.examined else math.nan

    @property
    def above_chance(self) -> bool:
        """Whether more pass than guessing explains, to two standard deviations."""
        spread = Z95 * math.sqrt(max(self.chance * (1 - self.chance), 0.0) / max(self.examined, 1))
        return bool(self.examined) and self.rate > self.chance + spread

    def row(self, name: str) -> dict[str, Any]:
        """A line of a table."""
        whole = sum(self.sizes.values()) + sum(self.lost.values())
        low, high = wilson(self.passed, self.examined)
        line = {"set": name, "instances": whole} | {
            label: self.sizes.get(label, 0) for label in (NO_FACT, KNOWN, UNKNOWN)
        }
        line["lost"] = sum(self.lost.values())
        line["passed"] = f"{100 * self.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" if self.examined else ""
        line["by guessing"] = f"{100 * self.chance:.1f} %" if self.examined else ""
        line["questions right"] = f"{100 * self.right / self.questions:.1f} %" if self.questions else ""
        return line


def passed(
    instances: Sequence[Instance], sat: Sequence[Sequence[Sat | None]], threshold: float
) -> Passed:  # fmt: skip
    """What a partition amounts to. instances: with their classes; sat: answers to the questions of each."""
    by_valid: dict[int, tuple[int, int]] = {}
    letters: Counter[tuple[str, str]] = Counter()
    right, chances = list[bool](), list[float]()
    for instance, answers in zip(instances, sat, strict=True):
        told = [(test, one) for test, one in zip(instance.tests, answers, strict=True) if one is not None]
        if not told or instance.label not in (KNOWN, UNKNOWN):
            continue
        count, before = by_valid.get(len(told), (0, 0))
        by_valid[len(told)] = count + 1, before + (instance.label == KNOWN)
        chances.append(passing_chance(len(told), threshold))
        right += [one.correct for _, one in told]
        letters.update(("right", test.answer) for test, _ in told)
        letters.update(("chosen", one.choice) for _, one in told)
    return Passed(
        Counter(one.label for one in instances if one.label), Counter(one.lost for one in instances if one.lost),
        dict(sorted(by_valid.items())), float(np.mean(chances)) if chances else math.nan, len(right), sum(right),
        {letter: (letters["right", letter], letters["chosen", letter]) for letter in "ABCD"},
    )  # fmt: skip


def agreement(one: Sequence[Instance], other: Sequence[Instance]) -> float:
    """Share of the instances, by id, that two exams put into the same class; of those that both have examined."""
    second = {instance.id: instance.label for instance in other}
    same = [a.label == second[a.id] for a in one if {a.label, second.get(a.id)} <= {KNOWN, UNKNOWN}]
    return float(np.mean(same)) if same else math.nan
