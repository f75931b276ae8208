"""The exam's prompts: a header, exemplars and the question, and letters as tokens.

    {header}

    {question}
    A. {option}
    ...
    Answer: {letter}

    (the exemplars, then the question, which ends with "Answer:")

All prompts of an exam begin alike. They are encoded whole and cut where the tokens part, so that what is read once and
what is read behind it are together exactly the tokens of the whole prompt, whatever the tokenizer merges.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.data.loaders import load_records
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.jsonl import numbered
from fusion_jax.kca.records import CURE, LETTERS, ExamItem, check_item, item_in
from fusion_jax.sampling.continuations import before_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADER = (
    "Each item below is a multiple-choice question on factual knowledge, followed by the letter of the right answer."
)
EXEMPLARS = (
    ExamItem("Through which city does the Danube flow?", ("Madrid", "Oslo", "Dublin", "Vienna"), "D"),
    ExamItem("How many sides does a hexagon have?", ("Six", "Five", "Eight", "Seven"), "A"),
    ExamItem("Which gas do green plants take in to make sugar?", ("Helium", "Neon", "Carbon dioxide", "Argon"), "C"),
    ExamItem("Which instrument has black and white keys?", ("The flute", "The piano", "The drum", "The violin"), "B"),
    ExamItem("Which of these animals is a bird?", ("The penguin", "The bat", "The dolphin", "The otter"), "A"),
)
CUE = "Answer:"
AT_ONCE = 1024  # prompts that are encoded in one call


@dataclass(frozen=True)
class Paper:
    """What stands before every question."""

    header: str = HEADER
    exemplars: tuple[ExamItem, ...] = EXEMPLARS

    def before(self, shots: int) -> str:
        """What a prompt with so many exemplars begins with, up to the blank line before its question."""
        parts = [self.header, *(f"{asked(one)} {one.answer}" for one in self.exemplars[:shots])]
        return "".join(f"{part}\n\n" for part in parts)


class Suffixes(NamedTuple):
    """Prompts that begin alike. shared: tokens of all; own: of each, int32[n], behind those, at least one."""

    shared: tuple[int, ...]
    own: list[np.ndarray]

    def __repr__(self) -> str:
        return brief(self)


def asked(test: ExamItem) -> str:
    """A question with its options, up to the words that ask for the letter.

    >>> print(asked(ExamItem("1 + 1?", ("1", "2", "3", "4"), "B")))
    1 + 1?
    A. 1
    B. 2
    C. 3
    D. 4
    Answer:
    """
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, test.options, strict=True)]
    return "\n".join([test.question, *lines, CUE])


def turned(test: ExamItem, by: int) -> ExamItem:
    """The same question with its options moved on by so many places; the right letter moves with them.

    >>> turned(ExamItem("?", ("a", "b", "c", "d"), "A"), 1)
    ExamItem(question='?', options=('d', 'a', 'b', 'c'), answer='B', analysis='')
    """
    options = tuple(test.options[(place - by) % 4] for place in range(4))
    return test._replace(options=options, answer=LETTERS[(LETTERS.index(test.answer) + by) % 4])


def suffixes(tokenizer: PreTrainedTokenizerBase, before: str, questions: Sequence[str]) -> Suffixes:
    """The tokens of prompts that begin with `before`, cut where the first of them parts from it."""
    start = np.asarray(encoded(tokenizer, [before])[0], np.int32)
    cuts, own = list[int](), list[np.ndarray]()
    for first in range(0, len(questions), AT_ONCE):
        for ids in encoded(tokenizer, [before + one for one in questions[first : first + AT_ONCE]]):
            whole = np.asarray(ids, np.int32)
            length = min(len(start), len(whole) - 1)
            parted = np.flatnonzero(whole[:length] != start[:length])
            cuts.append(int(parted[0]) if len(parted) else length)
            own.append(whole[cuts[-1] :].copy())
    cut = min(cuts, default=len(start))
    shared = tuple(start[:cut].tolist())
    return Suffixes(shared, [np.concatenate([start[cut:at], ids]) for at, ids in zip(cuts, own, strict=True)])


def letter_ids(tokenizer: PreTrainedTokenizerBase, before: str) -> list[tuple[int, ...]]:
    """The tokens of " A" to " D" behind a prompt.

    Raises:
      InputError: the tokenizer does not tell two letters apart, or joins a letter with what stands before it.
    """
    alone, *whole = encoded(tokenizer, [before, *(f"{before} {letter}" for letter in LETTERS)])
    file = tokenizer.name_or_path or None
    for one, other in itertools.combinations(range(len(LETTERS)), 2):
        if whole[one] == whole[other]:
            problem = f"the tokenizer makes the same tokens of the letters {LETTERS[one]} and {LETTERS[other]}"
            cure = "Use a model whose tokenizer knows capital letters"
            raise InputError(problem, file=file, field="tokenizer", cure=cure)
    if any(ids[: len(alone)] != alone or len(ids) == len(alone) for ids in whole):
        cure = "Use a model whose tokenizer keeps them apart"
        raise InputError(f"the tokenizer joins '{CUE}' with a letter", file=file, field="tokenizer", cure=cure)
    return [tuple(ids[len(alone) :]) for ids in whole]


def encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Texts behind the tokens that the tokenizer puts before one, and nothing behind them."""
    first = list(before_texts(tokenizer))
    return [[*first, *ids] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def common_lead(letters: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all letters share."""
    return next((i for i, column in enumerate(zip(*letters)) if len(set(column)) > 1), min(map(len, letters)))


def read_paper(file: str, counts: Counter[str]) -> Paper:
    """Exemplars of a user's file of questions, {"question", "options", "answer"} each.

    Raises:
      InputError: a broken question; names file, record, field and cure.
    """
    found = list(_exemplars(file))
    counts["exemplars"] += len(found)
    return Paper(exemplars=tuple(found))


def _exemplars(file: str) -> Iterator[ExamItem]:
    for number, record in numbered(load_records(file)):
        fields = Fields(record, file, number, cure=CURE)
        test = item_in(fields)
        if reason := check_item(test):
            raise fields.wrong("options" if "option" in reason else "answer", reason)
        yield test
