"""Ready records: what this project or the published program found before, joined with the sources it is told of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from fusion_jax.kca.records import KNOWN, NEED, NO_LABEL, NO_NEED, NO_QUESTION, UNKNOWN, Instance

NOT_READY = "not among the ready records"


def settled(one: Instance) -> Instance:
    """A ready record. What it does not say is not asked for: it is lost without a label, a class or, where it needs
    facts, a question."""
    needs = one.need.label == NEED and not one.label and not one.tests
    lost = one.lost or (NO_LABEL if not one.need.label and not one.label else NO_QUESTION if needs else "")
    return dataclasses.replace(one, lost=lost)


def with_sources(ready: Sequence[Instance], sources: Sequence[Instance], counts: Counter[str]) -> list[Instance]:
    """Every source with what ready records say of it: by id and instruction, else by instruction and, of several that
    are alike, in their order. What is said of no source is counted.

    Exams are written of instances that need facts alone. So a source of which nothing is said stays as it is where it
    says itself that it needs none, as lines of stage 1 do, or has a class; any other is lost.
    """
    by_id, by_text, used = {one.id: one for one in ready}, dict[str, list[Instance]](), set[str]()
    for one in ready:
        by_text.setdefault(one.source.instruction, []).append(one)

    def said_of(one: Instance) -> Instance | None:
        instruction, same = one.source.instruction, by_id.get(one.id)
        if same is not None and same.source.instruction == instruction and same.id not in used:
            return same
        alike = (other for other in by_text.get(instruction, []) if other.id not in used)
        return next((other for other in alike if not (one.need.label == NO_NEED and _needs(other))), None)

    out = []
    for one in sources:
        same = said_of(one)
        if same is not None:
            used.add(same.id)
            out.append(dataclasses.replace(same, source=one.source))
        elif one.label or one.need.label == NO_NEED:
            out.append(one)
        else:
            out.append(dataclasses.replace(one, lost=one.lost or NOT_READY))
    counts["ready records of no source"] += len(by_id.keys() - used)
    return out


def _needs(one: Instance) -> bool:
    """Whether a record says that its instance needs facts."""
    return one.need.label == NEED or one.label in (KNOWN, UNKNOWN)
