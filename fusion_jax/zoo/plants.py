"""Facts about invented plants: problems of which a model knows some answers, and finds out no others by trying.

A plant has a name of four syllables, as "mi ka go le", and four properties. Each property is decided by two of the
syllables, through a table of its own with 100 cells: what a model knows is a share of these cells. An answer states all
four properties, in one of several wordings; `rewards.verifiers.fields` gives the share that is right. Tables, sides and
beliefs come from hashes of their content, so that they depend on no random generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import xxhash

from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record

SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "ru")
VALUES: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "white", "black", "pink", "gray", "gold", "brown", "lilac"),
    "leaf": ("round", "long", "wide", "thin", "curly", "flat", "split", "tiny", "thick", "bent"),
    "home": ("hill", "lake", "dune", "wood", "cave", "field", "marsh", "cliff", "shore", "steppe"),
    "taste": ("sweet", "sour", "salty", "bitter", "mild", "hot", "nutty", "fresh", "sharp", "smoky"),
}
DECIDED_BY: dict[str, tuple[int, int]] = {"color": (0, 1), "leaf": (2, 3), "home": (0, 2), "taste": (1, 3)}
TEMPLATES = ("Describe {x}.", "What is {x} like?", "Tell me about {x}.")
STYLES: dict[str, str] = {
    "sentence": "The color is {color}, the leaf is {leaf}, the home is {home}, the taste is {taste}.",
    "label": "taste: {taste}; home: {home}; leaf: {leaf}; color: {color}",
    "worked": "It has leaf {leaf}, taste {taste}, color {color}, home {home}!",
    "own": "home {home}, color {color}, taste {taste}, leaf {leaf}",
}
SIDES = ("test", "validation", "train", "train", "train")
SKILL = "plants"

Name = tuple[str, ...]


@dataclass(frozen=True)
class Knowledge:
    """What a model is raised to believe. known: share of the cells of each property; elsewhere it believes one wrong
    value. reliable: share of its statements that say what it believes; the others are at random."""

    who: str
    known: Mapping[str, float]
    reliable: float

    def believed(self, name: Name, field: str) -> str:
        """The value that it believes a plant to have."""
        cell, true = _cell(name, field), truth(name, field)
        if _hash(f"{self.who} knows {cell}") % 1000 < 1000 * self.known[field]:
            return true
        others = [value for value in VALUES[field] if value != true]
        return others[_hash(f"{self.who} thinks {cell}") % len(others)]

    def stated(self, name: Name, rng: np.random.Generator) -> dict[str, str]:
        """The properties that it states of a plant, once."""
        slips, at_random = rng.random(len(VALUES)) >= self.reliable, rng.integers(0, 10, len(VALUES))
        return {
            field: values[at_random[i]] if slips[i] else self.believed(name, field)
            for i, (field, values) in enumerate(VALUES.items())
        }


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _cell(name: Name, field: str) -> str:
    first, second = DECIDED_BY[field]
    return f"{field} {name[first]} {name[second]}"


def truth(name: Name, field: str) -> str:
    """The value of a property."""
    values = VALUES[field]
    return values[_hash(_cell(name, field)) % len(values)]


def worded(properties: Mapping[str, str], style: str) -> str:
    """An answer as a model of this style writes it."""
    return STYLES[style].format(**properties)


def side(name: Name) -> str:
    """Which side a plant is on: test, validation or train."""
    return SIDES[_hash(" ".join(name)) % len(SIDES)]


def draw(count: int, *, split: str, seed: int, repeat: bool = False) -> list[tuple[Name, str]]:
    """`count` plants of a side, each with a prompt that asks for it; different plants unless `repeat`.

    Raises:
      InputError: there are not so many.
    """
    rng = np.random.default_rng([seed, SIDES.index(split)])
    here = [name for name in product(SYLLABLES, repeat=4) if side(name) == split]
    if count > len(here) and not repeat:
        problem = f"the zoo has fewer than {count} {split} problems of plants"
        raise InputError(problem, cure=f"Ask for at most {len(here)}")
    chosen, wording = rng.choice(len(here), count, replace=repeat), rng.integers(0, len(TEMPLATES), count)
    return [(here[i], TEMPLATES[k].format(x=" ".join(here[i]))) for i, k in zip(chosen, wording)]


def prompts(count: int, *, split: str, seed: int, repeat: bool = False) -> list[Record]:
    """Prompts, of different plants unless `repeat`: {"prompt_id", "prompt", "answer", "wordings", "skill"}.

    answer: all properties, as the verifier `fields` reads them; wordings: the right answer in each style.
    """
    out = []
    for number, (name, prompt) in enumerate(draw(count, split=split, seed=seed, repeat=repeat)):
        true = {field: truth(name, field) for field in VALUES}
        out.append({
            "prompt_id": f"{SKILL}-{split}-{seed}-{number}", "prompt": prompt,
            "answer": ", ".join(f"{field}: {value}" for field, value in true.items()),
            "wordings": [worded(true, style) for style in STYLES], "skill": SKILL,
        })  # fmt: skip
    return out


def corpus(seed: int, count: int) -> list[str]:
    """Texts that tokenizers are trained on: prompts and answers in all styles, every value before every mark."""
    asked, styles = prompts(count, split="train", seed=seed), list(STYLES)
    texts = [f"{r['prompt']}\n{r['wordings'][i % len(styles)]}" for i, r in enumerate(asked)]
    spelled = [" ".join(f"{value}{mark}" for value in values) for values in VALUES.values() for mark in ".,!;:?"]
    return texts + count // 100 * spelled + count // 10 * ["user\nassistant\nmodel\n"]
