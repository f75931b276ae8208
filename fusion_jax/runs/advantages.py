"""Which source is best on each instruction, in both modes: right answers read, own answers written, judges that vote.

Stages S0 to S4 of ProFuser (arXiv 2408.04998, section 3 of its specification); each is a file of records or a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fusion_jax.align.settings import AlignSettings
from fusion_jax.data.records import OnBad
from fusion_jax.errors import InputError
from fusion_jax.models.int8 import Weights
from fusion_jax.options import Called, File, ModelKind, ModelPath, Models, OneOf
from fusion_jax.plan.parts import Sampling, Teaching
from fusion_jax.rewards.verifiers import VERIFIERS
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.page import JudgedSettings
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.teachers.advantage import ByReading, ByWriting
from fusion_jax.teachers.blocks import LogProbs
from fusion_jax.teachers.settings import FusionSettings, Teachers
from fusion_jax.train.objectives import ProfuserSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo.problems import Problems

Judges = Annotated[tuple[str, ...], Called("MODEL"), ModelKind(1)]
Rule = Annotated[str, OneOf(tuple(VERIFIERS))]
CeNorm = Literal["token", "byte"]
PREFIXES = AlignSettings(
    tokens="prefix", vocabulary="mined", duplicates="logsumexp", fallback="drop", least_mass=0.5
)  # fmt: skip


@dataclass(frozen=True)
class StageSettings(ProfuserSettings):
    """ProFuser's loss, and how long its two stages are."""

    first_epochs: float = 1.0
    """Epochs of the first stage, over the rows of its mode."""
    both_epochs: float = 2.0
    """Epochs of the second stage, over instructions with a row of either mode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "first_epochs", "both_epochs", least=0)
        if not self.first_epochs + self.both_epochs:
            raise InputError("there is no step", field="both_epochs", cure="Give one of the two stages epochs")

    @property
    def rows(self) -> float:
        """Rows of an instruction that a run learns, over both stages."""
        return self.first_epochs + 2 * self.both_epochs


@dataclass(frozen=True)
class AdvantageSettings(EvaluatedSettings, JudgedSettings):
    """A target, sources, instructions with right answers, and who judges."""

    target: ModelPath = "zoo:plants-target"
    """Model to improve, which is itself a source: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    sources: Models = ("zoo:plants-llama", "zoo:plants-qwen", "zoo:plants-gemma")
    """Models to learn from: folders, or zoo:NAME."""
    source_weights: Weights = "stored"
    """How the layers' matrices of the sources are held: as their files have them (stored), or rounded to int8."""
    instructions: File = ""
    """JSON lines with "prompt" and "response", the right answer, and for a verifier "answer"; without, the zoo's
    problems."""
    held_out_instructions: File = ""
    """Instructions on whose right answers bits per byte are measured; without, the zoo's."""
    eval_samples: int = 0
    """Test answers sampled to each prompt with temperature 0.8, for their mean reward; 0: the greedy one only."""
    problems: Problems = "plants"
    """The zoo's problems, which stand in for instructions that are not given. Its judges know plants; skills need
    --judges none --verifiers answer."""
    zoo_instructions: int = 640
    """The zoo's problems of each skill to learn from; plants are one skill."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    judges: Judges = ("zoo:plants-judge-llama", "zoo:plants-judge-qwen", "zoo:plants-judge-gemma")
    """Reward models that vote on the sources' own answers."""
    verifiers: tuple[Rule, ...] = ()
    """Rules that vote beside the judges."""
    by_reading: ByReading = "min_ce"
    """Whose distributions teach the right answer: of the source that it surprises least (min_ce), most, or any."""
    ce_norm: CeNorm = "token"
    """What a source's surprise is divided by: its own tokens, as published, or the answer's bytes."""
    by_writing: ByWriting = "vote"
    """Whose own answer teaches: the judges' vote, their mean z-score, the first judge alone, or any."""
    longest: float = 0.0
    """An answer that is longer than this many times the median of its prompt's may not win; 0: any length may."""
    max_length: int = 2048
    """Tokens that models read; instructions that are longer with their answer are left out and counted."""
    k: int = 10
    """Entries that are kept of a source's distribution."""
    log_probs: LogProbs = "float16"
    """How log-probs of sources are kept: to the bit of float16, or in 8 bits (docs/stores.md)."""
    teacher_batch: int = 8
    """Texts at once while sources read."""
    teachers: Teachers = "stored"
    """Sources read the texts once and their entries are kept (stored), or they all stay in memory and read each batch
    while the target trains (live): on its mesh, or on devices of their own (train.mesh_spare)."""
    teacher_temperature: float = 1.0
    """Temperature of the sources' distributions."""
    least_coverage: float = 0.6
    """Share of a source's tokens that has to reach the target's; less is an error."""
    sample: SampleSettings = SampleSettings(temperature=0.7, top_p=0.9, num_samples=1, max_new_tokens=512)
    align: AlignSettings = PREFIXES
    loss: StageSettings = StageSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "zoo_instructions", "k", "teacher_batch", least=1)
        bounded(self, "max_length", least=2)
        bounded(self, "eval_samples", least=0)
        if self.longest and self.longest < 1:
            cure = "Give 1 or more, or 0 for any length"
            raise InputError(f"{self.longest:g} would leave out half of the answers", field="longest", cure=cure)
        bounded(self, "least_coverage", least=0, most=1)
        bounded(self, "teacher_temperature", above=0)
        if self.sample.num_samples != 1:
            cure = "Leave it at 1"
            raise InputError("a source answers an instruction once", field="sample.num_samples", cure=cure)
        if not (self.judges or self.verifiers):
            raise InputError("nobody votes", field="judges", cure="Give reward models, or --verifiers")

        _ = self.fusion  # has the ranges of the rest

    @property
    def fusion(self) -> FusionSettings:
        """How a source's rows become targets."""
        loss = self.loss
        return FusionSettings(
            kind=loss.kind, tail=loss.tail, jsd_beta=loss.jsd_beta, temperature=self.teacher_temperature
        )


def reading_parts(s: AdvantageSettings) -> list[Teaching]:
    """The models that read, of which the target is planned, and live ones all."""
    return [
        Teaching(
            f"reading {model}", model, s.train, s.teacher_batch, s.max_length, s.k, named=option,
            planned=model == s.target or s.teachers == "live", weights=weights,
        )
        for option, model, weights in _models(s)
    ]  # fmt: skip


def writing_parts(s: AdvantageSettings) -> list[Sampling]:
    """The models that write, of which the target is planned."""
    return [
        Sampling(f"sampling {model}", model, s.sample, named=option, planned=model == s.target, weights=weights)
        for option, model, weights in _models(s)
    ]


def _models(s: AdvantageSettings) -> list[tuple[str, str, Weights]]:
    """The option that names each model, the model, and how it is held."""
    return [("--target", s.target, "stored"), *(("--sources", source, s.source_weights) for source in s.sources)]
