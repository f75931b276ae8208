"""Models that help a run: a helper that writes, a judge that grades. Each is a model of ours or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusion_jax.asking.contract import Answerer, Decoding, Outcome, Question
from fusion_jax.asking.local import from_folder
from fusion_jax.asking.server import Server, Transport
from fusion_jax.errors import InputError
from fusion_jax.options import ModelPath
from fusion_jax.runs.asking import Kept, asked, check_server
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.settings import bounded, seeded
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class HelperSettings:
    """Who is asked, and how replies are decoded."""

    model: ModelPath = ""
    """A model of ours to be asked, through its chat template: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    server: str = ""
    """Address of a server that speaks the OpenAI chat API, to be asked instead: http://HOST:PORT/v1."""
    served: str = ""
    """Name of the model on the server."""
    temperature: float = 0.0
    """Temperature of its replies; published: 1 of the helper, 0 of the judge."""
    max_tokens: int = 1024
    """Longest reply, in tokens."""
    seed: int = 0
    """Decides the replies, where the temperature is not 0."""
    batch_size: int = 32
    """Questions at once, of a model of ours."""
    transport: Transport = Transport()

    def __post_init__(self) -> None:
        bounded(self, "temperature", least=0)
        bounded(self, "max_tokens", "batch_size", least=1)
        seeded(self, "seed")

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.model or self.server)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_tokens, self.temperature, seed=self.seed)

    def check(self, option: str) -> None:
        """Refuse what does not go together. option: of these settings, for instance "--helper".

        Raises:
          InputError: a model and a server, a server without a name or the other way round, no key where one is named.
        """
        if self.model and self.server:
            raise InputError("stands beside a server", field=f"{option}.model", cure="Leave one of the two out")
        check_server(self.server, self.served, self.transport, f"{option}.")

    def answerer(self, desk: Desk, option: str) -> Answerer | None:
        """The server, or the model on all devices; None where neither is given."""
        if self.server:
            return Server(self.server, self.served, self.transport)
        if not self.model:
            return None
        with desk.run.phase("loading"):
            return from_folder(
                model_path(self.model, f"{option}.model"), name=model_name(self.model), batch_size=self.batch_size
            )


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
