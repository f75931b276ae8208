"""The rounds of SEFT at a desk: drafts, pseudo-labels, the policy trained on them, and what is measured of it all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fusion_jax.data.batches import Data
from fusion_jax.data.records import Row
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.evolving import (
    EvolutionSettings,
    Judge,
    anchors,
    best_rewarded,
    counted,
    drafted,
    first_drafts,
    mixed,
    pseudo_labels,
    rows_of,
)
from fusion_jax.runs.examining import Round, rewarded, round_of
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.reading import readable
from fusion_jax.runs.revising import Pair, Reviser
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.settings import TrainSettings

ON_PROMPTS = ("best-of-n", "distilled", "always-revise")
Label = Callable[[list[Record], int], list[Record]]
"""(drafts of a round, its number) -> the same prompts with what the policy shall learn."""


class PairBaseline(NamedTuple):
    """A baseline on the pairs: option and settings of its training, and the objective."""

    name: str
    option: str
    settings: TrainSettings
    objective: Objective


@dataclass(frozen=True)
class Rounds:
    """What the rounds of a run share. stage: how the policy trains, whatever its name; anchored: see `anchors`."""

    desk: Desk
    settings: EvolutionSettings
    stage: Stage
    tests: EvalSet
    target: Model
    prompts: Sequence[Record]
    judge: Judge
    anchored: Sequence[Record] = ()

    def anchored_by(self, reviser: Reviser) -> Rounds:
        """The same with the target's greedy answers to the first round's prompts that the reviser surely keeps, if
        the rounds mix in any."""
        if not self.settings.anchor:
            return self
        s, seed = self.settings, self.desk.seed
        made = functools.partial(anchors, reviser, self.target, s.shard(self.prompts, 1), s, seed)
        return dataclasses.replace(self, anchored=self.desk.records("anchors.jsonl", made))

    def revised_by(self, reviser: Reviser) -> Label:
        """What a reviser makes of drafts; one without labels revises every first draft."""
        s, seed = self.settings, self.desk.seed
        return lambda drafts, number: pseudo_labels(
            reviser, drafts, s.mode(number) if reviser.rules else "always", s.revisions, seed
        )

    def run(
        self, name: str, label: Label, *, writer: Model | None = None, samples: int = 0, compared: bool = False
    ) -> tuple[Model, list[Round]]:
        """All rounds, each with a folder `name`-N: its drafts, labels and model. The policy is judged after each round.

        Args:
          writer: of the drafts; None: the policy itself. samples: drafts of a prompt; 0: as the settings say.
          compared: these rounds are a baseline: without anchors, and judged at the end alone.

        Returns: the last policy, and what is measured of each round.
        """
        s, desk = self.settings, self.desk
        how = dataclasses.replace(s.drafts, num_samples=samples or s.drafts.num_samples)
        policy, said, told = self.target, list[Record](), list[Round]()
        for number in range(1, s.rounds + 1):
            stage = dataclasses.replace(self.stage, name=f"{name}-{number}")
            author = writer or (policy if s.on_policy else self.target)
            write = functools.partial(drafted, author, s.shard(self.prompts, number), how, desk.seed)
            drafts = desk.records(f"{stage.name}/drafts.jsonl", write)
            labels = desk.records(f"{stage.name}/labels.jsonl", functools.partial(label, drafts, number))
            counted(labels, desk.counter(stage.name))
            judged = functools.partial(rewarded, drafts, labels, self.judge)
            parts = [f"{stage.name}/drafts.jsonl", f"{stage.name}/labels.jsonl"]
            rewards = desk.run.stage(f"{stage.name}/rewards.jsonl", judged, made_from=parts, leaf=True)
            told.append(round_of(stage.name, drafts, labels, rewards))
            new = mixed(labels, () if compared else self.anchored, s.anchor, desk.seed + number)
            said = [*said, *new] if s.start_from == "target" else new
            policy = self._learnt(stage, self.target if s.start_from == "target" else policy, said)
            if not compared:
                desk.judge(stage.name, policy, self.tests)
        if compared:
            desk.judge(name, policy, self.tests)
        return policy, told

    def compared_on_pairs(self, baselines: Sequence[PairBaseline], pairs: Sequence[Pair]) -> None:
        """Baselines on the reviser's pairs."""
        for name, option, settings, objective in baselines:
            rows = [Row(p.name, p.messages, (p.chosen, p.rejected)[: len(objective.slots)]) for p in pairs]
            stage = Stage(name, option, settings, self.stage.text)
            self.desk.compared(name, stage, self.target, objective, rows, tests=self.tests)

    def compared(self, names: Sequence[str], base: Model, plain: Reviser) -> list[Round]:
        """Baselines on the same prompts, those of `ON_PROMPTS` that are named.

        best-of-n: of four drafts or more the best by reward. distilled: answers of `base`, the model that became the
        reviser. always-revise: every draft is revised, by `plain`.
        """
        told = list[Round]()
        if "best-of-n" in names:
            many = max(self.settings.drafts.num_samples, 4)
            told += self.run("best-of-n", lambda d, n: best_rewarded(d, self.judge), samples=many, compared=True)[1]
        if "distilled" in names:
            told += self.run("distilled", lambda d, n: first_drafts(d), writer=base, samples=1, compared=True)[1]
        if "always-revise" in names:
            told += self.run("always-revise", self.revised_by(plain), samples=1, compared=True)[1]
        return told

    def _learnt(self, stage: Stage, start: Model, records: Sequence[Record]) -> Model:
        """The policy after a round; as it was where the round's examples do not fill a batch."""
        rows = rows_of(records)
        examples, counts = readable(rows, start.tokenizer, stage.text)
        counts["used"] = len(examples)
        self.desk.counter(stage.name).update(counts)
        if len(examples) < stage.settings.batch_size:
            self.desk.run.log(f"{stage.name}: {len(examples)} examples do not fill a batch, the policy stays as it is")
            return start
        return self.desk.train_on(stage, start, objectives.sft(), Data(examples, lambda i: rows[i].name))
