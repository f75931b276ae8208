"""Who answers in a run, and how its questions are asked: settings, and replies that are kept in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusion_jax.asking.ask import ask
from fusion_jax.asking.contract import Answerer, Decoding, Outcome, Question
from fusion_jax.asking.local import from_folder
from fusion_jax.asking.log import ReplyLog
from fusion_jax.asking.server import Server, Transport
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import Host
from fusion_jax.models.int8 import Weights
from fusion_jax.options import Folder, ModelPath
from fusion_jax.plan.parts import Part, Sampling
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import SeededSettings
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.zoo import model_path

REPLIES = "replies"


@dataclass(frozen=True)
class ShareSettings:
    """Processes that are not connected and share the questions of one --log."""

    count: int = 1
    """How many there are."""
    index: int = 0
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        bounded(self, "count", least=1)
        bounded(self, "index", least=0, most=self.count - 1)


@dataclass(frozen=True)
class AskingSettings(SeededSettings):
    """Who is asked: a model of ours, or a server."""

    model: ModelPath = "zoo:qwen-source"
    """Model to ask: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    server: str = ""
    """Address of a server that speaks the OpenAI chat API, to be asked instead of --model: http://HOST:PORT/v1."""
    served: str = ""
    """Name of the model on the server."""
    chat: bool = True
    """Whether --model is asked through its chat template, if it has one; else it continues the texts as they stand."""
    window: int = 0
    """Tokens of a question and its reply together; 0: the model's positions."""
    characters: int = 0
    """Characters of a question that fits on the server, whose tokens are not known; 0: all fit."""
    batch_size: int = 32
    """Questions at once, over all devices."""
    mesh_tensor: int = 0
    """Devices over which the model's heads are split; 0: as many as its key-value heads divide over."""
    weights: Weights = "stored"
    """How the layers' matrices are held: as in the files (stored), or rounded to int8."""
    log: Folder = ""
    """Folder of replies that several runs or processes share; without, the run keeps its own."""
    share: ShareSettings = ShareSettings()
    failed_again: bool = False
    """Whether questions that failed before are asked again."""
    transport: Transport = Transport()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "window", "characters", "mesh_tensor", least=0)
        bounded(self, "batch_size", least=1)

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
          InputError: a server without a model's name, or the other way round; no key where one is named; processes that
            share no log.
        """
        check_server(self.server, self.served, self.transport)
        if self.share.count > 1 and not self.log:
            cure = "Give one folder that all of them see"
            raise InputError("is missing, and processes share their replies there", field="log", cure=cure)

    @property
    def called(self) -> str:
        """What the answerer is called in tables."""
        return self.served or model_name(self.model)


def answerer_of(s: AskingSettings, desk: Desk) -> Answerer:
    """The server, or the model on all devices."""
    if s.server:
        return Server(s.server, s.served, s.transport, s.characters)
    with desk.run.phase("loading"):
        return from_folder(
            model_path(s.model, "--model"), name=model_name(s.model), chat=s.chat, window=s.window,
            batch_size=s.batch_size, mesh_tensor=s.mesh_tensor, weights=s.weights,
        )  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """Where replies are kept, and who else asks.

    folder: of the log; without, the run keeps its own. share: this process among those that share the log. patience:
    seconds without a new reply after which the others count as lost. failed_again: whether questions that failed before
    are asked again.
    """

    folder: Folder = ""
    share: Host = Host()
    patience: float = 1800.0
    failed_again: bool = False


def asked(
    desk: Desk,
    answerer: Answerer,
    questions: Sequence[Question],
    decoding: Decoding,
    what: str,
    *,
    kept: Kept = Kept(),
    sample: int = 0,
) -> list[Outcome]:
    """The outcome of every question; what came before a kill is not asked again.

    Args:
      what: the questions are, for the line of progress.
      sample: another number is another reply, where the temperature is not 0.
    """
    run = desk.run
    log = ReplyLog.of(kept.folder or run.file(REPLIES), kept.share.index)
    with log, run.console.status(f"  {what}") as status:

        def told(done: int, of: int) -> None:
            status.update(f"  {what}: {done} of {of} different questions")
            run.heartbeat(what, done, of)

        return ask(
            answerer, questions, decoding, log, sample=sample, share=kept.share, patience=kept.patience,
            failed_again=kept.failed_again, progress=told,
        )  # fmt: skip


def replies(
    s: AskingSettings, desk: Desk, answerer: Answerer, questions: Sequence[Question], decoding: Decoding, what: str
) -> list[Outcome]:
    """`asked` as the settings say, its time told in the report."""
    kept = Kept(s.log, Host(s.share.index, s.share.count), s.hosts.patience, s.failed_again)
    with desk.run.timed(f"{REPLIES}, {what}"):
        return asked(desk, answerer, questions, decoding, what, kept=kept)


def check_server(server: str, served: str, transport: Transport, option: str = "--") -> None:
    """Refuse a server without a model's name, the other way round, and a key that is named and not there.

    option: what stands before the names of these settings.
    """
    if bool(server) != bool(served):
        cure = f"Give {option}server ADDRESS {option}served NAME"
        raise InputError("is missing", field=f"{option}{'served' if server else 'server'}", cure=cure)
    if server:
        Server(server, served, transport)


def asking_parts(s: AskingSettings, decoding: Decoding, title: str) -> list[Part]:
    """What the run computes here: the model's replies; nothing where a server answers."""
    if s.server:
        return []
    how = SampleSettings(
        decoding.temperature, decoding.top_p, num_samples=1, max_new_tokens=decoding.max_tokens,
        batch_size=s.batch_size, mesh_tensor=s.mesh_tensor,
    )  # fmt: skip
    return [Sampling(title, s.model, how, "--mesh-tensor", "--model", weights=s.weights)]
