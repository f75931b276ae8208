"""What teachers cost: the tokens that each has read and written for a run, and their FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fusion_jax.markdown import markdown_table
from fusion_jax.models.config import ModelConfig
from fusion_jax.plan.flops import forward_flops


@dataclass(frozen=True)
class Work:
    """Work of models so far; rows: of the table, one for each model and kind of work, the later of two alike counts."""

    rows: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)

    def note(self, model: str, what: str, config: ModelConfig, lengths: Sequence[int], times: float = 1.0) -> None:
        """Texts of so many tokens went through a model once, or `times` as often: 2 FLOPs a parameter of a matmul and
        token, and attention. A written token counts as a read one, since caches keep what was computed."""
        flops = sum(forward_flops(config, 0, length, 1, False) for length in lengths)
        self.rows[model, what] = round(times * sum(lengths)), times * flops

    def parts(self) -> list[str]:
        """The part of a report."""
        if not self.rows:
            return []
        lines = [
            {"teacher": model, "work": what, "tokens": f"{tokens:,}", "GFLOPs": f"{flops / 1e9:,.1f}"}
            for (model, what), (tokens, flops) in self.rows.items()
        ]
        tokens, flops = (sum(one) for one in zip(*self.rows.values(), strict=True))
        total = {"teacher": "all", "work": "", "tokens": f"{tokens:,}", "GFLOPs": f"{flops / 1e9:,.1f}"}
        return ["## Compute of teachers", markdown_table([*lines, total])]
