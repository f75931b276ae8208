"""A reward model from pairs: Bradley and Terry's loss on the scores of two answers (arXiv 2203.02155).

    python experiments/reward_model.py                                     # a miniature judge, a CPU, minutes
    python experiments/reward_model.py --preset llama3-8b --model FOLDER --data pairs.jsonl --out runs/judge
    python experiments/wrpo.py --reward-model runs/reward_model/model      # then every experiment can be judged by it

Data: {"prompt", "chosen", "rejected"} with texts or messages. Without --data, answers about the zoo's plants, of which
the chosen one has more facts right. A language model gets a fresh head of one score; a reward model is trained on.

Hardware: `tiny` 2 CPU cores. Result: metrics.jsonl, report.md with the loss and the share of held-out pairs that are
ranked rightly, model/, a sequence-classification folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split, split_sizes
from fusion_jax.data.records import OnBad
from fusion_jax.jsonl import Record
from fusion_jax.options import AnyModel, File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Training
from fusion_jax.rewards.reward_data import reward_examples
from fusion_jax.rewards.reward_model import as_reward_model
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.page import RunSettings, conduct
from fusion_jax.runs.provenance import loss_sentence
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import RewardSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import drafts, plants


@dataclass(frozen=True)
class Settings(RunSettings):
    """A model and pairs to train it on."""

    basic: ClassVar = (
        "model", "data", "out", "resume", "loss.center", "max_length", "held_out", "on_bad", "train.epochs",
        "train.batch_size", "train.micro_batches", "train.optimizer.learning_rate", "train.seed",
    )  # fmt: skip

    out: Folder = "runs/reward_model"
    model: AnyModel = "zoo:plants-editor"
    """Language model or reward model to train: a Hugging Face folder, or zoo:NAME."""
    data: File = ""
    """Pairs (prompt, chosen, rejected); without, answers about the zoo's plants."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    held_out: float = 0.1
    """Share of the pairs that is kept for evaluation."""
    max_length: int = 2048
    """Tokens of a conversation; pairs with a longer one are left out and counted."""
    zoo_pairs: int = 20_000
    """Pairs about the zoo's plants."""
    loss: RewardSettings = RewardSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        bounded(self, "held_out", least=0, below=1)
        bounded(self, "max_length", least=2)
        bounded(self, "zoo_pairs", least=1)


PRESETS = {
    "tiny": Settings(
        max_length=128,
        held_out=0.02,
        train=TrainSettings(
            OptimizerSettings(learning_rate=2e-3), batch_size=64, micro_batches=1, log_every=5, eval_every=100,
            checkpoint_every=100, remat="dots",
        ),
    ),
    "llama3-8b": Settings(train=TrainSettings(OptimizerSettings(learning_rate=2e-6), batch_size=128, micro_batches=8)),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "reward model", s, PRESETS, tune, parts)


def tune(s: Settings, desk: Desk) -> None:
    """A head for the model, training on pairs, model and report."""
    model = as_reward_model(desk.load(s.model, s.train), s.train.seed)
    records = load_records(s.data) if s.data else of_plants(s)
    rows = desk.rows("pairs", records, "pair", file=s.data or None, on_bad=s.on_bad)
    held, train = split(rows, s.held_out, s.train.seed)
    most = min(s.max_length, model.config.max_positions)
    stage = Stage(
        "pairs", "--train", s.train, TextSettings(), read=lambda rows: reward_examples(rows, model.tokenizer, most)
    )
    desk.tune(stage, model, objectives.rewards(s.loss), train, held)
    report(s, desk)


def report(s: Settings, desk: Desk) -> None:
    """The curves, their ends, and how well held-out pairs are ranked."""
    final = desk.curves("loss", "eval_loss", "eval_rewards/margins", "eval_rewards/accuracies")
    used, held = desk.counts["pairs"]["used"], desk.counts["pairs"]["held out"]
    result = loss_sentence(final, used)
    if ranked := final.get("eval_rewards/accuracies"):
        result = f"{100 * ranked[1][-1]:.1f} % of {held} held-out pairs are ranked rightly, after training on {used}."
    desk.report_tuning("reward", result, final)


def of_plants(s: Settings) -> list[Record]:
    """Pairs of answers about plants, on none of which models are tested."""
    prompts = plants.prompts(s.zoo_pairs, split="train", seed=s.train.seed, repeat=True)
    return drafts.graded(prompts, seed=s.train.seed)


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    training = Training(
        "reward model", s.model, objectives.rewards(s.loss), s.train, s.max_length, named="--model",
        length="--max-length", records=lambda pairs: split_sizes(pairs, s.held_out)[1],
    )  # fmt: skip
    return [training]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
