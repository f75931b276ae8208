"""FuseChat (arXiv 2408.07990): fuse a pivot pairwise with each source chat model, then merge the targets' weights.

    python experiments/fusechat.py                                            # built-in miniatures, a CPU
    python experiments/fusechat.py --arms SFT pairwise KD Multi --seeds 5     # with the baselines
    python experiments/fusechat.py --merges linear slerp task_arithmetic ties dare_linear varm sce
    python experiments/fusechat.py --preset openchat-7b --pivot OPENCHAT-3.5-7B \\
        --sources INTERNLM2-CHAT-20B QWEN1.5-CHAT-72B --chats mixture.jsonl --out runs/a

Data (JSON lines or hf:NAME, docs/data.md): chats {"conversations": [{"from": "human" or "gpt", "value"}]},
{"messages"}, or {"prompt", "response"}; test prompts {"prompt", "answer"}.

Hardware and time: `tiny` 2 CPU cores, about 2 minutes, 2 GB; `openchat-7b` is for a TPU slice (not timed yet).
Result: bits per byte of held-out answers and accuracy of the pivot, of SFT, of each pairwise target and of the merged
models; how much of each source reached the pivot's tokens; targets/ARM/ (pairwise: targets/with-SOURCE/) and
merged/METHOD/, Hugging Face folders.
Published (MT-Bench, 7B): OpenChat-3.5 with SFT 6.88, pairwise targets 7.17 to 7.24, all sources at once 6.99, SCE 7.38.

Stages (each a folder of the run, made once): teachers/MODEL (top-k stores), aligned/SOURCE (token ranges, vocabulary
map, rows), arms/ARM, targets/ARM, merged/METHOD (with its own report), report.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fusion_jax.align.settings import OFFICIAL, PUBLISHED
from fusion_jax.merge.methods import METHODS, MethodName
from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.recipes.published import published_recipe
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Merging, Part
from fusion_jax.runs.checks import check_arms, check_names, model_name
from fusion_jax.runs.corpora import ChatModelSettings, chat_corpus
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fusing import ALONE, TINY_TRAINING, UNTAUGHT, Arm, Fusing, check_stores, fusing_parts
from fusion_jax.runs.page import conduct
from fusion_jax.runs.seeds import Measures
from fusion_jax.settings import bounded
from fusion_jax.teachers.settings import ROUNDED
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path

ArmName = Literal["SFT", "pairwise", "KD", "Multi"]


@dataclass(frozen=True)
class Settings(ChatModelSettings):
    """Chat models and chats."""

    basic: ClassVar = (
        "pivot", "sources", "chats", "held_out_chats", "test_prompts", "arms", "merges", "out", "resume", "seed",
        "seeds", "template", "max_length", "k", "teacher_batch", "fusion.weight", "train.epochs", "train.batch_size",
        "train.micro_batches", "train.optimizer.learning_rate", "on_bad",
    )  # fmt: skip

    out: Folder = "runs/fusechat"
    arms: tuple[ArmName, ...] = ("SFT", "pairwise")
    """What is trained: no teacher (SFT), pivot and one source, a target each (pairwise), one source without the pivot,
    a target each (KD), pivot and all sources at once (Multi)."""
    merges: tuple[MethodName, ...] = ("sce",)
    """Methods by which the pairwise targets are merged; those for two models take the first two targets."""
    topk: float = 0.1
    """Share of the positions that sce selects."""
    density: float = 0.6
    """Share of each task vector that ties, dare, della and breadcrumbs keep."""
    weight: float = 0.0
    """Weight of each task vector; 0: 1 / number of targets (1.5 times that for task_arithmetic), as published."""
    math_dtype: MathDtype = "float32"
    """Numbers in which merges compute; bfloat16 is what published checkpoints were merged in."""
    chats_per_skill: int = 60
    """The zoo's problems of each skill to train on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "chats_per_skill", least=1)
        bounded(self, "topk", "density", above=0.0, most=1)
        bounded(self, "weight", least=0.0)


TINY = replace(TINY_TRAINING, optimizer=OptimizerSettings(learning_rate=3e-4), epochs=3.0)
ADAMW = OptimizerSettings(learning_rate=5e-6, warmup_ratio=0.03)
LARGE = Settings(align=PUBLISHED, train=TrainSettings(optimizer=ADAMW, epochs=3.0, micro_batches=4))
PRESETS = {
    "tiny": Settings(max_length=160, teacher_batch=64, train=TINY),
    "openchat-7b": LARGE,
    "openchat-7b-official": replace(LARGE, template="pivot", math_dtype="bfloat16", align=OFFICIAL, fusion=ROUNDED),
}


def main(s: Settings) -> None:
    conduct(__file__, "FuseChat", s, PRESETS, fuse, parts, check=check)


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    check_names((s.pivot, *s.sources), tuple(arms_of(s)))
    check_stores(s)
    for method in s.merges:
        read_recipe(recipe_of(s, method, [Path("a"), Path("b")], Path("pivot")), METHODS)  # its numbers are in range


def fuse(s: Settings, desk: Desk) -> Measures:
    """Section 2.2 of the specification, then the merge."""
    folders = {model_name(path): model_path(path) for path in (s.pivot, *s.sources)}
    corpus = chat_corpus(s, desk, folders, per_skill=s.chats_per_skill)
    desk.check_enough(corpus.size, s.train, "--train")
    corpus.tests.check(*folders.values())

    fusing = Fusing(desk, s, corpus, mask="labels", whole=s.template == "pivot")
    readings = {name: fusing.read(name) for name in folders}
    pivot, arms = fusing.load(folders[model_name(s.pivot)]), arms_of(s)
    for name, arm in arms.items():
        fused = fusing.trained(name, arm, pivot, readings)
        desk.export(fused, f"targets/{name}", made_from=[f"arms/{name}/model"])
    taught = [f"targets/{name}" for name in arms if name.startswith("with-")]
    for method in s.merges if len(taught) > 1 else ():
        recipe = recipe_of(s, method, [desk.run.file(name) for name in taught], folders[model_name(s.pivot)])
        merged = fusing.load(desk.merged(method, recipe, made_from=taught))
        fusing.measure(f"merged by {method}", merged, answers=f"merged-{method}")
    return fusing.report(before=model_name(s.pivot), plain="SFT")


def recipe_of(s: Settings, method: str, targets: Sequence[Path], pivot: Path) -> dict[str, Any]:
    """The published recipe, with the numbers of the settings."""
    values = {"density": s.density, "select_topk": s.topk} | ({"weight": s.weight} if s.weight else {})
    return published_recipe(method, targets, pivot, values, seed=s.seed, math_dtype=s.math_dtype)


def arms_of(s: Settings) -> dict[str, Arm]:
    """Which sources teach each arm beside the pivot, and how their words are fused."""
    check_arms(s.arms)
    every = tuple(map(model_name, s.sources))
    known = {
        "SFT": {"SFT": s.arm((), UNTAUGHT)},
        "pairwise": {f"with-{name}": s.arm((name,), {}) for name in every},
        "KD": {f"KD-{name}": s.arm((name,), ALONE) for name in every},
        "Multi": {"Multi": s.arm(every, {})},
    }
    return {name: arm for chosen in s.arms for name, arm in known[chosen].items()}


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    merges = (Merging(name, len(s.sources), s.pivot) for name in s.merges)
    return [*fusing_parts(s, "pairwise fusion", s.pivot, "--pivot"), *merges]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
