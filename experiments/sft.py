"""Supervised fine-tuning: the prompt-masked form of the paper, or the official packed form that scores every token.

    python experiments/sft.py                                              # a miniature, a CPU, about a minute
    python experiments/sft.py --preset llama3-8b --model FOLDER --data sft.jsonl --out runs/sft

Data: {"prompt", "response"}, {"messages"}, or quadruples of the official schema (prompt and chosen[0] are used).
Hardware: `tiny` 2 CPU cores. Result: metrics.jsonl, report.md with the loss, model/.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad, parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.files import write_json
from fusion_jax.hosts import HostSettings, connect, on_first
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import load, save
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.runs import Ask, Planned, training
from fusion_jax.runs import fits, stages
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.plots import curves, training_figure
from fusion_jax.runs.provenance import Ran, loss_sentence
from fusion_jax.runs.provenance import write_report as write_page
from fusion_jax.settings import to_json
from fusion_jax.store.run_folder import RESULTS, RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, mixture


@dataclass(frozen=True)
class Settings:
    """A model and records to fine-tune it on."""

    basic: ClassVar = (
        "model", "data", "out", "resume", "train.epochs", "train.batch_size", "train.micro_batches",
        "train.optimizer.learning_rate", "train.seed", "text.tokens.max_length", "text.packing", "on_bad",
    )  # fmt: skip

    out: Folder = "runs/sft"
    """Folder of the run, which is made; it holds all stages, report.md and the model."""
    resume: bool = False
    """Continue the run that --out holds, if there is one: the same command with --resume can always be repeated."""
    hosts: HostSettings = HostSettings()
    model: ModelPath = "zoo:target"
    """Model to train: a Hugging Face folder, or zoo:NAME."""
    data: File = ""
    """Records with a prompt and a response, or messages; without, problems of the zoo's skills."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    text: TextSettings = TextSettings()
    train: TrainSettings = TrainSettings()


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
    connect(s.hosts)
    with open_run(s.out, to_json(s), resume=s.resume) as run:
        tune(s, run)
        run.finish()


def tune(s: Settings, run: RunFolder) -> None:
    """Fine-tune, save, report."""
    folder = model_path(s.model, "--model")
    fits.check_training(s.train, "--train", folder)
    fits.check_length(folder, s.text.tokens.max_length, "--text.tokens.max-length")
    model = load(folder, mesh=compute_for(s.train).mesh)
    if s.data:
        records = load_records(s.data)
    else:
        drawn = mixture(dict.fromkeys(SKILLS, 60), split="train", seed=s.train.seed)
        records = [{"prompt": r["prompt"], "response": r["answer"], "prompt_id": r["prompt_id"]} for r in drawn]
    rows, drops = parse_rows(records, "sft", file=s.data or None, on_bad=s.on_bad)
    examples, counts = make_examples(rows, model.tokenizer, s.text)
    stages.check_enough(run, {"records": drops + counts}, len(examples), s.train, "--train")
    packed = s.text.packing != "none"
    better = optimise(
        model, Data(examples, lambda i: f"block {i}" if packed else rows[i].name), objectives.sft(), s.train, run
    )
    run.made_once("model", lambda folder: save(better, folder))
    used = counts["documents"] or len(examples)
    on_first(lambda: write_report(s, run, {"records used": used, **drops, **+counts}))


def write_report(s: Settings, run: RunFolder, counts: dict[str, int]) -> None:
    """report.md and results.json with the loss."""
    losses = curves(run.path, ["loss"])
    final = {name: values[-1] for name, (_, values) in losses.items()}
    write_json(run.file(RESULTS), {"SFT": {name: [value] for name, value in final.items()}})
    found = {**counts, **{f"final {name}": f"{value:.4f}" for name, value in final.items()}}
    table = markdown_table([{"what": k, "value": v} for k, v in found.items()])
    picture = save_figure(training_figure({"SFT": run.path}), run.file("training.png"))
    write_page(run, "SFT", loss_sentence(losses, counts["records used"]), Ran(__file__, s, PRESETS), [picture, table])
    run.log(f"model: {run.file('model')}")


def plans(s: Settings, ask: Ask) -> list[Planned]:
    """What `--plan` compiles."""
    length, packing = s.text.tokens.max_length, s.text.packing
    return training("SFT", s.model, "sft", s.train, length, ask, option="--model", packing=packing)


if __name__ == "__main__":
    run_experiment(Settings, main, plans, presets=PRESETS, description=__doc__)
