"""Invented restaurants and hotels: a knowledge base in which every place has others that differ in one attribute.

What decides on a place are its kind and three attributes, its slots: area, food or stars, and price. No two places have
the same three; each can be reached from any other of its kind by changing one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_jax.dialogue.sets import MISSING
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record

VALUES: dict[str, tuple[str, ...]] = {
    "area": ("north", "south", "east", "west", "centre"),
    "pricerange": ("cheap", "moderate", "expensive"),
    "food": ("thai", "indian", "italian", "chinese", "french", "greek"),
    "stars": ("two", "three", "four", "five"),
}
SLOTS: dict[str, tuple[str, ...]] = {
    "restaurant": ("area", "food", "pricerange"),
    "hotel": ("area", "stars", "pricerange"),
}
KINDS = tuple(SLOTS)
FIRST_NAMES = (
    "golden", "silver", "green", "old", "quiet", "royal", "sunny", "little", "blue", "happy", "stone", "river",
)  # fmt: skip
LAST_NAMES = {"restaurant": ("kitchen", "table", "grill", "garden"), "hotel": ("lodge", "inn", "court", "manor")}
STREETS = ("mill road", "bridge street", "park lane", "king street", "hill road", "church lane")
HOUSES, DIGITS = range(10, 30), range(50, 80)
MOST = sum(len(FIRST_NAMES) * len(last) for last in LAST_NAMES.values())
"""Places that there are names for."""

Wants = dict[str, str]
"""Slot -> value of what somebody looks for."""


@dataclass(frozen=True)
class Town:
    """A knowledge base. decided: the place with a kind and values of its slots, in their order."""

    places: tuple[Record, ...]
    decided: Mapping[tuple[str, ...], int]

    def find(self, kind: str, wants: Wants) -> int | None:
        """The place that fits, by its number."""
        return self.decided.get(_key(kind, wants))

    def wants(self, index: int) -> Wants:
        """The slots of a place."""
        return {slot: self.places[index][slot] for slot in SLOTS[self.places[index]["type"]]}

    def nearest(self, kind: str, wants: Wants, rng: np.random.Generator) -> list[int]:
        """All places by the number of slots that differ, those of another kind last, in random order among equals."""
        return sorted(rng.permutation(len(self.places)).tolist(), key=lambda i: self._distance(i, kind, wants))

    def _distance(self, index: int, kind: str, wants: Wants) -> int:
        place = self.places[index]
        return sum(place[slot] != value for slot, value in wants.items()) + 10 * (place["type"] != kind)


def _key(kind: str, wants: Mapping[str, str]) -> tuple[str, ...]:
    return kind, *(wants[slot] for slot in SLOTS[kind])


def town(seed: int, places: int = 80) -> Town:
    """A town whose places, half restaurants and half hotels, stand in random order.

    Raises:
      InputError: fewer than 2 or more than `MOST` places.
    """
    if not 2 <= places <= MOST:
        raise InputError(f"{places} is out of range", field="places", cure=f"Give 2 to {MOST}")
    rng, made = np.random.default_rng([seed, 0]), list[Record]()
    addresses = rng.permutation([f"{house} {street}" for house in HOUSES for street in STREETS]).tolist()
    numbers = rng.permutation([f"{one} {two}" for one in DIGITS for two in DIGITS]).tolist()
    for kind, count in zip(KINDS, (places - places // 2, places // 2)):
        names = rng.permutation([f"{one} {two}" for one in FIRST_NAMES for two in LAST_NAMES[kind]]).tolist()
        for name, wants in zip(names, _neighbouring(kind, count, rng)):
            decided = {slot: wants.get(slot, MISSING) for slot in VALUES}
            where = {"address": addresses[len(made)], "phone": numbers[len(made)]}
            made.append({"name": name, "type": kind, **decided, **where})
    shuffled = tuple(made[i] for i in rng.permutation(len(made)))
    return Town(shuffled, {_key(place["type"], place): number for number, place in enumerate(shuffled)})


def _neighbouring(kind: str, count: int, rng: np.random.Generator) -> list[Wants]:
    """Different choices of the slots, each but the first made of an earlier one by changing a single slot."""
    made = [{slot: rng.choice(VALUES[slot]).item() for slot in SLOTS[kind]}]
    while len(made) < count:
        slot = SLOTS[kind][rng.integers(len(SLOTS[kind]))]
        other = {**made[rng.integers(len(made))], slot: rng.choice(VALUES[slot]).item()}
        if other not in made:
            made.append(other)
    return made


def entity_values(places: Sequence[Record]) -> dict[str, list[str]]:
    """What a scorer looks for in responses: slot -> values, without kinds of places and missing values."""
    slots = [slot for slot in places[0] if slot != "type"]
    return {slot: sorted({place[slot] for place in places} - {MISSING}) for slot in slots}
