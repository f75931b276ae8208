"""Nine dimensions out of item scores, and their mean, as the published table has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from fusion_jax.evals.socialbench.records import GROUP, MEMORY

Unparsed = Literal["drop", "zero"]
DIMENSIONS = (
    "SA Style", "SA Know.", "EP Situ.", "EP Emo.", "CM Short", "CM Long", "SP Pos.", "SP Neu.", "SP Neg.",
)  # fmt: skip
LONG = 40  # utterances from which on memory is long, where its category does not say


class Scored(NamedTuple):
    """An item's score. score: None where nothing could be read. error: why there is no reply, or nothing."""

    category: str
    utterances: int
    score: float | None
    error: str = ""


class Cell(NamedTuple):
    """A dimension. score: percent, None where no item counts. counted, unparsed, errors: items."""

    score: float | None
    counted: int
    unparsed: int
    errors: int


def dimension(category: str, utterances: int) -> str:
    """The dimension of an item; all of emotion and humour are one."""
    if category.startswith(MEMORY):
        suffix = category.removeprefix(MEMORY)
        return "CM Short" if suffix == "-Short" or (not suffix and utterances < LONG) else "CM Long"
    if category.startswith(GROUP):
        return f"SP {category.removeprefix(GROUP)[:3]}."
    if "-SA-" in category:
        return "SA Know." if "RoleKnowledge" in category else "SA Style"
    return "EP Situ." if "SituationUnderstanding" in category else "EP Emo."


def aggregate(items: Iterable[Scored], unparsed: Unparsed = "drop") -> dict[str, Cell]:
    """Every dimension that has items: 100 times the mean of their scores.

    Args:
      unparsed: whether items of which nothing could be read leave the mean (drop, as published), or count 0. Items
        without a reply leave it either way.
    """
    groups: dict[str, list[Scored]] = {}
    for item in items:
        groups.setdefault(dimension(item.category, item.utterances), []).append(item)
    return {name: cell(groups[name], unparsed) for name in DIMENSIONS if name in groups}


def cell(items: Iterable[Scored], unparsed: Unparsed = "drop") -> Cell:
    """The mean of some items in percent, and how many there are of each sort."""
    every = list(items)
    answered = [item for item in every if not item.error]
    scores = [item.score for item in answered if item.score is not None]
    lost = len(answered) - len(scores)
    counted = len(scores) + (lost if unparsed == "zero" else 0)
    return Cell(100 * sum(scores) / counted if counted else None, counted, lost, len(every) - len(answered))


def average(cells: Mapping[str, Cell]) -> float | None:
    """The unweighted mean of all nine dimensions; None unless each has a score.

    >>> average({name: Cell(50.0, 1, 0, 0) for name in DIMENSIONS})
    50.0
    """
    scores = [cells[name].score for name in DIMENSIONS if name in cells]
    known = [score for score in scores if score is not None]
    return sum(known) / len(DIMENSIONS) if len(known) == len(DIMENSIONS) else None
