"""Raise the miniature zoo: three sources of three architectures and tokenizers, and a smaller target.

    python experiments/zoo.py --out fusion_jax/zoo/models

Hardware: 2 CPU cores, under 2 GB. Time: about 15 minutes. Result: four Hugging Face folders (under 10 MB together)
and manifest.json with the command, the seed, the seconds, the accuracy of each model at each skill on held-out
problems, and the sha256 of every file. Each source is strong at some skills and weak at the others; the target is
mediocre at all.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.evals.accuracy import evaluate
from fusion_jax.files import write_json
from fusion_jax.models.folder import Model, load, save
from fusion_jax.models.parameters import init_params
from fusion_jax.options import Folder
from fusion_jax.paths import refuse_remote
from fusion_jax.runs.opening import open_run
from fusion_jax.settings import bounded, seeded, to_json
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo.specs import SPECS, ZooSpec
from fusion_jax.zoo.tasks import SKILLS, STYLES, corpus, in_style, mixture, prompts
from fusion_jax.zoo.tokenizers import train_tokenizer


@dataclass(frozen=True)
class Settings:
    """Which models are raised and where they go."""

    out: Folder = "runs/zoo-models"
    """Folder of the models, one folder each."""
    work: Folder = "runs/zoo"
    """Folder of the run, which can be resumed."""
    resume: bool = False
    """Continue the run that --work holds, if there is one."""
    seed: int = 0
    """Decides weights, problems and order."""
    batch_size: int = 64
    """Examples of an optimizer step."""
    test_prompts: int = 100
    """Problems of each skill on which a model is judged."""
    only: str = ""
    """Names of the models to raise, joined by commas; without, all."""

    def __post_init__(self) -> None:
        bounded(self, "batch_size", "test_prompts", least=1)
        seeded(self, "seed")


def main(s: Settings) -> None:
    with open_run(s.work, to_json(s), resume=s.resume) as run:
        raise_all(s, run)
        run.finish()


def raise_all(s: Settings, run: RunFolder) -> None:
    """Raise, save and judge every model that is asked for."""
    refuse_remote(s.out, "--out")
    out = Path(s.out)
    out.mkdir(parents=True, exist_ok=True)
    manifest_file = out / "manifest.json"
    manifest = json.loads(manifest_file.read_text()) if manifest_file.exists() else {"models": {}}
    for spec in SPECS:
        if s.only and spec.name not in s.only.split(","):
            continue
        started = time.monotonic()
        model = raise_model(spec, s, run.sub(spec.name))
        save(model, out / spec.name, dtype="bfloat16", overwrite=True)
        saved = load(out / spec.name)
        test = [r for skill in SKILLS for r in prompts(skill, s.test_prompts, split="test", seed=s.seed)]
        accuracy = {r["skill"]: round(r["accuracy"], 3) for r in evaluate(spec.name, saved, test, max_new_tokens=28)[0]}
        run.log(f"{spec.name}: {accuracy}")
        manifest["models"][spec.name] = {
            "command": f"python experiments/zoo.py --out {s.out} --seed {s.seed} --only {spec.name}",
            "seconds": round(time.monotonic() - started), "accuracy": accuracy,
            "parameters": sum(x.size for x in jax.tree.leaves(model.params)), "sha256": hashes(out / spec.name),
        }  # fmt: skip
    manifest |= {"seed": s.seed, "test_prompts_per_skill": s.test_prompts}
    write_json(manifest_file, manifest)


def raise_model(spec: ZooSpec, s: Settings, run: RunFolder) -> Model:
    """Random weights and a fresh tokenizer, then SFT on the spec's mixture of skills in its style."""
    tokenizer = train_tokenizer(spec.tokenizer, spec.template, spec.vocab_size, corpus(s.seed, 400))
    config = spec.config(len(tokenizer))
    model = Model(config, init_params(config, jax.random.key(s.seed)), tokenizer)
    records = mixture(dict(spec.shares), split="train", seed=s.seed + 1, repeat=True)
    rng = np.random.default_rng(s.seed)
    kinds = np.where(rng.random(len(records)) < spec.careless, "slip", "answer")
    styles = rng.choice(list(STYLES), len(records)) if spec.style == "mixed" else [spec.style] * len(records)
    rows = [
        Row(r["prompt_id"], ({"role": "user", "content": r["prompt"]},), (in_style(r[kind], style),))
        for r, kind, style in zip(records, kinds, styles)
    ]
    tokens = TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")
    examples, _ = make_examples(rows, tokenizer, TextSettings(tokens=tokens))
    settings = TrainSettings(
        optimizer=OptimizerSettings(learning_rate=spec.learning_rate, weight_decay=0.05, beta2=0.98),
        epochs=spec.epochs, batch_size=s.batch_size, micro_batches=1, seed=s.seed, log_every=20, eval_every=10**9,
        checkpoint_every=200, remat="dots", compute_dtype="float32",
    )  # fmt: skip
    return optimise(model, Data(examples), objectives.sft(), settings, run)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
