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

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from fusion_jax.data.documents import Document, chat_documents, token_counts
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad, Row, parse_rows
from fusion_jax.errors import InputError
from fusion_jax.hosts.agree import on_first
from fusion_jax.jsonl import Record
from fusion_jax.merge import merge
from fusion_jax.merge.methods import METHODS, MethodName
from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.recipes.published import published_recipe
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.models.folder import Model, save, tokenizer_of
from fusion_jax.options import File, Folder, ModelPath
from fusion_jax.plan import fits
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Merging, Part
from fusion_jax.runs.checks import check_arms, check_names, model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fusing import Arm, Fusing, FusingSettings, Held, fusing_parts, reading_limit
from fusion_jax.runs.page import conduct
from fusion_jax.runs.prompts import eval_set, held_out_skills
from fusion_jax.runs.seeds import Measures
from fusion_jax.settings import bounded
from fusion_jax.teachers.opinions import AlignSettings
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, STYLES, in_style, mixture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ArmName = Literal["SFT", "pairwise", "KD", "Multi"]


@dataclass(frozen=True)
class Settings(FusingSettings):
    """Chat models and chats."""

    basic: ClassVar = (
        "pivot", "sources", "chats", "held_out_chats", "test_prompts", "arms", "merges", "out", "resume", "seed",
        "seeds", "template", "max_length", "k", "teacher_batch", "fusion.weight", "train.epochs", "train.batch_size",
        "train.micro_batches", "train.optimizer.learning_rate", "on_bad",
    )  # fmt: skip

    out: Folder = "runs/fusechat"
    pivot: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, or zoo:NAME."""
    chats: File = ""
    """Conversations, messages, or prompts with responses; without, problems of the zoo's skills with right answers."""
    held_out_chats: File = ""
    """Chats on whose answers bits per byte are measured."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    template: Literal["own", "pivot"] = "own"
    """Each model reads chats through its own template, or all through the pivot's, as published."""
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


