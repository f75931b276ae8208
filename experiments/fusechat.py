"""FuseChat (arXiv 2408.07990): fuse a pivot pairwise with each source chat model, then merge the targets' weights.

    python experiments/fusechat.py                                            # built-in miniatures, a CPU
    python experiments/fusechat.py --arms SFT pairwise KD Multi --seeds 5     # with the baselines
    python experiments/fusechat.py --merges linear slerp task_arithmetic ties dare_linear varm sce
    python experiments/fusechat.py --preset openchat-7b --pivot OPENCHAT-3.5-7B \\
        --sources INTERNLM2-CHAT-20B QWEN1.5-CHAT-72B --chats mixture.jsonl --out runs/a

Hardware and time: `tiny` 2 CPU cores, about 2 minutes, 2 GB; `openchat-7b` is for a TPU slice (not timed yet).
Chats: {"conversations": [{"from": "human" or "gpt", "value"}]}, {"messages"}, or {"prompt", "response"}.
Result: bits per byte of held-out answers and accuracy of the pivot, of SFT, of each pairwise target and of the merged
models; how much of each source reached the pivot's tokens; targets/ARM/ (pairwise: targets/with-SOURCE/) and
merged/METHOD/, Hugging Face folders.
Published (MT-Bench, 7B): OpenChat-3.5 with SFT 6.88, pairwise targets 7.17 to 7.24, all sources at once 6.99, SCE 7.38.

Stages (each a folder of the run, made once): teachers/MODEL (top-k stores), aligned/SOURCE (token ranges, vocabulary
map, rows), arms/ARM, targets/ARM, merged/METHOD (with its own report), report.md
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from transformers import PreTrainedTokenizerBase

from fusion_jax.data.documents import Document, chat_documents, token_counts
from fusion_jax.data.jsonl import Record
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import OnBad, Row, parse_prompts, parse_rows
from fusion_jax.errors import InputError
from fusion_jax.failures import doing
from fusion_jax.hosts import HostSettings, connect, on_first
from fusion_jax.merge import merge
from fusion_jax.merge.methods import METHODS, MethodName
from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.recipes.places import nearest
from fusion_jax.merge.recipes.published import published_recipe
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.models.folder import Model, load, save, tokenizer_of
from fusion_jax.options import File, Folder, ModelPath, Models
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.runs import Ask, Planned, merging, teacher, training
from fusion_jax.settings import bounded, seeded, to_json
from fusion_jax.train import fits
from fusion_jax.train.fusion import fused_examples, fusion_rows
from fusion_jax.train.objectives import FusionSettings
from fusion_jax.train.opinions import AlignSettings, Reading, own_opinions, read_documents, source_opinions
from fusion_jax.train.optimise import TrainSettings, compute_for
from fusion_jax.train.provenance import Ran, measures_sentence
from fusion_jax.train.run_folder import RunFolder, open_run
from fusion_jax.train.stages import (
    check_arms,
    check_enough,
    check_models,
    check_names,
    fusion_report,
    measured,
    model_name,
    over_seeds,
    reading_limit,
    trained_on_fused,
)
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, STYLES, in_style, mixture

Arm = Literal["SFT", "pairwise", "KD", "Multi"]


@dataclass(frozen=True)
class Settings:
    """Chat models and chats."""

    basic: ClassVar = (
        "pivot", "sources", "chats", "held_out_chats", "test_prompts", "arms", "merges", "out", "resume", "seed",
        "seeds", "template", "max_length", "k", "teacher_batch", "fusion.weight", "train.epochs", "train.batch_size",
        "train.micro_batches", "train.optimizer.learning_rate", "on_bad",
    )  # fmt: skip

    out: Folder = "runs/fusechat"
    """Folder of the run, which is made; it holds all stages, report.md and the model."""
    resume: bool = False
    """Continue the run that --out holds, if there is one: the same command with --resume can always be repeated."""
    hosts: HostSettings = HostSettings()
    seed: int = 42
    """Decides the zoo's problems and the order of the examples."""
    seeds: int = 1
    """Whole runs, with seed, seed + 1, ...; report.md then has means with intervals."""
    pivot: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, or zoo:NAME."""
    sources: Models = ("zoo:llama-source", "zoo:qwen-source", "zoo:gemma-source")
    """Models to learn from: folders, or zoo:NAME."""
    chats: File = ""
    """Conversations, messages, or prompts with responses; without, problems of the zoo's skills with right answers."""
    held_out_chats: File = ""
    """Chats on whose answers bits per byte are measured."""
    test_prompts: File = ""
    """Prompts with "answer", on which every model is judged."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    template: Literal["own", "pivot"] = "own"
    """Each model reads chats through its own template, or all through the pivot's, as published."""
    arms: tuple[Arm, ...] = ("SFT", "pairwise")
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
    test_per_skill: int = 60
    """The zoo's problems of each skill to be judged on."""
    eval_new_tokens: int = 28
    """Longest test answer, in tokens."""
    max_length: int = 2048
    """Chats that need more tokens in some tokenizer are left out and counted."""
    k: int = 10
    """Entries that are kept of every teacher's distribution."""
    teacher_batch: int = 8
    """Chats at once while teachers read."""
    align: AlignSettings = AlignSettings()
    fusion: FusionSettings = FusionSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        bounded(self, "seeds", "chats_per_skill", "test_per_skill", "k", "teacher_batch", "eval_new_tokens", least=1)
        bounded(self, "max_length", least=2)
        bounded(self, "topk", "density", above=0.0, most=1)
        seeded(self, "seed")
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
    connect(s.hosts)
    check_names((s.pivot, *s.sources), tuple(arms_of(s)))
    for method in s.merges:
        if method not in METHODS:
            raise InputError(f"no merge method is called '{method}'", field="merges", cure=nearest(method, METHODS))
        read_recipe(recipe_of(s, method, [Path("a"), Path("b")], Path("pivot")), METHODS)  # its numbers are in range
    check_models("--pivot", s.pivot)
    check_models("--sources", *s.sources)
    fits.check_training(s.train, "--train", *map(model_path, (s.pivot, *s.sources)))
    with open_run(s.out, to_json(s), resume=s.resume) as run:
        over_seeds(run, "FuseChat", Ran(__file__, s, PRESETS), s.seed, s.seeds, lambda seed, folder: fuse(
            replace(s, seed=seed, seeds=1), folder
        ))  # fmt: skip
        run.finish()


