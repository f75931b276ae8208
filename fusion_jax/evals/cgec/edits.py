"""Edits of a sentence, and how operations on characters become edits.

An edit is (start, end, type, correction): the half-open span of the source, in tokens, and what stands there instead.
Types: M something is missing, R something is redundant, S one thing stands for another, W the word order.
Source: ChERRANT (arXiv 2204.10994).
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from rapidfuzz.distance.Levenshtein import distance

from fusion_jax.evals.cgec.alignment import Path, Step
from fusion_jax.evals.cgec.costs import PUNCTUATION
from fusion_jax.evals.cgec.text import Tokens


class Edit(NamedTuple):
    """start, end: the half-open span of the source, in tokens. correction: the text that takes its place."""

    start: int
    end: int
    type: str
    correction: str


NOOP = Edit(-1, -1, "noop", "")  # the sentence is right as it is
NA = Edit(-1, -1, "NA", "")  # the sentence cannot be corrected
TYPES = {"I": "M", "D": "R", "S": "S", "T": "W"}


def merged(path: Path, source: Tokens, target: Tokens) -> tuple[Step, ...]:
    """The edits of a path of operations, still as steps: without matches, neighbours merged, moves found.

    >>> merged([("S", 0, 1, 0, 1), ("S", 1, 2, 1, 2), ("M", 2, 3, 2, 3)], tuple("怀竟。"), tuple("环境。"))
    (('S', 0, 2, 0, 2),)
    """
    steps = _moves(_groups(path), source, target)
    return tuple(_trimmed(step, source, target) for step in steps if _old(source, step) != _new(target, step))


def as_edits(steps: tuple[Step, ...], target: Tokens) -> tuple[Edit, ...]:
    """Steps as edits."""
    return tuple(Edit(i, k, TYPES[op], "".join(target[j:h])) for op, i, k, j, h in steps)


def _old(source: Tokens, step: Step) -> str:
    return "".join(source[step[1] : step[2]])


def _new(target: Tokens, step: Step) -> str:
    return "".join(target[step[3] : step[4]])


def _whole(op: str, steps: list[Step]) -> Step:
    return (op, steps[0][1], steps[-1][2], steps[0][3], steps[-1][4])


def _groups(path: Path) -> list[Step]:
    """Neighbouring operations of one kind are one step, and so are mixed ones with a replacement among them, as S.
    Insertions mixed with deletions stay apart, and so does every T."""
    out: list[Step] = []
    for op, group in groupby(path, lambda step: step[0] if step[0] in "MT" else ""):
        steps = list(group)
        kinds = {step[0] for step in steps}
        if op == "T" or kinds == {"I", "D"}:
            out += steps
        else:
            out.append(_whole(kinds.pop() if len(kinds) == 1 else "S", steps))
    return out


def _moves(steps: list[Step], source: Tokens, target: Tokens) -> list[Step]:
    """Steps without matches, in which three that move something are one T."""
    out: list[Step] = []
    i = 0
    while i < len(steps):
        three = steps[i : i + 3]
        if len(three) == 3 and (_swapped(three, source, target) or _moved(three, source, target)):
            out.append(_whole("T", three))
            i += 3
            continue
        if steps[i][0] != "M":
            out.append(steps[i])
        i += 1
    return out


def _swapped(three: list[Step], source: Tokens, target: Tokens) -> bool:
    """S, M, S whose outer texts have changed places."""
    if [step[0] for step in three] != ["S", "M", "S"]:
        return False
    old_first, old_last = (_old(source, three[t]) for t in (0, 2))
    new_first, new_last = (_new(target, three[t]) for t in (0, 2))
    allowed = 0 if min(map(len, (old_first, old_last, new_first, new_last))) == 1 else 1
    return distance(old_first, new_last) <= allowed and distance(new_first, old_last) <= allowed


def _moved(three: list[Step], source: Tokens, target: Tokens) -> bool:
    """D and I, in either order, around M or T: the deleted text is inserted again, exactly or nearly."""
    first, middle, last = (step[0] for step in three)
    if {first, last} != {"D", "I"} or middle not in "MT":
        return False
    deleted, inserted = (three[0], three[2]) if first == "D" else (three[2], three[0])
    long, short = sorted((_old(source, deleted), _new(target, inserted)), key=len, reverse=True)
    # A part of the list, not a set of marks: "！？" counts as punctuation and "，。" does not.
    if long in PUNCTUATION or short in PUNCTUATION or len(long) - len(short) > 1:
        return False
    if len(short) == 1:
        return long == short
    return distance(long, short) <= 1 or (len(long) == len(short) and short in long + long)


def _trimmed(step: Step, source: Tokens, target: Tokens) -> Step:
    """An S without the tokens that both sides begin or end with, which may leave a D or an I."""
    op, i, k, j, h = step
    if op != "S":
        return step
    whole = target[j:h]
    head = 0
    while head < min(k - i, len(whole)) and source[i + head] == whole[head]:
        head += 1
    i, j, tail = i + head, j + head, 0
    while tail < min(k - i, len(whole)) and source[k - 1 - tail] == whole[-1 - tail]:
        tail += 1
    if tail <= h - j:  # else, as published, nothing is taken off the end
        k, h = k - tail, h - tail
    return ("I" if i == k else "D" if j == h else "S", i, k, j, h)
