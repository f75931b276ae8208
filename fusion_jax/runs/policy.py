"""The model that a fusion through preferences trains: by SFT, then on preferences, beside models to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.order import split, split_sizes
from fusion_jax.data.records import Row
from fusion_jax.models.folder import Model
from fusion_jax.runs.checks import check_best_of, model_name
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.sources import SourceSettings
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings

BASIC = (
    "target", "sources", "prompts", "test_prompts", "responses", "out", "resume", "seed", "seeds", "reward_model",
    "verifier", "accuracy", "sample.num_samples", "text.tokens.max_length", "sft_share", "sft.epochs",
    "sft.optimizer.learning_rate", "preference.epochs", "preference.batch_size",
    "preference.optimizer.learning_rate",
)  # fmt: skip
CONTINUED = "SFT-continued"


@dataclass(frozen=True)
class PreferenceSettings(SourceSettings):
    """Sources and a target, and how it is trained on their responses, first by SFT, then on preferences."""

    sft_share: float = 1 / 3
    """Share of the prompts for SFT; the others are for preferences."""
    held_out: float = 0.1
    """Share of the preferences that is kept for evaluation."""
    text: TextSettings = TextSettings()
    sft: TrainSettings = TrainSettings()
    preference: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "sft_share", "held_out", least=0, below=1)
        check_best_of(self.sft, self.preference, "preference", self.held_out)

    def trained_on(self, preferences: int) -> int:
        """How many of the preferences are not held out."""
        return split_sizes(preferences, self.held_out)[1]


@dataclass(frozen=True)
class Policy:
    """The target as it is or behind its SFT, and the trainings that start from it.

    after: how the names of models that start from it begin: "SFT-" behind SFT, else "".
    """

    settings: PreferenceSettings
    desk: Desk
    tests: EvalSet
    model: Model
    after: str = ""

    def tuned(self, lessons: Sequence[Row]) -> Policy:
        """The policy after SFT on these rows, judged; as it is without any."""
        if not lessons:
            return self
        s = self.settings
        model = self.desk.train(Stage("sft", "--sft", s.sft, s.text), self.model, objectives.sft(), lessons)
        self.desk.judge("SFT", model, self.tests)
        return replace(self, model=model, after="SFT-")

    def stage(self, name: str) -> Stage:
        """A training on preferences; packing is for SFT alone."""
        s = self.settings
        return Stage(name, "--preference", s.preference, replace(s.text, packing="none"))

    def check_enough(self, preferences: int) -> None:
        """Refuse so many preferences if those that are not held out do not fill a batch."""
        s = self.settings
        self.desk.check_enough(s.trained_on(preferences), s.preference, "--preference")

    def split(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Preferences to evaluate on and those to train on, if these are enough."""
        self.check_enough(len(rows))
        return split(rows, self.settings.held_out, self.settings.seed)

    def continued(self, rows: Sequence[Row]) -> None:
        """SFT on the first response of the rows, a quadruple's from a source, for as many epochs, to compare; not
        where they do not fill a batch."""
        s, there = self.settings, [row for row in rows if row.responses[0] is not None]
        first = [Row(row.name, row.messages, row.responses[:1]) for row in there]
        stage = replace(self.stage("continued"), settings=replace(s.preference, optimizer=s.sft.optimizer))
        if len(first) >= s.preference.batch_size:
            self.desk.compared(CONTINUED, stage, self.model, objectives.sft(), first, tests=self.tests)

    def compared_with_dpo(self, dpo: PairSettings, held: Sequence[Row], train: Sequence[Row]) -> None:
        """DPO on the last two responses of the same rows, of a quadruple the target's own, to compare."""
        held, train = ([Row(row.name, row.messages, row.responses[-2:]) for row in rows] for rows in (held, train))
        stage, objective = self.stage("dpo"), objectives.pair(dpo)
        self.desk.compared(f"{self.after}DPO", stage, self.model, objective, train, held, tests=self.tests)

    def result(self, name: str, stage: str, objective: Objective, held: Sequence[Row], train: Sequence[Row]) -> None:
        """The model that the run is for: trained on preferences, judged under `name`, exported."""
        fused = self.desk.train(self.stage(stage), self.model, objective, train, held)
        self.desk.judge(name, fused, self.tests)
        self.desk.export(fused, made_from=[f"{stage}/model"])

    def reported(self, stages: Sequence[str], *, what: str, parts: Sequence[str] = ()) -> Measures:
        """report.md, and what was measured of every model.

        Args:
          stages: names of the training stages, the last one that of the result. what: it is trained on, for a run in
            which nothing is judged.
        """
        used = self.desk.counts[stages[-1]]["used"]
        result = f"The model is trained on {used} {what}; without --test-prompts nothing is judged."
        sources = [model_name(source) for source in self.settings.sources]
        self.desk.report(stages, sources, target="Target", result=result, parts=parts)
        return self.desk.measures()
