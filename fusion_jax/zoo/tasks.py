"""Skills with verifiable answers, as instructions, generated from a seed.

Whether a problem belongs to the training or the test side is decided by a hash of its content, whatever its wording,
so the two sides cannot share a problem.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_jax.data.jsonl import Record

LETTERS = "abcdefghijkl"
TEST_SHARE = 5  # one problem in so many is a test problem


@dataclass(frozen=True)
class Problem:
    """content: what makes it this problem, without its wording; {x} of a template takes `shown`."""

    content: str
    shown: str
    answer: str


@dataclass(frozen=True)
class Skill:
    """A kind of problem with its wordings."""

    name: str
    draw: Callable[[np.random.Generator], Problem]
    templates: tuple[str, ...]


def _add(rng: np.random.Generator) -> Problem:
    number, small = int(rng.integers(1, 100)), int(rng.integers(1, 8))
    return Problem(f"{number}+{small}", f"{number} + {small}", str(number + small))


def _largest(rng: np.random.Generator) -> Problem:
    numbers = [int(x) for x in rng.choice(np.arange(10, 100), 3, replace=False)]
    return Problem(" ".join(map(str, sorted(numbers))), ", ".join(map(str, numbers)), str(max(numbers)))


def _letters(rng: np.random.Generator, count: int, *, distinct: bool = True) -> list[str]:
    return [str(x) for x in rng.choice(list(LETTERS), count, replace=not distinct)]


def _sort(rng: np.random.Generator) -> Problem:
    letters = _letters(rng, 4)
    return Problem("".join(letters), " ".join(letters), " ".join(sorted(letters)))


def _reverse(rng: np.random.Generator) -> Problem:
    letters = _letters(rng, 5)
    return Problem("".join(letters), " ".join(letters), " ".join(letters[::-1]))


def _count(rng: np.random.Generator) -> Problem:
    letter, other, third = _letters(rng, 3)
    times = int(rng.integers(1, 6))
    rest = [str(x) for x in rng.choice([other, third], 7 - times)]
    letters = [str(x) for x in rng.permutation([letter] * times + rest)]
    return Problem(letter + "".join(letters), f"{letter} in {' '.join(letters)}", str(times))


def _remove(rng: np.random.Generator) -> Problem:
    letters = _letters(rng, 5)
    gone = letters[int(rng.integers(0, 5))]
    return Problem(
        gone + "".join(letters), f"{gone} from {' '.join(letters)}", " ".join(x for x in letters if x != gone)
    )


def _position(rng: np.random.Generator) -> Problem:
    letters, place = _letters(rng, 5), int(rng.integers(0, 5))
    name = ("first", "second", "third", "fourth", "fifth")[place]
    return Problem(f"{place}{''.join(letters)}", f"{name} letter of {' '.join(letters)}", letters[place])


SKILLS: dict[str, Skill] = {
    s.name: s
    for s in (
        Skill("add", _add, ("What is {x}?", "Add: {x}", "Compute {x} please.")),
        Skill("largest", _largest, ("Which number is the largest: {x}?", "Give the largest of {x}.", "Largest: {x}")),
        Skill("sort", _sort, ("Sort these letters: {x}", "Put in order: {x}", "Write {x} in alphabetical order.")),
        Skill("reverse", _reverse, ("Write backwards: {x}", "Reverse {x}", "Turn around the letters {x}.")),
        Skill("count", _count, ("How often is {x}?", "Count {x}", "Tell me how many times you see {x}.")),
        Skill("remove", _remove, ("Remove {x}", "Take {x}.", "Please drop {x}")),
        Skill("position", _position, ("What is the {x}?", "Name the {x}", "Please give the {x}.")),
    )
}  # fmt: skip

STYLES: dict[str, str] = {
    "plain": "{a}",
    "sentence": "The answer is {a}.",
    "label": "Answer: {a}",
    "worked": "So the answer is {a}!",
}


def is_test(skill: str, problem: Problem) -> bool:
    """Which side a problem is on."""
    return zlib.crc32(f"{skill}/{problem.content}".encode()) % TEST_SHARE == 0


def prompts(skill: str, count: int, *, split: str, seed: int, repeat: bool = False) -> list[Record]:
    """`count` prompts of one skill: {"prompt_id", "prompt", "answer", "skill"}; different problems unless `repeat`."""
    rng = np.random.default_rng([seed, zlib.crc32(skill.encode()), split == "test"])
    kind, seen, out = SKILLS[skill], set[str](), list[Record]()
    for _ in range(1000 * count):
        if len(out) == count:
            return out
        problem = kind.draw(rng)
        if (problem.content in seen and not repeat) or is_test(skill, problem) != (split == "test"):
            continue
        seen.add(problem.content)
        wording = kind.templates[int(rng.integers(len(kind.templates)))]
        identity = f"{skill}-{split}-{seed}-{len(out)}"
        out.append(
            {"prompt_id": identity, "prompt": wording.format(x=problem.shown), "answer": problem.answer, "skill": skill}
        )
    raise ValueError(f"the skill '{skill}' has fewer than {count} {split} problems")


def mixture(shares: dict[str, int], *, split: str, seed: int, repeat: bool = False) -> list[Record]:
    """Prompts of several skills, shuffled: `shares` gives how many of each."""
    records = [r for k, n in shares.items() for r in prompts(k, n, split=split, seed=seed, repeat=repeat)]
    return [records[i] for i in np.random.default_rng(seed).permutation(len(records))]


def in_style(answer: str, style: str) -> str:
    """An answer as a model of this style writes it."""
    return STYLES[style].format(a=answer)


def corpus(seed: int, count: int, styles: Sequence[str] = tuple(STYLES)) -> list[str]:
    """Texts that tokenizers are trained on: prompts and answers of all skills."""
    records = mixture(dict.fromkeys(SKILLS, count), split="train", seed=seed)
    texts = [f"{r['prompt']}\n{in_style(r['answer'], styles[i % len(styles)])}" for i, r in enumerate(records)]
    # Unigram pieces come from substrings that several words share: show every letter in several surroundings.
    spelled = [" ".join(f"{letter}{mark}" for letter in LETTERS) for mark in (".", ",", "!", "?", ":", ";")]
    return texts + count // 10 * [*spelled, "user\nassistant\nmodel\n"]
