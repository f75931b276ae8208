"""The score of one reply, in [0, 1], or None where nothing can be read; and what chance would give."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_jax.evals.socialbench.parsers import Parser
from fusion_jax.evals.socialbench.records import MEMORY, Item, kind_of


def score(
    category: str, reply: str, label: Sequence[str], parse: Parser, *, partial: bool = True
) -> float | None:  # fmt: skip
    """The published score.

    Memory: the share of keywords, with repeats, that are part of the reply, both in small letters; None for an empty
    reply. One right letter: whether the first letter read is it. Several: |read| / |label| where all that was read is
    right, else 0. None where no letter is read.

    Args:
      partial: whether a part of several right letters counts; else only all of them do.
    """
    if kind_of(category) == MEMORY:
        return memory_score(reply, label)
    return letters_score(parse(reply), label, partial=partial)


def memory_score(reply: str, label: Sequence[str]) -> float | None:
    """The share of keywords that the reply holds.

    >>> memory_score("Tomas, I think.", ["Tomas", "Lisbon"]), memory_score("art class", ["Art", "art"])
    (0.5, 1.0)
    """
    said = reply.lower()
    return sum(word.lower() in said for word in label) / len(label) if said else None


def letters_score(letters: Sequence[str], label: Sequence[str], *, partial: bool = True) -> float | None:
    """The score of letters that were read.

    >>> letters_score("A", "ABC"), letters_score("AE", "AB"), letters_score("", "A")
    (0.3333333333333333, 0.0, None)
    """
    if not letters:
        return None
    if len(label) == 1:
        return float(letters[0] == label[0])
    said, right = set(letters), set(label)
    if not said <= right or not (partial or said == right):
        return 0.0
    return len(said) / len(right)


def chance(item: Item) -> float:
    """What a random answer is expected to score: 1/n of n options; of several right ones m a random set of letters that
    is not empty, 2^(m-1) / (2^n - 1); nothing of memory, nor where the label is no option."""
    count, right = len(item.choices), len(set(item.label))
    if not count or not item.answerable:
        return 0.0
    return 1 / count if len(item.label) == 1 else 2 ** (right - 1) / (2**count - 1)
