"""What a run computes, listed once by its experiment: looked through before the run starts, compiled by `--plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import check_folder
from fusion_jax.models.int8 import Weights
from fusion_jax.models.parameters import check_heads
from fusion_jax.plan import fits
from fusion_jax.plan.aligning import aligning
from fusion_jax.plan.programs import Start
from fusion_jax.plan.runs import Ask, Planned, generation, merging, scoring, teacher, training
from fusion_jax.plan.searching import searching
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sharding import tensor_shards
from fusion_jax.train.mktod import MktodSettings
from fusion_jax.train.objective import Objective
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.zoo import model_path

Packing = Literal["none", "official", "reset"]


def every(records: int) -> int:
    """All records of the run."""
    return records


class Part(Protocol):
    """A part of a run."""

    def check(self) -> None:
        """Refuse what would fail when the run comes to it.

        Raises:
          InputError: the mesh, the heads or the lengths do not fit; names the option.
        """

    def plan(self, ask: Ask) -> list[Planned]:
        """Its programs on a slice; none for a part that other programs stand for."""


@dataclass(frozen=True)
class Training:
    """A stage that trains. model: the folder, which the option `named` gives; option: of the stage's settings.

    tokens: of the longest row, which the option `length` sets. records: how many of the run's records the stage reads.
    start: dtype of the weights that it starts from, see `plan.runs.training`. k: entries of a target. teachers: that
    are live.
    """

    title: str
    model: str
    objective: Objective
    settings: TrainSettings
    tokens: int
    option: str = "--train"
    named: str = "--target"
    length: str = "--text.tokens.max-length"
    records: Callable[[int], int] = every
    packing: Packing = "none"
    start: Start = "bfloat16"
    k: int = 10
    teachers: Sequence[Teaching] = ()

    def check(self) -> None:
        folder = model_path(self.model, self.named)
        fits.check_training(self.settings, self.option, folder)
        if not self.objective.targets:  # texts with targets are cut to what every model reads
            fits.check_length(folder, self.tokens, self.length)

    def plan(self, ask: Ask) -> list[Planned]:
        return training(
            self.title, self.model, self.objective, self.settings, self.tokens, _reading(ask, self.records),
            option=self.named, settings=self.option, length=self.length, packing=self.packing, start=self.start,
            k=self.k, teachers=[(one.model, one.named, one.weights) for one in self.teachers],
        )  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """Responses of a model. records: as in `Training`. kept, weights: see `plan.runs.generation`. planned: whether
    `--plan` compiles it; a run has several alike."""

    title: str
    model: str
    settings: SampleSettings
    option: str = "--sample.mesh-tensor"
    named: str = "--target"
    records: Callable[[int], int] = every
    kept: Literal["", Start] = ""
    planned: bool = True
    weights: Weights = "stored"

    def check(self) -> None:
        fits.check_sampling(self.settings.mesh_tensor, self.option, model_path(self.model, self.named))

    def plan(self, ask: Ask) -> list[Planned]:
        if not self.planned:
            return []
        return generation(
            self.title, self.model, self.settings, _reading(ask, self.records), option=self.named,
            settings=self.option, kept=self.kept, weights=self.weights,
        )  # fmt: skip


@dataclass(frozen=True)
class Teaching:
    """A teacher that reads `rows` texts of `tokens` tokens at once. settings: of the training stage whose mesh it lies
    on, or None for all devices. planned, weights: as in `Sampling`."""

    title: str
    model: str
    settings: TrainSettings | None
    rows: int
    tokens: int
    k: int
    option: str = "--train"
    named: str = "--target"
    planned: bool = True
    weights: Weights = "stored"

    def check(self) -> None:
        if self.settings is not None:
            fits.check_training(self.settings, self.option, model_path(self.model, self.named))

    def plan(self, ask: Ask) -> list[Planned]:
        if not self.planned:
            return []
        return teacher(
            self.title, self.model, self.rows, self.tokens, self.k, ask, option=self.named, train=self.settings,
            settings=self.option, weights=self.weights,
        )  # fmt: skip


@dataclass(frozen=True)
class Scoring:
    """Log-probs of `rows` texts of an example under a model that did not write them, once. stage: the training whose
    mesh, batches, lengths and records they have. weights: as in `Sampling`."""

    title: str
    model: str
    rows: int
    stage: Training
    named: str = "--sources"
    weights: Weights = "stored"

    def check(self) -> None:
        fits.check_reading(self.stage.settings, self.stage.option, model_path(self.model, self.named))

    def plan(self, ask: Ask) -> list[Planned]:
        stage = self.stage
        return scoring(
            self.title, self.model, self.rows, stage.settings, stage.tokens, _reading(ask, stage.records),
            option=self.named, settings=stage.option, weights=self.weights,
        )  # fmt: skip


@dataclass(frozen=True)
class Rewarding:
    """A reward model that scores responses on the mesh of a training stage."""

    model: str
    settings: TrainSettings
    option: str = "--train"
    named: str = "--reward-model"

    def check(self) -> None:
        fits.check_reading(self.settings, self.option, model_path(self.model, self.named))

    def plan(self, ask: Ask) -> list[Planned]:
        return []


@dataclass(frozen=True)
class Searching:
    """A greedy search for blocks of a model, on the mesh of a training's settings.

    rows, states: at once; tokens: of a row. removals: how many the search makes of a model of so many layers.
    """

    model: str
    settings: TrainSettings
    rows: int
    states: int
    tokens: int
    removals: Callable[[ModelConfig], int]
    option: str = "--train"
    named: str = "--model"

    def check(self) -> None:
        fits.check_reading(self.settings, self.option, model_path(self.model, self.named))

    def plan(self, ask: Ask) -> list[Planned]:
        return searching(
            self.model, self.removals, self.rows, self.states, self.tokens, ask, train=self.settings,
            option=self.named, settings=self.option,
        )  # fmt: skip


@dataclass(frozen=True)
class Merging:
    """A merge of models of one architecture."""

    method: str
    models: int
    model: str

    def check(self) -> None:
        """The recipe is checked where it is read."""

    def plan(self, ask: Ask) -> list[Planned]:
        return merging(self.method, self.models, self.model, ask)


@dataclass(frozen=True)
class Aligning:
    """The joint training of a generator and its retriever (MK-TOD). generator, retriever: folders; "" where the preset
    names a public one. lengths: fields of `AlignStep`."""

    title: str
    generator: str
    retriever: str
    projection: int
    loss: MktodSettings
    settings: TrainSettings
    lengths: dict[str, int]
    option: str = "--joint"

    def check(self) -> None:
        compute = compute_for(self.settings, option=self.option)
        for folder in filter(None, (self.generator, self.retriever)):
            config = check_folder(model_path(folder))
            if compute.mesh is not None:
                check_heads(config, tensor_shards(compute.mesh), compute.mesh.size, f"{self.option}.mesh-tensor")
            longest = max(self.lengths["query"], self.lengths["queried"])
            if folder == self.retriever and config.positions.kind == "learned" and longest > config.max_positions:
                problem = f"{longest} tokens exceed the retriever's {config.max_positions} positions"
                raise InputError(problem, field="--lengths.query", cure=f"Set it to {config.max_positions} or less")

    def plan(self, ask: Ask) -> list[Planned]:
        return aligning(
            self.title, self.generator, self.retriever, self.projection, self.loss, self.settings, self.lengths, ask,
            settings=self.option,
        )  # fmt: skip


def check_all(parts: Sequence[Part]) -> None:
    """Refuse the first part that would fail when the run comes to it."""
    for part in parts:
        part.check()


def plan_of(parts: Sequence[Part], ask: Ask) -> list[Planned]:
    """The programs of all parts, in order."""
    return [program for part in parts for program in part.plan(ask)]


def _reading(ask: Ask, records: Callable[[int], int]) -> Ask:
    return replace(ask, rows=records(ask.rows))