LARGE = Settings(
    align=AlignSettings(ms_weight="code", pieces="raw", workers=8),
    train=TrainSettings(
        optimizer=OptimizerSettings(learning_rate=5e-6, warmup_ratio=0.03), epochs=3.0, micro_batches=4
    ),
)
PRESETS = {
    "tiny": Settings(
        max_length=160, teacher_batch=64,
        train=TrainSettings(
            optimizer=OptimizerSettings(learning_rate=3e-4), epochs=3.0, batch_size=16, micro_batches=1, log_every=1,
            checkpoint_every=500, remat="dots",
        ),
    ),
    "openchat-7b": LARGE,
    "openchat-7b-official": replace(
        LARGE, template="pivot", math_dtype="bfloat16", align=replace(LARGE.align, special_pairs=False),
        fusion=FusionSettings(rounding="bfloat16"),
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "FuseChat", s, PRESETS, fuse, parts, check=check)


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    check_names((s.pivot, *s.sources), tuple(arms_of(s)))
    for method in s.merges:
        read_recipe(recipe_of(s, method, [Path("a"), Path("b")], Path("pivot")), METHODS)  # its numbers are in range


def fuse(s: Settings, desk: Desk) -> Measures:
    """Section 2.2 of the specification, then the merge."""
    folders = {model_name(path): model_path(path) for path in (s.pivot, *s.sources)}
    limit = reading_limit(folders, s.max_length, s.k)
    readers = {name: tokenizer_of(folder) for name, folder in folders.items()}
    counts = desk.counter("records")
    documents = as_read(s, readers, chats_of(s, counts), limit, counts)
    held = Held(held_out(s, readers, limit, counts), eval_set(s, [] if s.chats else held_out_skills(s)))
    desk.check_enough(len(documents[model_name(s.pivot)]), s.train, "--train")
    if limit < s.max_length:
        desk.run.log(f"chats have {limit} tokens at most instead of {s.max_length}: a model reads no more")
    for folder in folders.values():
        fits.check_prompts(folder, held.tests.prompts, s.eval_new_tokens, "--eval-new-tokens")

    fusing = Fusing(desk, s, folders, limit, held)
    readings = {name: fusing.read(name, documents[name]) for name in folders}
    pivot = fusing.load(folders[model_name(s.pivot)])
    arms = arms_of(s)
    for name, arm in arms.items():
        fused = fusing.trained(name, arm, pivot, readings, mask="labels", whole=s.template == "pivot")
        exported(desk, name, fused)
    taught = [name for name in arms if name.startswith("with-")]
    for method in s.merges if len(taught) > 1 else ():
        merged(s, desk, method, taught, folders[model_name(s.pivot)])
        found = desk.run.file(f"merged/{method}")
        fusing.measure(f"merged by {method}", fusing.load(found), answers=f"merged-{method}")
    return fusing.report(before=model_name(s.pivot), plain="SFT")


def exported(desk: Desk, arm: str, model: Model) -> None:
    """An arm's model as a Hugging Face folder."""
    desk.run.made_once(f"targets/{arm}", lambda folder: save(model, folder), made_from=[f"arms/{arm}/model"])


def merged(s: Settings, desk: Desk, method: str, arms: Sequence[str], pivot: Path) -> None:
    """The pairwise targets merged by one method."""
    run, names = desk.run, [f"targets/{arm}" for arm in arms]
    recipe = recipe_of(s, method, [run.file(name) for name in names], pivot)
    with run.timed(f"merging by {method}"):
        run.made_once(f"merged/{method}", lambda folder: on_first(lambda: merge(recipe, folder)), made_from=names)


def recipe_of(s: Settings, method: str, targets: Sequence[Path], pivot: Path) -> dict[str, Any]:
    """The published recipe, with the numbers of the settings."""
    values = {"density": s.density, "select_topk": s.topk} | ({"weight": s.weight} if s.weight else {})
    return published_recipe(method, targets, pivot, values, seed=s.seed, math_dtype=s.math_dtype)


def as_read(
    s: Settings, readers: Mapping[str, PreTrainedTokenizerBase], chats: Sequence[Row], limit: int, counts: Counter[str]
) -> dict[str, list[Document]]:
    """Every chat as each model reads it, through its own template or the pivot's; what one cannot read, none reads.

    A chat that a template refuses stops the run, or is left out and counted where `on_bad` is "skip".
    """
    template = readers[model_name(s.pivot)]
    documents: dict[str, list[Document]] = {name: [] for name in readers}
    for chat in chats:
        try:
            views = [chat_documents([chat], r if s.template == "own" else template, r)[0] for r in readers.values()]
        except InputError as error:
            if s.on_bad == "error":
                cure = f"{error.cure}, or leave such chats out with --on-bad skip"
                raise InputError(
                    error.problem, file=error.file, record=chat.name, field=error.field, cure=cure
                ) from None
            counts["refused by a template"] += 1
            continue
        for some, view in zip(documents.values(), views, strict=True):
            some.append(view)
    kept = np.ones(len(documents[model_name(s.pivot)]), bool)
    for name, reader in readers.items():
        kept &= np.asarray([n <= limit for n in token_counts(reader, documents[name])], bool)
    counts["longer than max_length in some tokenizer"] = int((~kept).sum())
    if not kept.any():
        raise InputError(f"all are longer than {limit} tokens", file=s.chats, field="--max-length", cure="Raise it")
    return {name: [d for d, keep in zip(some, kept, strict=True) if keep] for name, some in documents.items()}


def arms_of(s: Settings) -> dict[str, Arm]:
    """Which sources teach each arm beside the pivot, and how their words are fused."""
    check_arms(s.arms, get_args(ArmName))
    every = tuple(map(model_name, s.sources))
    plain, alone = replace(s.fusion, weight=1.0, schedule="hard", pivot=True), replace(s.fusion, pivot=False)
    known = {
        "SFT": {"SFT": Arm((), s.align, plain)},
        "pairwise": {f"with-{name}": Arm((name,), s.align, s.fusion) for name in every},
        "KD": {f"KD-{name}": Arm((name,), s.align, alone) for name in every},
        "Multi": {"Multi": Arm(every, s.align, s.fusion)},
    }
    return {name: arm for chosen in s.arms for name, arm in known[chosen].items()}


def chats_of(s: Settings, counts: Counter[str]) -> list[Row]:
    """The chats to train on: the user's, or the zoo's problems with right answers."""
    drawn = mixture(dict.fromkeys(SKILLS, s.chats_per_skill), split="train", seed=s.seed + 1000)
    records = load_records(s.chats) if s.chats else answered(drawn)
    rows, dropped = parse_rows(records, "sft", file=s.chats or None, on_bad=s.on_bad)
    counts.update(dropped + Counter({"chats": len(rows)}))
    return rows


def held_out(
    s: Settings, readers: Mapping[str, PreTrainedTokenizerBase], limit: int, counts: Counter[str]
) -> dict[str, list[Document]]:
    """Held-out chats as each model reads them, where there are any."""
    if s.chats:
        rows = parse_rows(load_records(s.held_out_chats), "sft", file=s.held_out_chats)[0] if s.held_out_chats else []
    else:
        test = held_out_skills(s)
        rows = parse_rows(answered(test), "sft")[0] if test else []
    dropped = Counter[str]()
    documents = as_read(replace(s, template="own"), readers, rows, limit, dropped) if rows else {}
    counts.update({f"held out: {what}": n for what, n in dropped.items()})
    return documents


def answered(problems: Sequence[Record]) -> list[Record]:
    """Right answers, worded in turn as each of the zoo's models does."""
    styles = list(STYLES)
    return [
        {"prompt": r["prompt"], "response": in_style(r["answer"], styles[i % len(styles)]), "prompt_id": r["prompt_id"]}
        for i, r in enumerate(problems)
    ]


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    merges = (Merging(name, len(s.sources), s.pivot) for name in s.merges)
    return [*fusing_parts(s, "pairwise fusion", s.pivot, "--pivot"), *merges]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
