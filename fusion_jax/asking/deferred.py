"""An answerer that is loaded when it is first asked: a run whose replies are all in the log never loads its models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fusion_jax.asking.contract import Answerer, Decoding, Outcome, Question


@dataclass
class Deferred:
    """identity, together: of the answerer that `load` gives; see `Answerer`."""

    identity: str
    load: Callable[[], Answerer] = field(repr=False)
    together: bool = True
    _loaded: Answerer | None = field(default=None, init=False, repr=False)

    def fits(self, question: Question, decoding: Decoding) -> bool:
        return self._answerer().fits(question, decoding)

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[tuple[int, Outcome]]:
        if questions:
            yield from self._answerer().answers(questions, decoding)

    def dismiss(self) -> None:
        """Let the answerer go, and with it its memory; asked again, it is loaded again."""
        self._loaded = None

    def _answerer(self) -> Answerer:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded


def dismiss(answerer: Answerer | None) -> None:
    """Let an answerer go that can be loaded again."""
    if isinstance(answerer, Deferred):
        answerer.dismiss()
