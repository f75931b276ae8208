"""What is asked and answered: questions, how replies are decoded, replies, failures, and who answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fusion_jax.data.messages import ROLES
from fusion_jax.errors import InputError, quoted
from fusion_jax.json_files import lone_surrogate
from fusion_jax.options import FreeTexts
from fusion_jax.sampling.stops import stop_strings
from fusion_jax.settings import bounded, seeded

MOST_LOGPROBS = 20  # that servers of the OpenAI chat API give


class Message(NamedTuple):
    """One turn of a conversation. role: "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the turn which is to be answered.

    Raises:
      InputError: no message, an unknown role, a last turn that is not the user's, half of a surrogate pair.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        roles = [message.role for message in self.messages]
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise InputError(f"has the role {quoted(unknown[0])}", field="messages", cure=f"Use {', '.join(ROLES)}")
        if roles[-1:] != ["user"]:
            raise InputError("does not end with the user", field="messages", cure="End with what is to be answered")
        if (place := lone_surrogate([message.content for message in self.messages])) is not None:
            raise InputError("holds half of a surrogate pair", field=f"messages{place}", cure="Write the whole pair")

    @classmethod
    def of(cls, text: str, system: str = "") -> Question:
        """A single turn of the user, behind a system message if one is given."""
        above = (Message("system", system),) if system else ()
        return cls((*above, Message("user", text)))

    @property
    def digest(self) -> str:
        """sha256 of the messages."""
        parts = [part.encode() for message in self.messages for part in message]
        return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).hexdigest()


@dataclass(frozen=True)
class Decoding:
    """How replies are decoded.

    Raises:
      InputError: a value out of its range; names the field.
    """

    max_tokens: int = 256
    """Longest reply, in tokens."""
    temperature: float = 0.0
    """Temperature of sampling; 0 always takes the most probable token."""
    top_p: float = 1.0
    """Share of the probability mass that is sampled from; 1: all."""
    stop: FreeTexts = ()
    """Texts that end a reply, which is cut before them."""
    seed: int = 0
    """Decides the samples, where the temperature is not 0."""
    top_logprobs: int = 0
    """Most probable first tokens that are told with each reply."""

    def __post_init__(self) -> None:
        bounded(self, "max_tokens", least=1)
        bounded(self, "temperature", least=0)
        bounded(self, "top_p", above=0, most=1)
        bounded(self, "top_logprobs", least=0, most=MOST_LOGPROBS)
        seeded(self, "seed")
        stop_strings(self.stop)

    def of_sample(self, sample: int) -> Decoding:
        """The same for another sample number: its seed follows from both; sample 0 has the seed itself."""
        if not sample:
            return self
        drawn = hashlib.sha256(f"{self.seed}/{sample}".encode()).digest()
        changed = {"seed": int.from_bytes(drawn[:4]) >> 1}
        return Decoding(**{**self.__dict__, **changed})


class Candidate(NamedTuple):
    """A token that the reply might have begun with, as text, and log p(token | question) at temperature 1."""

    token: str
    logprob: float


class Reply(NamedTuple):
    """What was answered.

    finish: "stop" where the model ended it or a text of `Decoding.stop` was reached, "length" where it was cut; servers
    may say something else. logprobs: the most probable first tokens, the best first, where they were asked for and the
    answerer tells them; several may be the same text.
    """

    text: str
    finish: str
    logprobs: tuple[Candidate, ...] | None = None


class Failure(NamedTuple):
    """A question that has no reply. reason: a few words to be counted by; detail: one line."""

    reason: str
    detail: str = ""


Outcome = Reply | Failure


class Answerer(Protocol):
    """Whoever answers prompts.

    identity: what its replies are kept under; two answerers that may reply otherwise have different ones.
    together: whether all hosts that share a mesh have to ask it in step; else the first one asks for all.
    """

    @property
    def identity(self) -> str: ...

    @property
    def together(self) -> bool: ...

    def fits(self, question: Question, decoding: Decoding) -> bool:
        """Whether the question and a reply of the greatest length have room in the model's window."""
        ...

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[tuple[int, Outcome]]:
        """Every question's number with its outcome, once each, in any order, as they come.

        Raises:
          InputError: what concerns all questions, such as a server that refuses the key.
        """
        ...
