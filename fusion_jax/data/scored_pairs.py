"""Pairs that bring along what sources make of their answers, in the fields of InfiFPO's released records."""

from __future__ import annotations

import math

from fusion_jax.data.messages import Place
from fusion_jax.errors import quoted
from fusion_jax.jsonl import Record

FIELDS = {
    "summed pair": ("fuse_chosen_logps", "fuse_rejected_logps"),
    "averaged pair": ("fuse_mean_chosen_logps", "fuse_mean_rejected_logps"),
}
"""Fields of the sources' log-probs of the two answers, by kind of record: sums over tokens, or means."""


def log_probs(record: Record, kind: str, place: Place) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the chosen and of the rejected answer, one number of each source.

    Raises:
      InputError: a list that is missing, empty, or as long as the other one is not; what is no log-prob.
    """
    chosen, rejected = (_listed(record, name, place) for name in FIELDS[kind])
    if len(chosen) != len(rejected):
        first, second = FIELDS[kind]
        problem = f"has {len(rejected)} numbers, {first} has {len(chosen)}"
        raise place.error(problem, second, "Give one of each source, in the same order")
    return chosen, rejected


def _listed(record: Record, name: str, place: Place) -> tuple[float, ...]:
    values = record.get(name)
    if not isinstance(values, list) or not values:
        cure = "Give a list with the log-prob of the response under each source"
        raise place.error("is missing" if values is None else f"is {quoted(values)}", name, cure)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= 0:
            raise place.error(f"holds {quoted(value)}", name, "Give log-probs: finite numbers, none above 0")
    return tuple(map(float, values))


def check_sources(found: int, wanted: int, kind: str, place: Place) -> None:
    """Refuse a record with the log-probs of more or fewer sources than the records before it."""
    if found != wanted:
        problem = f"has the log-probs of {found} sources, records before it of {wanted}"
        raise place.error(problem, FIELDS[kind][0], "Score all records by the same sources, in the same order")