def fuse(s: Settings, run: RunFolder) -> dict[str, dict[str, float]]:
    """Section 2.2 of the specification, then the merge; returns each model's measures on held-out chats."""
    train = replace(s.train, seed=s.seed)
    compute = compute_for(train)
    folders = {model_name(path): model_path(path) for path in (s.pivot, *s.sources)}
    limit = reading_limit(folders, s.max_length, s.k)
    chats, counts = chats_of(s)
    readers = {name: tokenizer_of(folder) for name, folder in folders.items()}
    documents = as_read(s, readers, chats, limit, counts)
    held_chats, test = held_out(s)
    held_counts: Counter[str] = Counter()
    held = as_read(replace(s, template="own"), readers, held_chats, limit, held_counts) if held_chats else {}
    counts += Counter({f"held out: {what}": n for what, n in held_counts.items()})
    pivot_name = model_name(s.pivot)
    check_enough(run, {"chats": counts}, len(documents[pivot_name]), train, "--train")

    if limit < s.max_length:
        run.log(f"chats have {limit} tokens at most instead of {s.max_length}: a model reads no more")
    for folder in folders.values():
        fits.check_prompts(folder, test, s.eval_new_tokens, "--eval-new-tokens")

    def measure(name: str, model: Model, reader: str = pivot_name) -> dict[str, float]:
        answers = held.get(reader, [])
        return measured(run, name, model, answers, test, train, max_length=limit, max_new_tokens=s.eval_new_tokens)

    measures: dict[str, dict[str, float]] = {}

    def read(name: str) -> Reading:  # the model is let go with the call
        model = load(folders[name], mesh=compute.mesh)
        measures[name] = measure(name, model, name)
        lap = run.clock(f"reading {name}")
        with doing(f"reading {name}"):
            found = read_documents(
                run.sub("teachers").file(name), name, model, documents[name], k=s.k, max_length=limit, compute=compute,
                batch_size=s.teacher_batch, progress=run.progress,
            )  # fmt: skip
        lap()
        return found

    readings = {name: read(name) for name in folders}
    pivot = readings[pivot_name]
    start = load(folders[pivot.name], mesh=compute.mesh)
    coverage: list[dict[str, Any]] = []
    for arm, (teachers, fusion) in arms_of(s).items():
        opinions = [own_opinions(pivot, fusion)]
        for name in teachers:
            views, rules = source_opinions(
                run.sub("aligned").file(name), pivot, readings[name], s.align, fusion,
                whole=s.template == "pivot", progress=run.progress,
            )  # fmt: skip
            opinions.append(views)
            coverage.append({"arm": arm, "source": name, **rules})
        rows, drops = fusion_rows(pivot.texts, opinions)
        counts += Counter({f"{arm}: {what}": n for what, n in drops.items()})
        place = run.sub("arms").sub(arm)
        examples = fused_examples(place.file("examples"), rows, fusion, mask="labels")
        fused = trained_on_fused(place, start, examples, fusion, train)
        measures[arm] = measure(arm, fused)
        run.made_once(f"targets/{arm}", lambda folder, m=fused: save(m, folder), of=[f"arms/{arm}/model"])  # type: ignore[misc]
    taught = [arm for arm in arms_of(s) if arm.startswith("with-")]
    targets = [run.file(f"targets/{arm}") for arm in taught]
    for method in s.merges if len(targets) > 1 else ():
        lap = run.clock(f"merging by {method}")
        folder, recipe = run.file(f"merged/{method}"), recipe_of(s, method, targets, folders[pivot.name])
        sources = [f"targets/{arm}" for arm in taught]
        run.made_once(f"merged/{method}", lambda f, r=recipe: on_first(lambda: merge(r, f)), of=sources)  # type: ignore[misc]
        lap()
        measures[f"merged by {method}"] = measure(f"merged-{method}", load(folder, mesh=compute.mesh))
    result = measures_sentence(measures, list(measures)[-1], model_name(s.pivot), "SFT")
    on_first(lambda: fusion_report(run, "FuseChat", Ran(__file__, s, PRESETS), result, measures, coverage, counts))
    return measures


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


