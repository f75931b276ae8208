"""Raise the miniature zoo: for each of two kinds of problems, three sources of three architectures and tokenizers and a
smaller target.

    python experiments/zoo.py --out fusion_jax/zoo/models

Hardware: 2 CPU cores, under 2 GB. Time: 105 minutes in the manifest, most of it on cores that were
busy.

Result: twelve Hugging Face folders (under 16 MB together) and manifest.json with the command, the seed, the seconds,
the accuracy and the mean reward of each model at each skill on held-out problems, and the sha256 of every file.

Skills (`zoo.tasks`): each source is strong at some skills and weak at the others; the target slips often at all.
Plants (`zoo.plants`): each source knows the facts of one or two fields, in a wording of its own; the target knows three
in ten facts and believes something wrong of the others, but speaks in all these wordings.
Two of the sources learn to word their answers as the first one does, so that the three can write together.
An editor is raised from one of these sources on dialogues in which a draft is made better (`zoo.dialogues`). A deep
model of 12 layers is raised on all skills, and learns all but the two with numbers: one to prune.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.evals.accuracy import evaluate
from fusion_jax.files import write_json
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model, load, save
from fusion_jax.models.parameters import init_params
from fusion_jax.options import Folder
from fusion_jax.paths import refuse_remote
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.runs.opening import open_run
from fusion_jax.settings import bounded, seeded
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.specs import EVERY, ZooSpec
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
    with open_run(s.work, s, resume=s.resume) as run:
        raise_all(s, run)
        run.finish()


def raise_all(s: Settings, run: RunFolder) -> None:
    """Raise, save and judge every model that is asked for."""
    refuse_remote(s.out, "--out")
    out = Path(s.out)
    out.mkdir(parents=True, exist_ok=True)
    manifest_file = out / "manifest.json"
    manifest = json.loads(manifest_file.read_text()) if manifest_file.exists() else {"models": {}}
    for spec in EVERY:
        if s.only and spec.name not in s.only.split(","):
            continue
        started = time.monotonic()
        model = raise_model(spec, s, run.sub(spec.name))
        save(model, out / spec.name, dtype="bfloat16", overwrite=True)
        saved = load(out / spec.name)
        accuracy, rewards = judged(spec, saved, s)
        run.log(f"{spec.name}: accuracy {accuracy}, mean reward {rewards}")
        manifest["models"][spec.name] = {
            "command": f"python experiments/zoo.py --out {s.out} --seed {s.seed} --only {spec.name}",
            "seconds": round(time.monotonic() - started), "accuracy": accuracy, "reward": rewards,
            "parameters": sum(x.size for x in jax.tree.leaves(model.params)), "sha256": hashes(out / spec.name),
        }  # fmt: skip
    manifest |= {"seed": s.seed, "test_prompts_per_skill": s.test_prompts}
    write_json(manifest_file, manifest)


def judged(spec: ZooSpec, model: Model, s: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy and mean reward of greedy answers to held-out problems, by skill."""
    test, reward = spec.lessons.test(s.test_prompts, s.seed), verifier(spec.lessons.verifier)
    rows, graded = evaluate(spec.name, model, test, max_new_tokens=28, verifier=reward)
    rewards: dict[str, list[float]] = {}
    for record in graded:
        rewards.setdefault(record["skill"], []).append(reward(record["response"], record["answer"]))
    return (
        {row["skill"]: round(row["accuracy"], 3) for row in rows},
        {skill: round(sum(values) / len(values), 3) for skill, values in rewards.items()},
    )


def raise_model(spec: ZooSpec, s: Settings, run: RunFolder) -> Model:
    """Random weights and a fresh tokenizer, then SFT on the spec's lessons."""
    tokenizer = train_tokenizer(spec.tokenizer, spec.template, spec.vocab_size, spec.lessons.corpus(s.seed))
    config = spec.config(len(tokenizer))
    params = init_params(config, jax.random.key(s.seed))
    if spec.grown_from:
        params = grown(params, load(model_path(f"zoo:{spec.grown_from}")).params)
    model = Model(config, params, tokenizer)
    rows = spec.lessons.rows(s.seed)
    tokens = TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")
    examples, _ = make_examples(rows, tokenizer, TextSettings(tokens=tokens))
    settings = TrainSettings(
        optimizer=OptimizerSettings(learning_rate=spec.learning_rate, weight_decay=0.05, beta2=0.98),
        epochs=spec.epochs, batch_size=s.batch_size, micro_batches=1, seed=s.seed, log_every=20, eval_every=10**9,
        checkpoint_every=200, remat="dots", compute_dtype="float32",
    )  # fmt: skip
    return optimise(model, Data(examples), objectives.sft(), settings, run)


def grown(new: Params, old: Params) -> Params:
    """The weights of a deeper model that begins as `old`: its first layers, and above them new ones that add little to
    the stream, since their last matrices are a tenth of what they would be."""

    def each(path: tuple[jax.tree_util.DictKey, ...], fresh: jax.Array, known: jax.Array) -> jax.Array:
        if fresh.shape == known.shape:
            return known
        writes = path[-2].key in ("o", "down")
        return jnp.concatenate([known, fresh[len(known) :] * (0.1 if writes else 1.0)])

    return jax.tree_util.tree_map_with_path(each, new, old)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
