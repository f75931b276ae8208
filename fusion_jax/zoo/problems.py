"""The problems that stand in for a user's data: by kind and side."""

from __future__ import annotations

from typing import Literal

from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.zoo import plants
from fusion_jax.zoo.tasks import SKILLS, mixture

Problems = Literal["skills", "plants"]


def problems(kind: Problems, per_skill: int, *, split: str, seed: int) -> list[Record]:
    """`per_skill` prompts of each skill of a kind, shuffled; facts about plants are one skill.

    Args:
      split: "train", "validation" or "test".

    Raises:
      InputError: there are not so many; skills have no validation side.
    """
    if kind == "plants":
        return plants.prompts(per_skill, split=split, seed=seed)
    if split == "validation":
        problem = "is a side that the zoo's skills do not have"
        raise InputError(problem, field="judged_on", cure="Use test, or --problems plants")
    return mixture(dict.fromkeys(SKILLS, per_skill), split=split, seed=seed)
