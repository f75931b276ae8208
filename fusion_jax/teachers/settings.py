"""How several teachers' distributions become one target, and how much it weighs in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion_jax.losses.fusion import Rounding, Tail
from fusion_jax.settings import bounded


@dataclass(frozen=True)
class FusionSettings:
    """Explicit fusion of teachers' distributions (FuseLLM and FuseChat, section 9 of their specification)."""

    weight: float = 0.9
    """Lambda, the weight of the language-model loss; the fusion loss has the rest."""
    kind: Literal["ce", "kl"] = "ce"
    """Fusion loss: cross-entropy against the teachers' distribution, or KL divergence from it."""
    schedule: Literal["hard", "hard_and_decay", "soft"] = "hard"
    """Lambda is constant (hard), rises to 1 (hard_and_decay), or is taken for each example from the teachers' scores of
    it (soft; published for one example at a time, here a batch is the mean of its examples)."""
    tail: Tail = "none"
    """A teacher's mass outside its k entries: the entries are renormalised (none, as published), or the rest is
    compared as one class (bucket)."""
    function: Literal["mince", "avgce"] = "mince"
    """How several teachers become one target: the best of them (mince) or their average (avgce)."""
    choice: Literal["sample", "token"] = "sample"
    """Whether mince chooses a teacher for each text, or for each token the one that gives it the most."""
    metric: Literal["ce", "bits_per_byte"] = "ce"
    """By what mince and avgce compare teachers on a text."""
    pivot: bool = True
    """Whether the target's own distribution before training is among the teachers."""
    temperature: float = 1.0
    """Temperature of the teachers' distributions."""
    rounding: Rounding = "none"
    """Rounding of the fusion loss; bfloat16 repeats the published runs."""

    def __post_init__(self) -> None:
        bounded(self, "weight", least=0, most=1)
        bounded(self, "temperature", above=0)


ROUNDED = FusionSettings(rounding="bfloat16")
"""As the published code computes."""
