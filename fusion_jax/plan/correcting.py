"""Parts of a run that trains correctors of errors, encoder-decoders or decoders: their trainings, alone and beside
alignment models, and how they write."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from fusion_jax.data.batches import bucket_list
from fusion_jax.data.order import num_steps
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import check_folder
from fusion_jax.models.lora import check_lora
from fusion_jax.models.parameters import check_heads
from fusion_jax.plan import fits
from fusion_jax.plan.flops import parameter_count
from fusion_jax.plan.parts import every
from fusion_jax.plan.programs import DistilStep, Start, TrainStep
from fusion_jax.plan.programs.program import BYTES
from fusion_jax.plan.requests import Request
from fusion_jax.plan.runs import (
    Ask,
    Planned,
    computed_in,
    generation,
    micro_batches,
    model_values,
    public_of,
    row_lengths,
    train_mesh,
)
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class Texts:
    """Tokens of the longest example.

    read: what an encoder reads; target: what its decoder predicts; beside: what the encoder of each of two alignment
    models reads, 0: there are none. cutoff: of a decoder's whole row, an alignment model's too.
    """

    read: int
    target: int
    cutoff: int
    beside: int = 0

    def check(self, config: ModelConfig, model: str, option: Literal["--lengths", "--cutoff"]) -> None:
        """Refuse what a model has no positions for."""
        longest = max(self.read, self.target, self.beside) if config.encoder else self.cutoff - 1
        if longest > config.max_positions:
            problem = f"texts of {longest} tokens are more than the model's {config.max_positions} positions"
            raise InputError(problem, file=model, field=option, cure=f"Set it to {config.max_positions} or less")


@dataclass(frozen=True)
class Corrector:
    """A stage that trains a corrector, or an alignment model.

    model: the folder, which the option `named` gives; random: whether it is a miniature that the run itself makes,
    which has nothing to fit. option: of the stage's settings. start: dtype of the weights that it starts from; others:
    of the further models of its size that the run holds meanwhile. records: how many of the run's it reads.
    """

    title: str
    model: str
    settings: TrainSettings
    texts: Texts
    option: str
    start: Start = "bfloat16"
    others: tuple[Start, ...] = ()
    records: Callable[[int], int] = every
    random: bool = False
    named: str = "--model"

    def check(self) -> None:
        folders = [] if self.random else [model_path(self.model, self.named)]
        fits.check_training(self.settings, self.option, *folders, encoders=True)
        for folder in folders:
            _check_texts(self.texts, check_folder(folder), self.model)

    def plan(self, ask: Ask) -> list[Planned]:
        if self.random and not public_of(self.model, ask):
            return []
        train, texts = self.settings, self.texts
        values, name = model_values(self.model, ask, self.named)
        config, mesh = config_from_hf(values), train_mesh(ask, train)
        check_heads(config, mesh[2], math.prod(mesh), f"{self.option}.mesh-tensor", model=name)
        if train.lora is not None:
            check_lora(config, train.lora, f"{self.option}.lora")
        _check_texts(texts, config, name)
        micro, notes = micro_batches(train, mesh, self.option)
        prompt, tokens = _padded(texts, config, ask.prompt)
        attention, dtype = computed_in(train)
        step = TrainStep(
            "sft", train.batch_size // micro, tokens, prompt, micro, remat=train.remat, attention=attention,
            dtype=dtype, start=self.start, lora=train.lora, dropout=train.dropout, source_dropout=train.source_dropout,
            teachers=sum(BYTES[kind] for kind in self.others) * parameter_count(config),
        )  # fmt: skip
        beside = texts.beside if config.encoder else texts.beside and texts.cutoff
        records = self.records(ask.rows)
        steps = num_steps(records, train.batch_size, train.epochs) if records else 0
        program = DistilStep(step, beside) if beside else step
        notes = (f"model: {name}", *_notes(step, beside, config), *notes)
        return [Planned(self.title, Request(ask.slice, values, program, mesh), steps, notes)]


def _check_texts(texts: Texts, config: ModelConfig, model: str) -> None:
    texts.check(config, model, "--lengths" if config.encoder else "--cutoff")


def _padded(texts: Texts, config: ModelConfig, prompt: int) -> tuple[int, int]:
    """What an encoder reads and its decoder predicts, or a decoder's prompt and the rest of its row, as batches of the
    longest have them."""
    if not config.encoder:
        return row_lengths(texts.cutoff, prompt)
    return bucket_list(texts.read)[-1], bucket_list(texts.target)[-1]


def _notes(step: TrainStep, beside: int, config: ModelConfig) -> tuple[str, ...]:
    if config.encoder:
        text = f"every example: {step.prompt} tokens that the encoder reads and {step.tokens} that the decoder predicts"
    elif step.prompt:
        text = f"every example: a prompt of {step.prompt} tokens and {step.tokens} more"
    else:
        text = f"every example: a row of {step.tokens} tokens (--plan-prompt N: how many are its prompt)"
    longest = f"{text}, the settings' longest: an upper bound"
    if not beside:
        return (longest,)
    whose = "the encoder of each alignment model reads" if config.encoder else "each alignment model reads, in all,"
    return (longest, f"{whose} {beside} tokens; both models are whole weights in {step.dtype} in the program")


@dataclass(frozen=True)
class Writing:
    """Corrections that a trained model writes; `read` and `cutoff` of the texts are taken as the length of the prompts.
    records, random, named: as of `Corrector`."""

    title: str
    model: str
    sample: SampleSettings
    texts: Texts
    records: Callable[[int], int] = every
    random: bool = False
    named: str = "--model"

    def check(self) -> None:
        """A folder that its training has checked; prompts are checked when they are written behind."""

    def plan(self, ask: Ask) -> list[Planned]:
        if self.random and not public_of(self.model, ask):
            return []
        config = config_from_hf(model_values(self.model, ask, self.named)[0])
        prompt = self.texts.read if config.encoder else self.texts.cutoff
        asked = replace(ask, rows=self.records(ask.rows))
        return generation(self.title, self.model, self.sample, asked, prompt=prompt, option=self.named, kept="float32")
