"""Supervised fine-tuning: the prompt-masked form of the paper, or the official packed form that scores every token.

    python experiments/sft.py                                              # a miniature, a CPU, about a minute
    python experiments/sft.py --preset llama3-8b --model FOLDER --data sft.jsonl --out runs/sft

Data: {"prompt", "response"}, {"messages"}, or quadruples of the official schema (prompt and chosen[0] are used).

Hardware: `tiny` 2 CPU cores. Result: metrics.jsonl, report.md with the loss, with --held-out 0.1
that of held-out records too, model/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split, split_sizes
from fusion_jax.data.records import OnBad
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.jsonl import Record
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Training
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.page import RunSettings, conduct
from fusion_jax.runs.provenance import loss_sentence
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo.tasks import SKILLS, mixture


@dataclass(frozen=True)
class Settings(EvaluatedSettings, RunSettings):
    """A model and records to fine-tune it on."""

    basic: ClassVar = (
        "model", "data", "out", "resume", "train.epochs", "train.batch_size", "train.micro_batches",
        "train.optimizer.learning_rate", "train.seed", "text.tokens.max_length", "text.packing", "held_out",
        "on_bad",
    )  # fmt: skip

    out: Folder = "runs/sft"
    model: ModelPath = "zoo:target"
    """Model to train: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    data: File = ""
    """Records with a prompt and a response, or messages; without, problems of the zoo's skills."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    held_out: float = 0.0
    """Share of the records that is kept for evaluation."""
    text: TextSettings = TextSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        bounded(self, "held_out", least=0, below=1)


TINY = TrainSettings(
    optimizer=OptimizerSettings(learning_rate=5e-4), epochs=2.0, batch_size=16, micro_batches=1, log_every=1,
    checkpoint_every=50, remat="dots",
)  # fmt: skip
PRESETS = {
    "tiny": Settings(
        text=TextSettings(tokens=TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")), train=TINY
    ),
    "llama3-8b": Settings(
        text=TextSettings(packing="official", tokens=TokeniseSettings(truncation="official")),
        train=TrainSettings(optimizer=OptimizerSettings(learning_rate=7e-6), micro_batches=2),
    ),
}


def main(s: Settings) -> None:
    conduct(__file__, "SFT", s, PRESETS, tune, parts)


def tune(s: Settings, desk: Desk) -> None:
    """Fine-tune, save, report."""
    model = desk.load(s.model, s.train)
    records = load_records(s.data) if s.data else problems(s)
    rows = desk.rows("records", records, "sft", file=s.data or None, on_bad=s.on_bad)
    held, train = split(rows, s.held_out, s.train.seed)
    desk.tune(Stage("records", "--train", s.train, s.text), model, objectives.sft(), train, held)
    losses = desk.curves("loss", "eval_loss")
    desk.report_tuning("SFT", loss_sentence(losses, desk.counts["records"]["used"]), losses)


def problems(s: Settings) -> list[Record]:
    """Problems of the zoo's skills with their answers."""
    drawn = mixture(dict.fromkeys(SKILLS, 60), split="train", seed=s.train.seed)
    return [{"prompt": r["prompt"], "response": r["answer"], "prompt_id": r["prompt_id"]} for r in drawn]


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    length, packing = s.text.tokens.max_length, s.text.packing
    training = Training(
        "SFT", s.model, objectives.sft(), s.train, length, named="--model", packing=packing,
        records=lambda records: split_sizes(records, s.held_out)[1],
    )  # fmt: skip
    return [training]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
