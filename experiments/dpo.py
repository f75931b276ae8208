"""Pairwise preference losses: DPO, length-normalised DPO, IPO (sum or mean), SimPO, hinge.

    python experiments/dpo.py --data pairs.jsonl                           # a miniature target, a CPU
    python experiments/dpo.py --preset llama3-8b --model FOLDER --data pairs.jsonl --loss.loss simpo \\
        --loss.beta 10 --loss.gamma 1.0 --train.optimizer.learning-rate 6e-7 --out runs/simpo

Data: {"prompt", "chosen", "rejected"} with texts or messages, or quadruples (the target's own two responses are
used). Without --data the target's own samples on the zoo's problems become pairs, best against worst.

Result: metrics.jsonl, report.md with loss, rewards, margins and accuracies, model/.
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
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling, Training
from fusion_jax.rewards import select
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.evaluating import EvaluatedSettings
from fusion_jax.runs.page import RunSettings, conduct
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo.tasks import SKILLS, mixture


@dataclass(frozen=True)
class Settings(EvaluatedSettings, RunSettings):
    """A model and pairs to train it on."""

    basic: ClassVar = (
        "model", "data", "out", "resume", "loss.loss", "loss.beta", "train.epochs", "train.batch_size",
        "train.micro_batches", "train.optimizer.learning_rate", "train.seed", "text.tokens.max_length", "held_out",
        "on_bad",
    )  # fmt: skip

    out: Folder = "runs/dpo"
    model: ModelPath = "zoo:target"
    """Model to train: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    data: File = ""
    """Pairs (prompt, chosen, rejected) or quadruples; without, the model's own samples on the zoo's problems."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    held_out: float = 0.1
    """Share of the pairs that is kept for evaluation."""
    loss: PairSettings = PairSettings()
    text: TextSettings = TextSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        bounded(self, "held_out", least=0, below=1)


OWN_SAMPLES = SampleSettings(max_new_tokens=28, batch_size=64)
PAIR_TOKENS = TokeniseSettings(bos="if_missing", truncation="official")
PRESETS = {
    "tiny": Settings(
        loss=PairSettings(beta=0.1),
        text=TextSettings(tokens=TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")),
        train=TrainSettings(
            optimizer=OptimizerSettings(learning_rate=1e-4), batch_size=16, micro_batches=1, log_every=1, eval_every=10,
            checkpoint_every=50, remat="dots",
        ),
    ),
    "llama3-8b": Settings(text=TextSettings(tokens=PAIR_TOKENS), loss=PairSettings(beta=0.01)),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, s.loss.loss, s, PRESETS, tune, parts)


def tune(s: Settings, desk: Desk) -> None:
    """Pairs, training on them, model and report."""
    model = desk.load(s.model, s.train)
    records = load_records(s.data) if s.data else desk.records("pairs.jsonl", lambda: own_pairs(s, desk, model))
    rows = desk.rows("pairs", records, "pair", file=s.data or None, on_bad=s.on_bad)
    held, train = split(rows, s.held_out, s.train.seed)
    desk.tune(Stage("pairs", "--train", s.train, s.text), model, objectives.pair(s.loss), train, held)
    told = f"After {s.loss.loss} training, {{share:.1f}} % of {{held}} held-out pairs are ranked rightly."
    desk.report_pairs(s.loss.loss, told)


def own_pairs(s: Settings, desk: Desk, model: Model) -> list[Record]:
    """The model's best against its worst sample on problems of the zoo's skills."""
    prompts = mixture(dict.fromkeys(SKILLS, 60), split="train", seed=s.train.seed)
    samples = desk.sampled(model, "own", prompts, OWN_SAMPLES)
    best = select.best_and_worst(select.score_with(samples, verifier("graded")), desk.counter("own samples"))
    desk.check_enough(len(best), s.train, "--train")
    del desk.counts["own samples"]  # the report of a run that is resumed would not have them
    return [
        {"prompt_id": p, "prompt": a["prompt"], "chosen": a["response"], "rejected": b["response"]}
        for p, (a, b) in best.items()
    ]


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    training = Training(
        s.loss.loss, s.model, objectives.pair(s.loss), s.train, s.text.tokens.max_length, named="--model",
        records=lambda pairs: split_sizes(pairs, s.held_out)[1],
    )  # fmt: skip
    own = [] if s.data else [Sampling("sampling its pairs", s.model, OWN_SAMPLES, named="--model", kept="bfloat16")]
    return [training, *own]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