def arms_of(s: Settings) -> dict[str, tuple[tuple[str, ...], FusionSettings]]:
    """Which sources teach each arm beside the pivot, and how their words are fused."""
    check_arms(s.arms, get_args(Arm))
    every = tuple(map(model_name, s.sources))
    arms: dict[str, tuple[tuple[str, ...], FusionSettings]] = {}
    for arm in s.arms:
        match arm:
            case "SFT":
                arms["SFT"] = (), replace(s.fusion, weight=1.0, schedule="hard", pivot=True)
            case "pairwise":
                arms |= {f"with-{name}": ((name,), s.fusion) for name in every}
            case "KD":
                arms |= {f"KD-{name}": ((name,), replace(s.fusion, pivot=False)) for name in every}
            case "Multi":
                arms["Multi"] = every, s.fusion
    return arms


def chats_of(s: Settings) -> tuple[list[Row], Counter[str]]:
    """The chats to train on: the user's, or the zoo's problems with right answers."""
    drawn = mixture(dict.fromkeys(SKILLS, s.chats_per_skill), split="train", seed=s.seed + 1000)
    records = load_records(s.chats) if s.chats else answered(drawn)
    rows, counts = parse_rows(records, "sft", file=s.chats or None, on_bad=s.on_bad)
    return rows, counts + Counter({"chats": len(rows)})


def held_out(s: Settings) -> tuple[list[Row], list[Record]]:
    """Held-out chats and test prompts, where there are any."""
    if s.chats:
        rows = parse_rows(load_records(s.held_out_chats), "sft", file=s.held_out_chats)[0] if s.held_out_chats else []
        return rows, parse_prompts(load_records(s.test_prompts), file=s.test_prompts) if s.test_prompts else []
    test = mixture(dict.fromkeys(SKILLS, s.test_per_skill), split="test", seed=s.seed)
    return parse_rows(answered(test), "sft")[0], test


def answered(problems: Sequence[Record]) -> list[Record]:
    """Right answers, worded in turn as each of the zoo's models does."""
    styles = list(STYLES)
    return [
        {"prompt": r["prompt"], "response": in_style(r["answer"], styles[i % len(styles)]), "prompt_id": r["prompt_id"]}
        for i, r in enumerate(problems)
    ]


def plans(s: Settings, ask: Ask) -> list[Planned]:
    """What `--plan` compiles: the pivot as a teacher (sources: experiments/cache_teacher.py --plan), a pairwise target,
    and the merge."""
    return [
        *teacher(
            "reading the pivot", s.pivot, s.teacher_batch, s.max_length, s.k, ask, option="--pivot", train=s.train
        ),
        *training("pairwise fusion", s.pivot, "fusion", s.train, s.max_length, ask, option="--pivot", k=s.k),
        *(one for name in s.merges for one in merging(name, len(s.sources), s.pivot, ask)),
    ]


if __name__ == "__main__":
    run_experiment(Settings, main, plans, presets=PRESETS, description=__doc__)
