"""Skills with verifiable answers, as instructions, generated from a seed.

Whether a problem belongs to the training or the test side is decided by a hash of its content, whatever its wording,
so the two sides cannot share a problem.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record

LETTERS = "abcdefghijkl"
TEST_SHARE = 5  # one problem in so many is a test problem


@dataclass(frozen=True)
class Problem:
    """content: what makes it this problem, without its wording; {x} of a template takes `shown`.

    slip: the wrong answer of somebody careless.
    """

    content: str
    shown: str
    answer: str
    slip: str


@dataclass(frozen=True)
class Skill:
    """A kind of problem with its wordings."""

    name: str
    draw: Callable[[np.random.Generator], Problem]
    templates: tuple[str, ...]


def _add(rng: np.random.Generator) -> Problem:
    number, small = int(rng.integers(1, 100)), int(rng.integers(1, 8))
    low, high = sorted((number, small))
    return Problem(f"{low}+{high}", f"{number} + {small}", str(number + small), str(number + small - 1))


def _largest(rng: np.random.Generator) -> Problem:
    numbers = [int(x) for x in rng.choice(np.arange(10, 100), 3, replace=False)]
    ranked = sorted(numbers)
    return Problem(" ".join(map(str, ranked)), ", ".join(map(str, numbers)), str(ranked[-1]), str(ranked[-2]))


def _letters(rng: np.random.Generator, count: int) -> list[str]:
    return [str(x) for x in rng.choice(list(LETTERS), count, replace=False)]


def _on_letters(content: str, shown: str, answer: list[str], slip: list[str]) -> Problem:
    return Problem(content, shown, " ".join(answer), " ".join(slip))


def _sort(rng: np.random.Generator) -> Problem:
    letters = _letters(rng, 4)
    first, second, *rest = sorted(letters)
    return _on_letters("".join(letters), " ".join(letters), [first, second, *rest], [second, first, *rest])


def _reverse(rng: np.random.Generator) -> Problem:
    letters = _letters(rng, 5)
    turned = letters[::-1]
    return _on_letters("".join(letters), " ".join(letters), turned, turned[:-1])


def _double(rng: np.random.Generator) -> Problem:
    letters = _letters(rng, 4)
    twice = [x for x in letters for _ in range(2)]
    return _on_letters("".join(letters), " ".join(letters), twice, twice[:-1])


def _remove(rng: np.random.Generator) -> Problem:
    letters, place = _letters(rng, 5), int(rng.integers(0, 5))
    gone, after = letters[place], letters[(place + 1) % 5]
    kept, slip = ([x for x in letters if x != other] for other in (gone, after))
    return _on_letters(gone + "".join(letters), f"{gone} from {' '.join(letters)}", kept, slip)


def _position(rng: np.random.Generator) -> Problem:
    letters, place = _letters(rng, 5), int(rng.integers(0, 5))
    name = ("first", "second", "third", "fourth", "fifth")[place]
    shown = f"{name} letter of {' '.join(letters)}"
    return _on_letters(f"{place}{''.join(letters)}", shown, [letters[place]], [letters[(place + 1) % 5]])


SKILLS: dict[str, Skill] = {
    s.name: s
    for s in (
        Skill("add", _add, ("What is {x}?", "Add: {x}", "Compute {x} please.")),
        Skill("largest", _largest, ("Which number is the largest: {x}?", "Give the largest of {x}.", "Largest: {x}")),
        Skill("sort", _sort, ("Sort these letters: {x}", "Put in order: {x}", "Write {x} in alphabetical order.")),
        Skill("reverse", _reverse, ("Write backwards: {x}", "Reverse {x}", "Turn around the letters {x}.")),
        Skill("double", _double, ("Write each letter twice: {x}", "Double {x}", "Repeat every letter of {x}.")),
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
    """`count` prompts of one skill: {"prompt_id", "prompt", "answer", "slip", "skill"}.

    Different problems unless `repeat`. slip: the wrong answer of somebody careless.
    """
    rng = np.random.default_rng([seed, zlib.crc32(skill.encode()), split == "test"])
    kind, seen, out = SKILLS[skill], set[str](), list[Record]()
    for _ in range(1000 * count):
        problem = kind.draw(rng)
        if (problem.content in seen and not repeat) or is_test(skill, problem) != (split == "test"):
            continue
        seen.add(problem.content)
        wording = kind.templates[int(rng.integers(len(kind.templates)))]
        out.append({
            "prompt_id": f"{skill}-{split}-{seed}-{len(out)}", "prompt": wording.format(x=problem.shown),
            "answer": problem.answer, "slip": problem.slip, "skill": skill,
        })  # fmt: skip
        if len(out) == count:
            return out
    if not count:
        return out
    told = f"the zoo's skill '{skill}' has fewer than {count} {split} problems"
    raise InputError(told, cure=f"Ask for at most {len(out)} of each skill")


def mixture(shares: dict[str, int], *, split: str, seed: int, repeat: bool = False) -> list[Record]:
    """Prompts of several skills, shuffled: `shares` gives how many of each."""
    records = [r for k, n in shares.items() for r in prompts(k, n, split=split, seed=seed, repeat=repeat)]
    return [records[i] for i in np.random.default_rng(seed).permutation(len(records))]


def in_style(answer: str, style: str) -> str:
    """An answer as a model of this style writes it."""
    return STYLES[style].format(a=answer)


def plain_text(problem: Record) -> str:
    """A problem and, on the next line, its answer."""
    return f"{problem['prompt']}\n{problem['answer']}"


def documents(shares: dict[str, int], *, split: str, seed: int, repeat: bool = False) -> list[str]:
    """Problems as plain texts."""
    return list(map(plain_text, mixture(shares, split=split, seed=seed, repeat=repeat)))


def answered(problems: Sequence[Record]) -> list[Record]:
    """Problems with right responses, worded in turn as each of the models does."""
    styles = list(STYLES)
    return [
        {"prompt": r["prompt"], "response": in_style(r["answer"], styles[i % len(styles)]), "prompt_id": r["prompt_id"]}
        for i, r in enumerate(problems)
    ]


def corpus(seed: int, count: int) -> list[str]:
    """Texts that tokenizers are trained on: prompts and answers of all skills."""
    records = answered(mixture(dict.fromkeys(SKILLS, count), split="train", seed=seed))
    texts = [f"{r['prompt']}\n{r['response']}" for r in records]
    # Unigram pieces come from substrings that several words share: show every letter in several surroundings.
    spelled = [" ".join(f"{letter}{mark}" for letter in LETTERS) for mark in (".", ",", "!", "?", ":", ";")]
    return texts + count // 10 * [*spelled, "user\nassistant\nmodel\n"]
