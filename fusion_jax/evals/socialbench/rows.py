"""What was replied to each prompt and how it was scored: the rows that reports and analyses are made of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.asking.thoughts import without_thinking
from fusion_jax.evals.socialbench.aggregate import Scored, dimension
from fusion_jax.evals.socialbench.parsers import Parser
from fusion_jax.evals.socialbench.prompts import Prompt
from fusion_jax.evals.socialbench.records import MEMORY, Item
from fusion_jax.evals.socialbench.scores import chance, letters_score, memory_score


@dataclass(frozen=True)
class Asked:
    """A prompt as it was asked. item: with its options rotated by `rotation`; see `prompts.Prompt`."""

    item: Item
    prompt: Prompt
    rotation: int = 0


@dataclass(frozen=True)
class Row:
    """A scored reply. options: how many; profiles: roles that the prompt tells of; score: where a part of several right
    letters counts; whole: where they count only together; error: why there is no reply. letters: that were read, in
    order."""

    file: str
    index: int
    category: str
    lang: str
    utterances: int
    options: int
    profiles: int
    rotation: int
    dropped: int
    prompt_sha256: str
    reply: str | None
    finish: str
    letters: tuple[str, ...]
    label: tuple[str, ...]
    answerable: bool
    chance: float
    score: float | None
    whole: float | None
    error: str = ""

    @property
    def dimension(self) -> str:
        return dimension(self.category, self.utterances)

    @property
    def scored(self) -> Scored:
        return Scored(self.category, self.utterances, self.score, self.error)

    @property
    def strict(self) -> Row:
        """The row to be aggregated where several right letters count only together."""
        return dataclasses.replace(self, score=self.whole)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"letters": list(self.letters), "label": list(self.label)}


def row_of(asked: Asked, reply: str | None, finish: str, error: str, parse: Parser, *, thinking: bool = False) -> Row:
    """The row of a prompt.

    Args:
      reply: None where there is none, for which `error` says why.
      thinking: whether spans that a reply declares to be thoughts are left out before it is read.
    """
    item, memory = asked.item, asked.item.kind == MEMORY
    said = "" if reply is None else without_thinking(reply) if thinking else reply
    letters = () if memory or reply is None else parse(said)

    def scored(partial: bool) -> float | None:
        if reply is None:
            return None
        return memory_score(said, item.label) if memory else letters_score(letters, item.label, partial=partial)

    return Row(
        item.file, item.index, item.category, item.lang, len(item.dialogue), len(item.choices), len(item.profile),
        asked.rotation, asked.prompt.dropped, hashlib.sha256(asked.prompt.text.encode()).hexdigest(), reply, finish,
        letters, item.label, item.answerable, chance(item), scored(True), scored(False), error,
    )  # fmt: skip


def row_from(record: dict[str, Any]) -> Row:
    """A row that `as_json` wrote."""
    known = {one.name for one in dataclasses.fields(Row)}
    values = {name: value for name, value in record.items() if name in known}
    return Row(**values | {"letters": tuple(record["letters"]), "label": tuple(record["label"])})


def grouped(rows: Sequence[Row], group: Callable[[Row], str | None]) -> dict[str, list[Row]]:
    """Rows by what `group` calls them; those that it calls None are left out."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if (name := group(row)) is not None:
            found.setdefault(name, []).append(row)
    return found
