"""Who answers in a run, and how its questions are asked: settings, and replies that are kept in the run's folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.asking.ask import Kept, ask
from fusion_jax.asking.contract import Answerer, Decoding, Outcome, Question
from fusion_jax.asking.local import from_folder
from fusion_jax.asking.log import ReplyLog
from fusion_jax.asking.server import Server, Transport
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import Host
from fusion_jax.models.int8 import Weights
from fusion_jax.options import Folder, ModelPath
from fusion_jax.paths import as_path
from fusion_jax.plan.parts import Part, Sampling
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.opening import finished
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
class AnswererSettings:
    """Who answers: a model of ours, or a server."""

    model: ModelPath = ""
    """A model of ours to be asked, through its chat template: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    server: str = ""
    """Address of a server that speaks the OpenAI chat API, to be asked instead of a model: http://HOST:PORT/v1."""
    served: str = ""
    """Name of the model on the server."""
    batch_size: int = 32
    """Questions at once, of a model of ours, over all devices."""
    transport: Transport = Transport()

    def __post_init__(self) -> None:
        bounded(self, "batch_size", least=1)

    def check_answerer(self, options: str = "--", *, one: bool = False) -> None:
        """Refuse what does not go together.

        Args:
          options: what stands before the names of these settings, for instance "--helper.".
          one: whether a model is refused beside a server, else it is passed over.

        Raises:
          InputError: a server without its model's name, or the other way round; no key where one is named.
        """
        if one and self.model and self.server:
            raise InputError("stands beside a server", field=f"{options}model", cure="Leave one of the two out")
        if bool(self.server) != bool(self.served):
            missing = "served" if self.server else "server"
            cure = f"Give {options}server ADDRESS {options}served NAME"
            raise InputError("is missing", field=f"{options}{missing}", cure=cure)
        if self.server:
            self._server(options)

    def answerer_of(self, desk: Desk, options: str = "--", *, characters: int = 0, **how: Any) -> Answerer:
        """The server, or the model on all devices.

        Args:
          options: as of `check_answerer`. characters: of a question that fits on the server. how: see
            `asking.local.from_folder`.
        """
        if self.server:
            return self._server(options, characters)
        with desk.run.phase("loading"):
            place, name = model_path(self.model, f"{options}model"), model_name(self.model)
            return from_folder(place, name=name, batch_size=self.batch_size, **how)

    def _server(self, options: str, characters: int = 0) -> Server:
        return Server(self.server, self.served, self.transport, characters, options)


@dataclass(frozen=True)
class AskingSettings(SeededSettings, AnswererSettings):
    """Who is asked, and with whom the replies are shared."""

    model: ModelPath = "zoo:qwen-source"
    """Model to ask: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    chat: bool = True
    """Whether --model is asked through its chat template, if it has one; else it continues the texts as they stand."""
    window: int = 0
    """Tokens of a question and its reply together; 0: the model's positions."""
    characters: int = 0
    """Characters of a question that fits on the server, whose tokens are not known; 0: all fit."""
    mesh_tensor: int = 0
    """Devices over which the model's heads are split; 0: as many as its key-value heads divide over."""
    weights: Weights = "stored"
    """How the layers' matrices are held: as in the files (stored), or rounded to int8."""
    log: Folder = ""
    """Folder of replies that several runs or processes share; without, the run keeps its own."""
    share: ShareSettings = ShareSettings()
    failed_again: bool = False
    """Whether questions that failed before are asked again."""

    def __post_init__(self) -> None:
        SeededSettings.__post_init__(self)
        AnswererSettings.__post_init__(self)
        bounded(self, "window", "characters", "mesh_tensor", least=0)

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
          InputError: as `check_answerer`; processes that share no log; a finished run whose failures are to be asked
            again.
        """
        self.check_answerer()
        if self.share.count > 1 and not self.log:
            cure = "Give one folder that all of them see"
            raise InputError("is missing, and processes share their replies there", field="log", cure=cure)
        if self.failed_again and self.resume and finished(as_path(self.out)):
            log = self.log or os.fspath(as_path(self.out) / REPLIES)
            cure = f"Start a new run with --log {log} --failed-again True and another --out"
            raise InputError("is finished, and stays as it is", file=self.out, field="--failed-again", cure=cure)

    @property
    def called(self) -> str:
        """What the answerer is called in tables."""
        return self.served or model_name(self.model)

    def answerer(self, desk: Desk) -> Answerer:
        """The server, or the model on all devices."""
        return self.answerer_of(
            desk, characters=self.characters, chat=self.chat, window=self.window, mesh_tensor=self.mesh_tensor,
            weights=self.weights,
        )  # fmt: skip


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
    """The outcome of every question; what came before a kill, or to another seed, is not asked again.

    Args:
      what: the questions are, for the line of progress.
      kept: without a log, the run keeps its own, for all seeds.
      sample: another number is another reply, where the temperature is not 0.
    """
    run = desk.run
    with kept.log or ReplyLog.of(desk.base.run.file(REPLIES)) as log, run.console.status(f"  {what}") as status:

        def told(done: int, of: int) -> None:
            status.update(f"  {what}: {done} of {of} different questions")
            run.heartbeat(what, done, of)

        own = dataclasses.replace(kept, log=log)
        return ask(answerer, questions, decoding, own, sample=sample, progress=told)


def outcomes_of(
    s: AskingSettings, desk: Desk, answerer: Answerer, questions: Sequence[Question], decoding: Decoding, what: str
) -> list[Outcome]:
    """`asked` as the settings say, its time told in the report."""
    log = ReplyLog.of(s.log, s.share.index) if s.log else None
    kept = Kept(log, Host(s.share.index, s.share.count), s.hosts.patience, s.failed_again)
    with desk.run.timed(f"{REPLIES}, {what}"):
        return asked(desk, answerer, questions, decoding, what, kept=kept)


def made_again(desk: Desk, name: str) -> None:
    """Have a file that is made of replies made again, since they may be others by now."""
    desk.run.on_first(lambda: desk.run.manifests.begin(desk.run.name(name)))


def asking_parts(s: AskingSettings, decoding: Decoding, title: str) -> list[Part]:
    """What the run computes here: the model's replies; nothing where a server answers."""
    if s.server:
        return []
    how = SampleSettings(
        decoding.temperature, decoding.top_p, num_samples=1, max_new_tokens=decoding.max_tokens,
        batch_size=s.batch_size, mesh_tensor=s.mesh_tensor,
    )  # fmt: skip
    return [Sampling(title, s.model, how, "--mesh-tensor", "--model", weights=s.weights)]
