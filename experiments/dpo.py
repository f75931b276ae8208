"""Pairwise preference losses: DPO, length-normalised DPO, IPO (sum or mean), SimPO, hinge.

    python experiments/dpo.py --data pairs.jsonl                           # a miniature target, a CPU
    python experiments/dpo.py --preset llama3-8b --model FOLDER --data pairs.jsonl --loss.loss simpo \\
        --loss.beta 10 --loss.gamma 1.0 --train.optimizer.learning-rate 6e-7 --out runs/simpo

Data: {"prompt", "chosen", "rejected"} with texts or messages, or quadruples (the target's own two responses are
used). Without --data the target's own samples on the zoo's problems become pairs, best against worst.
Result: metrics.jsonl, report.md with loss, rewards, margins and accuracies, model/.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.jsonl import Record
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split_indices
from fusion_jax.data.records import OnBad, parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.files import write_json
from fusion_jax.hosts import HostSettings, connect, on_first
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import Model, load, save
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.runs import Ask, Planned, training
from fusion_jax.rewards import select
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.runs import fits, stages
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.plots import curves, training_figure
from fusion_jax.runs.provenance import Ran, loss_sentence
from fusion_jax.runs.provenance import write_report as write_page
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.settings import bounded, to_json
from fusion_jax.store.run_folder import RESULTS, RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, mixture


@dataclass(frozen=True)
class Settings:
    """A model and pairs to train it on."""

    basic: ClassVar = (
        "model", "data", "out", "resume", "loss.loss", "loss.beta", "train.epochs", "train.batch_size",
        "train.micro_batches", "train.optimizer.learning_rate", "train.seed", "text.tokens.max_length", "held_out",
        "on_bad",
    )  # fmt: skip

    out: Folder = "runs/dpo"
    """Folder of the run, which is made; it holds all stages, report.md and the model."""
    resume: bool = False
    """Continue the run that --out holds, if there is one: the same command with --resume can always be repeated."""
    hosts: HostSettings = HostSettings()
    model: ModelPath = "zoo:target"
    """Model to train: a Hugging Face folder, or zoo:NAME."""
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
    connect(s.hosts)
    with open_run(s.out, to_json(s), resume=s.resume) as run:
        tune(s, run)
        run.finish()


def tune(s: Settings, run: RunFolder) -> None:
    """Pairs, training on them, model and report."""
    folder = model_path(s.model, "--model")
    fits.check_training(s.train, "--train", folder)
    fits.check_length(folder, s.text.tokens.max_length, "--text.tokens.max-length")
    model = load(folder, mesh=compute_for(s.train).mesh)
    records = load_records(s.data) if s.data else run.stage("pairs.jsonl", lambda: own_pairs(s, model, run))
    rows, drops = parse_rows(records, "pair", file=s.data or None, on_bad=s.on_bad)
    held, train = split_indices(len(rows), s.held_out, s.train.seed)
    rows, held_rows = [rows[i] for i in train], [rows[i] for i in held]
    examples, counts = make_examples(rows, model.tokenizer, s.text)
    validation, lost = make_examples(held_rows, model.tokenizer, s.text) if held_rows else ([], Counter[str]())
    stages.check_enough(run, {"pairs": drops + counts}, len(examples), s.train, "--train")
    better = optimise(
        model, Data(examples, lambda i: rows[i].name), objectives.pair(s.loss), s.train, run,
        held=Data(validation, lambda i: held_rows[i].name),
    )  # fmt: skip
    run.made_once("model", lambda folder: save(better, folder))
    found = drops + counts + Counter({"pairs trained on": len(examples), "pairs held out": len(validation)})
    found += Counter({f"held out: {what}": n for what, n in lost.items()})
    on_first(lambda: write_report(s, run, found))


def write_report(s: Settings, run: RunFolder, found: Counter[str]) -> None:
    """report.md with the curves, results.json with their ends."""
    loss = s.loss.loss
    final = curves(run.path, ["loss", "eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"])
    write_json(run.file(RESULTS), {loss: {name: [values[-1]] for name, (_, values) in final.items()}}, sort=False)
    table = markdown_table([{"what": k, "count": v} for k, v in found.items()])
    picture = save_figure(training_figure({loss: run.path}), run.file("training.png"))
    ranked = final.get("eval_rewards/accuracies")
    result = loss_sentence(final, found["pairs trained on"])
    if ranked:
        share, count = 100 * ranked[1][-1], found["pairs held out"]
        result = f"After {loss} training, {share:.1f} % of {count} held-out pairs are ranked rightly."
    write_page(run, loss, result, Ran(__file__, s, PRESETS), [picture, table])
    run.log(f"model: {run.file('model')}")


def own_pairs(s: Settings, model: Model, run: RunFolder) -> list[Record]:
    """The model's best against its worst sample on problems of the zoo's skills."""
    seed = s.train.seed
    prompts = mixture(dict.fromkeys(SKILLS, 60), split="train", seed=seed)
    how = SampleSettings(max_new_tokens=28, batch_size=64)
    samples = sample_responses(model, "own", prompts, how, seed=seed)
    drops = Counter[str]()
    best = select.best_and_worst(select.score_with(samples, verifier("graded")), drops)
    stages.check_enough(run, {"own samples": drops}, len(best), s.train, "--train")
    return [
        {"prompt_id": p, "prompt": a["prompt"], "chosen": a["response"], "rejected": b["response"]}
        for p, (a, b) in best.items()
    ]


def plans(s: Settings, ask: Ask) -> list[Planned]:
    """What `--plan` compiles."""
    length, reference = s.text.tokens.max_length, objectives.pair(s.loss).reference
    return training(s.loss.loss, s.model, "dpo", s.train, length, ask, option="--model", reference=reference)


if __name__ == "__main__":
    run_experiment(Settings, main, plans, presets=PRESETS, description=__doc__)
