"""The training sets of the strategies: what is done with instances whose facts the base model does not have.

All keep the other classes as they are. openbook puts the knowledge before the instruction; discard leaves the instances
out; refusal lets an apology answer them. Beside them stand standard, all sources as they are; surviving, the same
without what the stages have lost, which the strategies lack too; random, which leaves out as many instances as discard
does, drawn from those that need facts; and unknown, the unknown ones alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fusion_jax.data.records import Row
from fusion_jax.kca.records import KNOWN, UNKNOWN, Instance

Strategy = Literal["standard", "surviving", "openbook", "discard", "random", "refusal", "unknown"]
REFUSAL = "I'm sorry, I don't have the factual knowledge needed to answer this."
NO_KNOWLEDGE, CUT = "no knowledge to give", "knowledge cut"
Where = Literal["before", "after"]


class Treatment(NamedTuple):
    """How unknown instances are treated. refusal: the one sentence that is learnt and looked for. where: whether the
    knowledge stands before the instruction, as published, or behind it. room: (knowledge, instruction, response) -> as
    much of the knowledge as leaves the instruction and the response whole. seed: draws the random discard."""

    refusal: str = REFUSAL
    where: Where = "before"
    room: Callable[[str, str, str], str] = lambda knowledge, instruction, response: knowledge
    seed: int = 0


def training_rows(instances: Sequence[Instance], strategy: Strategy, how: Treatment) -> tuple[list[Row], Counter[str]]:
    """The rows of a strategy, in the order of their sources and named by their ids, and counts of what was done."""
    counts = Counter[str]()
    left_out = _drawn(instances, how.seed) if strategy == "random" else set[str]()
    rows = []
    for one in instances:
        row = _row(one, strategy, how, counts)
        if row is None or one.id in left_out:
            counts[f"left out: {one.label or one.lost}"] += 1
        else:
            counts[one.label or "of no class"] += 1
            rows.append(row)
    return rows, counts


def _row(one: Instance, strategy: Strategy, how: Treatment, counts: Counter[str]) -> Row | None:
    """The row of an instance; None where the strategy leaves it out."""
    instruction, response = one.source.instruction, one.source.response
    if strategy != "standard" and not one.label:
        return None
    if strategy == "unknown" and one.label != UNKNOWN:
        return None
    if one.label == UNKNOWN and strategy == "discard":
        return None
    if one.label == UNKNOWN and strategy == "refusal":
        counts["answered by the apology"] += 1
        response = how.refusal
    if one.label == UNKNOWN and strategy == "openbook":
        knowledge = how.room(one.knowledge, instruction, response)
        counts[CUT] += knowledge != one.knowledge
        counts[NO_KNOWLEDGE] += not knowledge
        if knowledge:
            both = (knowledge, instruction) if how.where == "before" else (instruction, knowledge)
            instruction = "\n".join(both)
    return Row(one.id, ({"role": "user", "content": instruction},), (response,))


def _drawn(instances: Sequence[Instance], seed: int) -> set[str]:
    """Ids of as many instances that need facts as discard leaves out, drawn at random."""
    having = [one.id for one in instances if one.label in (KNOWN, UNKNOWN)]
    count = sum(one.label == UNKNOWN for one in instances)
    order = np.random.default_rng([seed, 17]).permutation(len(having))[:count]
    return {having[place] for place in order}
