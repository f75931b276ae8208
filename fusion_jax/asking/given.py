"""An answerer whose replies are a function of the question: for baselines and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fusion_jax.asking.contract import Decoding, Outcome, Question, Reply


@dataclass(frozen=True)
class Given:
    """Replies that are known beforehand. say: the reply to a question, or its whole outcome."""

    identity: str
    say: Callable[[Question], str | Outcome] = field(repr=False)
    together: bool = False

    def fits(self, question: Question, decoding: Decoding) -> bool:
        return True

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[tuple[int, Outcome]]:
        for number, question in enumerate(questions):
            said = self.say(question)
            yield number, Reply(said, "stop") if isinstance(said, str) else said
