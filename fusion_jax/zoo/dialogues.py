"""Dialogues about invented plants: the same question twice, the first answer somebody's draft, the second a better one.

A model that is raised on them can read a draft: it corrects what it knows to be wrong, and repeats the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion_jax.data.records import Conversation, Row
from fusion_jax.jsonl import Record
from fusion_jax.zoo import plants
from fusion_jax.zoo.drafts import FLAWS, flawed
from fusion_jax.zoo.plants import STYLES, VALUES, Knowledge, Name, truth, worded


@dataclass(frozen=True)
class DialogueLessons:
    """Problems of `zoo.plants` in all styles. count: dialogues; again: share of them in which a draft comes first."""

    knowledge: Knowledge
    count: int
    again: float
    verifier: str = "fields"

    def corpus(self, seed: int) -> list[str]:
        return plants.corpus(seed, 2000)

    def rows(self, seed: int) -> list[Row]:
        asked = plants.draw(self.count, split="train", seed=seed + 2, repeat=True)
        rng = np.random.default_rng(seed)
        return [self._row(number, name, prompt, rng) for number, (name, prompt) in enumerate(asked)]

    def test(self, count: int, seed: int) -> list[Record]:
        return plants.prompts(count, split="test", seed=seed)

    def _row(self, number: int, name: Name, prompt: str, rng: np.random.Generator) -> Row:
        question: Conversation = ({"role": "user", "content": prompt},)
        style = list(STYLES)[rng.integers(len(STYLES))]
        if rng.random() >= self.again:
            return Row(f"answer {number}", question, (worded(self.knowledge.stated(name, rng), style),))
        draft, shown = self._draft(name, style, rng)
        better = {field: self._better(name, field, shown.get(field)) for field in VALUES}
        dialogue = (*question, {"role": "assistant", "content": draft}, *question)
        return Row(f"dialogue {number}", dialogue, (worded(better, style),))

    def _draft(self, name: Name, style: str, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        """A draft, and the values that it shows: half of them right but for a flaw, the others wrong in places."""
        said = {field: truth(name, field) for field in VALUES}
        if rng.random() < 0.5:
            wrong = rng.choice([0.25, 0.5, 0.75])
            said |= {f: VALUES[f][rng.integers(10)] for f in VALUES if rng.random() < wrong}
        text = worded(said, style)
        if rng.random() < 0.4:
            text = flawed(said, style, FLAWS[rng.integers(len(FLAWS))], rng)
        words = set(text.replace(",", " ").replace(";", " ").replace(".", " ").replace("!", " ").split())
        return text, {field: value for field in VALUES for value in VALUES[field] if value in words}

    def _better(self, name: Name, field: str, shown: str | None) -> str:
        """What it knows; elsewhere what the draft says, or else what it believes."""
        believed = self.knowledge.believed(name, field)
        return believed if shown is None or believed == truth(name, field) else shown
