"""Models that help a run: a helper that writes, a judge that grades. Each is a model of ours or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusion_jax.asking.ask import Kept
from fusion_jax.asking.contract import Answerer, Decoding, Outcome, Question
from fusion_jax.runs.asking import AnswererSettings, asked
from fusion_jax.runs.desk import Desk
from fusion_jax.settings import bounded, seeded


@dataclass(frozen=True)
class HelperSettings(AnswererSettings):
    """Who is asked, and how replies are decoded."""

    temperature: float = 0.0
    """Temperature of its replies; published: 1 of the helper, 0 of the judge."""
    max_tokens: int = 1024
    """Longest reply, in tokens."""
    seed: int = 0
    """Decides the replies, where the temperature is not 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "temperature", least=0)
        bounded(self, "max_tokens", least=1)
        seeded(self, "seed")

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.model or self.server)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_tokens, self.temperature, seed=self.seed)

    def check(self, option: str) -> None:
        """As `check_answerer`, and a model beside a server. option: of these settings, for instance "--helper"."""
        self.check_answerer(f"{option}.", one=True)

    def answerer(self, desk: Desk, option: str) -> Answerer | None:
        """The server, or the model on all devices; None where neither is given."""
        return self.answerer_of(desk, f"{option}.") if self.given else None


def replies(
    desk: Desk,
    answerer: Answerer,
    questions: Sequence[Question],
    decoding: Decoding,
    what: str,
    *,
    sample: int = 0,
    patience: float = 1800.0,
) -> list[Outcome]:
    """`runs.asking.asked` within a stage, whose time is the stage's."""
    with desk.run.phase("asking"):
        return asked(desk, answerer, questions, decoding, what, kept=Kept(patience=patience), sample=sample)
