"""The zoo's problems: answers checked by an independent solver, sides that no wording can cross."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.rewards.verifiers import answer, graded
from fusion_jax.zoo.tasks import SKILLS, STYLES, Problem, in_style, is_test, mixture, prompts

ORDINALS = ("first", "second", "third", "fourth", "fifth")
LETTERS = r"\b((?:[a-l] )+[a-l])\b"

# From a prompt alone: what the problem is, whatever its wording, and its answer.
Solved = tuple[object, str]


def _add(text: str) -> Solved:
    a, b = map(int, re.findall(r"\d+", text))
    return frozenset((a, b)), str(a + b)


def _largest(text: str) -> Solved:
    numbers = sorted(map(int, re.findall(r"\d+", text)))
    return tuple(numbers), str(numbers[-1])


def _row(text: str) -> list[str]:
    found = re.findall(LETTERS, text)
    assert len(found) == 1, text
    return found[0].split()


def _sort(text: str) -> Solved:
    return tuple(_row(text)), " ".join(sorted(_row(text)))


def _reverse(text: str) -> Solved:
    return tuple(_row(text)), " ".join(reversed(_row(text)))


def _double(text: str) -> Solved:
    return tuple(_row(text)), " ".join(f"{x} {x}" for x in _row(text))


def _remove(text: str) -> Solved:
    found = re.search(r"([a-l]) from " + LETTERS, text)
    assert found, text
    return found.groups(), " ".join(x for x in found[2].split() if x != found[1])


def _position(text: str) -> Solved:
    found = re.search(rf"({'|'.join(ORDINALS)}) letter of {LETTERS}", text)
    assert found, text
    return found.groups(), found[2].split()[ORDINALS.index(found[1])]


SOLVERS: dict[str, Callable[[str], Solved]] = {
    "add": _add, "largest": _largest, "sort": _sort, "reverse": _reverse, "double": _double, "remove": _remove,
    "position": _position,
}  # fmt: skip


def test_there_are_six_skills_and_each_has_its_solver():
    assert len(SKILLS) >= 6 and set(SOLVERS) == set(SKILLS)


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_right(skill):
    for split in ("train", "test"):
        for record in prompts(skill, 100, split=split, seed=11):
            assert record["skill"] == skill and record["answer"] == SOLVERS[skill](record["prompt"])[1], record
            assert record["slip"] != record["answer"] and set(record["slip"]) <= set(record["prompt"] + "0123456789")


@pytest.mark.parametrize("skill", SKILLS)
def test_no_problem_is_on_both_sides(skill):
    """Thousands of draws with repetition, read back by the solver: the wordings cannot hide a shared problem."""
    sides = {
        split: {SOLVERS[skill](r["prompt"])[0] for s in range(3) for r in drawn(skill, split, s)}
        for split in ("train", "test")
    }
    assert len(sides["test"]) > 50 and not sides["train"] & sides["test"]


def drawn(skill: str, split: str, seed: int) -> list[dict]:
    return prompts(skill, 1000, split=split, seed=seed, repeat=True)


@pytest.mark.parametrize("skill", SKILLS)
def test_every_wording_occurs_on_both_sides(skill):
    """And tells the solver the same problem, so a problem's wordings are on its side too."""
    problem = SKILLS[skill].draw(np.random.default_rng(5))
    worded = [t.format(x=problem.shown) for t in SKILLS[skill].templates]
    assert len(set(worded)) == len(worded) >= 2
    assert len({SOLVERS[skill](text) for text in worded}) == 1
    for split in ("train", "test"):
        starts = Counter(
            next(t for t in SKILLS[skill].templates if r["prompt"].startswith(t.split("{x}")[0]))
            for r in prompts(skill, 60, split=split, seed=0)
        )
        assert len(starts) == len(worded), starts


@pytest.mark.parametrize("skill", SKILLS)
def test_the_side_is_a_matter_of_content_and_about_a_fifth_is_test(skill):
    rng = np.random.default_rng(0)
    problems = [SKILLS[skill].draw(rng) for _ in range(2000)]
    assert 0.1 < np.mean([is_test(skill, p) for p in problems]) < 0.3
    assert all(is_test(skill, p) == is_test(skill, Problem(p.content, "other words", "", "")) for p in problems[:200])


def test_prompts_are_different_unless_repeated():
    for skill in SKILLS:
        problems = [SOLVERS[skill](r["prompt"])[0] for r in prompts(skill, 100, split="test", seed=2)]
        assert len(set(problems)) == len(problems)
    assert len({r["prompt"] for r in prompts("add", 3000, split="train", seed=2, repeat=True)}) < 3000


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"has fewer than 300 test problems.*at most 1"):
        prompts("add", 300, split="test", seed=0)


def test_the_order_of_a_mixture_is_a_shuffle_by_seed():
    shares = {"add": 20, "sort": 10}
    records = mixture(shares, split="train", seed=1)
    assert Counter(r["skill"] for r in records) == shares
    assert [r["skill"] for r in records] != sorted(r["skill"] for r in records)
    assert {r["prompt_id"] for r in records} == {
        r["prompt_id"] for k, n in shares.items() for r in prompts(k, n, split="train", seed=1)
    }


def test_styles_differ_and_read_alike():
    """Each style words an answer differently; a wrong answer in any style scores below a right one in any other."""
    for record in mixture(dict.fromkeys(SKILLS, 3), split="test", seed=4):
        right = record["answer"]
        worded = [in_style(right, style) for style in STYLES]
        assert len(set(worded)) == len(STYLES) and all(answer(w, right) == graded(w, right) == 1.0 for w in worded)
        for style in STYLES:
            for wrong in (right + " 7", right[:-1] + "z", ""):
                assert answer(in_style(wrong, style), right) == 0.0
                assert graded(in_style(wrong, style), right) <= 0.9


def test_a_nearer_miss_earns_more():
    assert 1.0 > graded("Answer: a b c e", "a b c d") > graded("Answer: e f", "a b c d")
    assert graded("The answer is 41.", "42") > graded("The answer is 7.", "42") == 0.0
