"""How several teachers' distributions become one target, and how much it weighs in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion_jax.errors import InputError
from fusion_jax.losses.fusion import Kind, Rounding, Tail
from fusion_jax.settings import bounded

Teachers = Literal["stored", "live"]


@dataclass(frozen=True)
class FusionSettings:
    """Explicit fusion of teachers' distributions (FuseLLM and FuseChat, section 9 of their specification)."""

    weight: float = 0.9
    """Lambda, the weight of the language-model loss; the fusion loss has the rest."""
    kind: Kind = "ce"
    """Fusion loss, of the student against the teachers' distribution: cross-entropy (ce), forward KL (kl), reverse KL,
    Jensen-Shannon (jsd) or total variation (tv)."""
    jsd_beta: float = 0.5
    """The teachers' weight in jsd, which is like kl for small ones and like reverse_kl for large ones."""
    schedule: Literal["hard", "hard_and_decay", "soft"] = "hard"
    """Lambda is constant (hard), rises to 1 (hard_and_decay), or is taken for each example from the teachers' scores of
    it (soft; published for one example at a time, here a batch is the mean of its examples)."""
    tail: Tail = "none"
    """A teacher's mass outside its k entries: its entries are renormalised (none, as published), the student's on
    them, too (renormalise), the rest is compared as one class (bucket), or it is no part of the loss (ignore)."""
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
        check_divergence(self.kind, self.tail, self.jsd_beta)

    @property
    def keeps_mass(self) -> bool:
        """Whether the teachers' probabilities stay as they are, which leaves the mass outside their entries visible."""
        return self.tail in ("bucket", "ignore")


def check_divergence(kind: Kind, tail: Tail, jsd_beta: float) -> None:
    """Refuse settings of a divergence that do not go together; for a `__post_init__`.

    Raises:
      InputError: a weight that is out of range, reverse KL from a teacher who gives 0 to what it does not list.
    """
    if not 0 < jsd_beta < 1:
        raise InputError(f"{jsd_beta} is out of range", field="jsd_beta", cure="Give more than 0 and less than 1")
    if (kind, tail) == ("reverse_kl", "none"):
        problem = "is infinite where the student gives mass to what the teacher does not list"
        raise InputError(problem, field="kind", cure="Set tail to renormalise, bucket or ignore")


ROUNDED = FusionSettings(rounding="bfloat16")
"""As the published code computes."""
