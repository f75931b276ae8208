"""Raise the miniature zoo: for each of two kinds of problems, three sources of three architectures and tokenizers and a
smaller target.

    python experiments/zoo.py --out fusion_jax/zoo/models

Hardware: 2 CPU cores, under 2 GB. Time: 105 minutes in the manifest, most of it on cores that were
busy.

Result: fifteen Hugging Face folders (under 19 MB together) and manifest.json with the command, the seed, the seconds,
the accuracy and the mean reward of each model at each skill on held-out problems, and the sha256 of every file.

Skills (`zoo.tasks`): each source is strong at some skills and weak at the others; the target slips often at all.
Plants (`zoo.plants`): each source knows the facts of one or two fields, in a wording of its own; the target knows three
in ten facts and believes something wrong of the others, but speaks in all these wordings.
Two of the sources learn to word their answers as the first one does, so that the three can write together.
An editor is raised from one of these sources on dialogues in which a draft is made better (`zoo.dialogues`). A deep
model of 12 layers is raised on all skills, and learns all but the two with numbers: one to prune. Three judges are
raised from the three sources that know plants: they learn all facts, then to rank answers by how many are right.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fusion_jax.evals.accuracy import evaluate
from fusion_jax.files import write_json
from fusion_jax.models.folder import Model, load, save
from fusion_jax.options import Folder
from fusion_jax.paths import refuse_remote
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.raising import raise_judge, raise_model, ranked
from fusion_jax.settings import bounded, seeded
from fusion_jax.settings import run as run_experiment
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.zoo.specs import EVERY, JUDGES, JudgeSpec, ZooSpec


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
    specs: tuple[ZooSpec | JudgeSpec, ...] = (*EVERY, *JUDGES)
    for spec in specs:
        if s.only and spec.name not in s.only.split(","):
            continue
        started, place = time.monotonic(), run.sub(spec.name)
        if isinstance(spec, JudgeSpec):
            model = raise_judge(spec, place, seed=s.seed, batch_size=s.batch_size)
        else:
            model = raise_model(spec, place, seed=s.seed, batch_size=s.batch_size)
        save(model, out / spec.name, dtype="bfloat16", overwrite=True)
        found = judged(spec, load(out / spec.name), s)
        run.log(f"{spec.name}: {found}")
        manifest["models"][spec.name] = {
            "command": f"python experiments/zoo.py --out {s.out} --seed {s.seed} --only {spec.name}",
            "seconds": round(time.monotonic() - started), **found,
            "parameters": sum(x.size for x in jax.tree.leaves(model.params)), "sha256": hashes(out / spec.name),
        }  # fmt: skip
    manifest |= {"seed": s.seed, "test_prompts_per_skill": s.test_prompts}
    write_json(manifest_file, manifest)


def judged(spec: ZooSpec | JudgeSpec, model: Model, s: Settings) -> dict[str, Any]:
    """Accuracy and mean reward of greedy answers to held-out problems, by skill; of a judge, the share of held-out
    pairs that it ranks rightly."""
    if isinstance(spec, JudgeSpec):
        return {"ranked": round(ranked(model, 10 * s.test_prompts, s.seed), 4)}
    test, reward = spec.lessons.test(s.test_prompts, s.seed), verifier(spec.lessons.verifier)
    rows, graded = evaluate(spec.name, model, test, max_new_tokens=28, verifier=reward)
    rewards: dict[str, list[float]] = {}
    for record in graded:
        rewards.setdefault(record["skill"], []).append(reward(record["response"], record["answer"]))
    return {
        "accuracy": {row["skill"]: round(row["accuracy"], 3) for row in rows},
        "reward": {skill: round(sum(values) / len(values), 3) for skill, values in rewards.items()},
    }


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
