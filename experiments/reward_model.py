"""A reward model from pairs: Bradley and Terry's loss on the scores of two answers (arXiv 2203.02155).

    python experiments/reward_model.py                                     # a miniature judge, a CPU, minutes
    python experiments/reward_model.py --preset llama3-8b --model FOLDER --data pairs.jsonl --out runs/judge
    python experiments/wrpo.py --reward-model runs/reward_model/model      # then it gives the rewards of any fusion

Data: {"prompt", "chosen", "rejected"} with texts or messages. Without --data, right answers about the zoo's plants
against wrong ones. A language model gets a fresh head of one score; a reward model is trained on. With
--sft-first the model learns to write the chosen answers before it judges, as the one of the paper did: a judge has to
know what a good answer says.

Hardware and time: `tiny` 2 CPU cores, 6 to 7 CPU minutes; `llama3-8b` is for a TPU slice (not timed yet).
Result: metrics.jsonl, report.md with the loss and the share of held-out pairs that are ranked rightly, model/, a
sequence-classification folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from fusion_jax.data.batches import Example
from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split_sizes, split_together
from fusion_jax.data.records import OnBad, Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model, check_folder
from fusion_jax.options import AnyModel, File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Training
from fusion_jax.rewards.reward_data import reward_examples
from fusion_jax.rewards.reward_model import as_reward_model
from fusion_jax.runs.checks import check_best_of
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.page import RunSettings, conduct
from fusion_jax.runs.presets import tiny_training
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import RewardSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import drafts, model_path, plants


@dataclass(frozen=True)
class Settings(RunSettings):
    """A model and pairs to train it on."""

    basic: ClassVar = (
        "model", "data", "out", "resume", "sft_first", "loss.center", "max_length", "held_out", "on_bad",
        "train.epochs", "train.batch_size", "train.micro_batches", "train.optimizer.learning_rate", "train.seed",
    )  # fmt: skip

    out: Folder = "runs/reward_model"
    model: AnyModel = "zoo:plants-editor"
    """Language model or reward model to train: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    data: File = ""
    """Pairs (prompt, chosen, rejected); without, answers about the zoo's plants."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    held_out: float = 0.1
    """Share of the conversations whose pairs are kept for evaluation."""
    max_length: int = 2048
    """Tokens of a conversation; pairs with a longer one are left out and counted."""
    sft_first: bool = False
    """Whether a language model is fine-tuned on the chosen answers first."""
    zoo_pairs: int = 20_000
    """Pairs about the zoo's plants."""
    loss: RewardSettings = RewardSettings()
    sft: TrainSettings = TrainSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        bounded(self, "held_out", least=0, below=1)
        bounded(self, "max_length", least=2)
        bounded(self, "zoo_pairs", least=1)
        check_best_of(self.sft, self.train, "train", self.held_out)


TINY = Settings(max_length=128, held_out=0.02, sft_first=True)
PRESETS = {
    "tiny": replace(TINY, sft=tiny_training(1, 2e-3, batch_size=64), train=tiny_training(2, 1e-3, batch_size=64)),
    "llama3-8b": Settings(train=TrainSettings(OptimizerSettings(learning_rate=2e-6), batch_size=128, micro_batches=8)),
}


def main(s: Settings) -> None:
    conduct(__file__, "reward model", s, PRESETS, tune, parts, check=check)


def tune(s: Settings, desk: Desk) -> None:
    """SFT where it is asked for, a head for the model, training on pairs, model and report."""
    model = desk.load(s.model, s.train)
    held, train = pairs_of(s, desk)
    stage = Stage("pairs", "--train", s.train, TextSettings(), read=partial(conversations, s))
    data, held_data = desk.data(stage, model, train), desk.data(stage, model, held, held=True) if held else None
    if s.sft_first:
        model = taught(s, desk, model, train)
    judge = as_reward_model(model, s.train.seed)
    desk.tune_on(stage, judge, objectives.rewards(s.loss), data, held_data)
    ranked = "{share:.1f} % [{low:.1f}, {high:.1f}] of {held} held-out pairs are ranked rightly"
    desk.report_pairs("reward", f"{ranked}, after training on {{used}}.")


def pairs_of(s: Settings, desk: Desk) -> tuple[list[Row], list[Row]]:
    """Pairs to evaluate on and to train on; all pairs of a conversation, or of a plant's side, are together."""
    if not s.data:
        validation, training = split_sizes(s.zoo_pairs, s.held_out)
        held = of_plants(s, desk, "validation", validation) if validation else []
        return held, of_plants(s, desk, "train", training)
    rows = desk.rows("pairs", load_records(s.data), "pair", file=s.data, on_bad=s.on_bad)
    return split_together(rows, [str(row.messages) for row in rows], s.held_out, s.train.seed)


def of_plants(s: Settings, desk: Desk, side: str, count: int) -> list[Row]:
    """Pairs of answers about plants of a side; on none of these models are tested."""
    prompts = plants.prompts(count, split=side, seed=s.train.seed, repeat=True)
    return desk.rows("pairs", drafts.graded(prompts, seed=s.train.seed), "pair", file=None)


def conversations(s: Settings, rows: Sequence[Row], model: Model) -> tuple[list[Example], Counter[str]]:
    return reward_examples(rows, model.tokenizer, min(s.max_length, model.config.max_positions))


def taught(s: Settings, desk: Desk, model: Model, pairs: Sequence[Row]) -> Model:
    """The model after SFT on the chosen answers."""
    text = TextSettings(tokens=TokeniseSettings(s.max_length, s.max_length - 1, eos="if_missing"))
    rows = [Row(pair.name, pair.messages, pair.responses[:1]) for pair in pairs]
    return desk.train(Stage("sft", "--sft", s.sft, text), model, objectives.sft(), rows)


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    length, objective = s.max_length, objectives.rewards(s.loss)
    judge = Training("reward model", s.model, objective, s.train, length, named="--model", length="--max-length")
    judge = replace(judge, records=lambda pairs: split_sizes(pairs, s.held_out)[1])
    sft = replace(judge, title="SFT", objective=objectives.sft(), settings=s.sft, option="--sft")
    return [sft, replace(judge, start="float32")] if s.sft_first else [judge]


def check(s: Settings) -> None:
    """Refuse to teach a reward model to write."""
    if s.sft_first and check_folder(model_path(s.model)).head.labels:
        problem = "is for language models, the model has a reward model's head"
        raise InputError(problem, field="--sft-first", cure="Set it to False, or give a language model")


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
