"""Answerers that need no model: one that always says the same, one that knows all answers, one that guesses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from fusion_jax.asking.contract import Question
from fusion_jax.asking.given import Given
from fusion_jax.evals.socialbench.records import MEMORY, Item
from fusion_jax.evals.socialbench.rows import Asked

BaselineName = Literal["none", "echo", "oracle", "random"]


def baseline(name: BaselineName, asked: Sequence[Asked], seed: int = 0) -> Given:
    """The answerer of a name.

    Args:
      asked: the prompts that it will be asked. seed: of the guesses.
    """
    items = {Question.of(one.prompt.text): one.item for one in asked}
    if name == "oracle":
        return Given("oracle", lambda question: right_answer(items[question]))
    if name == "random":
        return Given(f"random letters, seed {seed}", lambda question: _guess(items[question], question, seed))
    return Given("echo of A", lambda question: "A")


def right_answer(item: Item) -> str:
    """The label's letters, or its keywords."""
    return (" " if item.kind == MEMORY else ", ").join(item.label)


def _guess(item: Item, question: Question, seed: int) -> str:
    """One of the options, each as likely; of memory one of four letters."""
    letters = [letter for letter, _ in item.choices] or list("ABCD")
    drawn = hashlib.sha256(f"{seed}/{question.digest}".encode()).digest()
    return letters[int.from_bytes(drawn[:8]) % len(letters)]
