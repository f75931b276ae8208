"""FuseLLM (arXiv 2401.10491): fuse what several base models predict of the same text into a target.

    python experiments/fusellm.py                                                # built-in miniatures, a CPU
    python experiments/fusellm.py --arms CLM KD EM MinED MS AvgCE --seeds 5      # the ablations
    python experiments/fusellm.py --preset llama2-7b --target LLAMA-2-7B --sources OPENLLAMA-7B-V2 MPT-7B \\
        --texts minipile.jsonl --held-out-texts valid.jsonl --out runs/a

Data: texts, JSON lines with "text" or plain lines; longer ones are cut so that no tokenizer needs more than max_length
tokens. Test prompts are {"prompt", "answer"}.

Hardware and time: `tiny` 2 CPU cores, about 3 minutes, 2 GB; `llama2-7b` is for a TPU slice (not timed yet).
Result: bits per byte on held-out text and accuracy of the target before, after plain training (CLM) and after fusion;
how much of each source reached the target's tokens; model/, a Hugging Face folder. Published (BBH, 7B): Llama-2 39.70,
CLM 40.44, KD from 13B 40.88, FuseLLM 41.75.

Stages (each a folder of the run, made once): base/MODEL (miniatures only: the zoo's chat models learn plain text),
teachers/MODEL (top-k stores), aligned/SOURCE (token ranges, vocabulary map, rows), arms/ARM, report.md, model/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from fusion_jax.align.settings import PUBLISHED, AlignSettings
from fusion_jax.errors import InputError
from fusion_jax.evals.perplexity import stored_surprise
from fusion_jax.options import Folder, OneOf
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs.checks import check_arms, check_names, model_name
from fusion_jax.runs.corpora import PlainTextSettings, text_corpus, text_tests
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fusing import ALONE, TINY_TRAINING, UNTAUGHT, Arm, Fusing, check_stores, fusing_parts
from fusion_jax.runs.page import conduct
from fusion_jax.runs.practice import Practice
from fusion_jax.runs.seeds import Measures
from fusion_jax.settings import bounded
from fusion_jax.teachers.settings import ROUNDED
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path

ARMS: Mapping[str, Mapping[str, Any]] = {  # what each changes of the settings
    "CLM": UNTAUGHT, "KD": ALONE, "FuseLLM": {}, "EM": {"align.vocabulary": "exact"},
    "MinED": {"align.vocabulary": "mined"}, "MS": {"align.vocabulary": "statistics"},
    "MinCE": {"fusion.function": "mince"}, "AvgCE": {"fusion.function": "avgce"},
    "per-token": {"fusion.choice": "token"}, "bits-per-byte": {"fusion.metric": "bits_per_byte"},
    "tail-bucket": {"fusion.tail": "bucket"}, "no-pivot": ALONE, "byte-offsets": {"align.tokens": "byte_offsets"},
    "fusellm-rules": {"align.rules": "fusellm"}, "raw-pieces": {"align.pieces": "raw"},
    "input-fallback": {"align.fallback": "input"},
}  # fmt: skip
ArmName = Annotated[str, OneOf(tuple(ARMS))]


@dataclass(frozen=True)
class Settings(PlainTextSettings):
    """Base models and texts. Test prompts are asked as plain text."""

    basic: ClassVar = (
        "target", "sources", "texts", "held_out_texts", "test_prompts", "arms", "out", "resume", "seed", "seeds",
        "max_length", "k", "packing", "teacher_batch", "align.vocabulary", "fusion.weight", "fusion.function",
        "train.epochs", "train.batch_size", "train.micro_batches", "train.optimizer.learning_rate",
    )  # fmt: skip

    out: Folder = "runs/fusellm"
    arms: tuple[ArmName, ...] = ("CLM", "FuseLLM")
    """What is trained, the last one becomes model/: no teacher (CLM), the source that knows the texts best alone (KD),
    FuseLLM as `align` and `fusion` say, or FuseLLM with one thing changed."""
    practice: int = 0
    """Problems that a zoo source, which knows only chats, first reads as plain text; 0: models as they are."""
    target_practice: int = 0
    """The same for the zoo's target."""
    texts_per_skill: int = 120
    """The zoo's problems of each skill to train on."""
    window: int = 0
    """Tokens at which texts are cut; 0: max_length but one."""
    packing: Literal["none", "official", "reset"] = "none"
    """A text a row (none), or blocks of max_length tokens with attention across texts (official) or not (reset)."""
    align: AlignSettings = AlignSettings(vocabulary="mined")
    practise: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "texts_per_skill", least=1)
        bounded(self, "practice", "target_practice", "window", least=0)


TINY = replace(TINY_TRAINING, optimizer=OptimizerSettings(learning_rate=1e-3), epochs=8.0)
ADAMW = OptimizerSettings(learning_rate=1e-5, warmup_ratio=0.008, beta2=0.95, weight_decay=0.1, clip_norm=1.0)
LARGE = Settings(
    packing="official",
    window=2000,
    align=replace(PUBLISHED, rules="fusellm", vocabulary="mined"),
    train=TrainSettings(optimizer=ADAMW, micro_batches=16),
)
PRESETS = {
    "tiny": Settings(
        practice=8000, target_practice=2000, max_length=128, teacher_batch=64, train=TINY,
        practise=replace(TINY, epochs=1.0, batch_size=32, log_every=10),
    ),
    "llama2-7b": LARGE,
    "llama2-7b-official": replace(
        LARGE, align=replace(LARGE.align, fallback="input", special_pairs=False), fusion=ROUNDED
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "FuseLLM", s, PRESETS, fuse, parts, check=check)


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    check_names((s.target, *s.sources), tuple(arms_of(s, "")))
    check_stores(s)
    if not s.sources:
        raise InputError("there is none", field="sources", cure="Give at least one model")
    text_tests(s).check(*map(model_path, (s.target, *s.sources)))


def fuse(s: Settings, desk: Desk) -> Measures:
    """The stages of the paper (section 2.1 of the specification)."""
    folders = practice_of(s).folders(desk, (s.target, *s.sources))
    corpus = text_corpus(s, desk, folders, per_skill=s.texts_per_skill, window=s.window)
    if s.packing == "none":
        desk.check_enough(corpus.size, s.train, "--train")

    fusing = Fusing(desk, s, corpus, mask="all", whole=True, packing=s.packing)
    target, *sources = map(fusing.read, folders)
    start = fusing.load(folders[target.name])
    readings, best = {reading.name: reading for reading in (target, *sources)}, ""
    if "KD" in s.arms:
        best = min(sources, key=lambda source: stored_surprise(source.rows, source.documents).bits_per_byte).name
    for name, arm in arms_of(s, best).items():
        fused = fusing.trained(name, arm, start, readings)
    desk.export(fused, made_from=[f"arms/{name}/model"])
    return fusing.report(before=target.name, plain="CLM")


def arms_of(s: Settings, best: str) -> dict[str, Arm]:
    """Which sources teach each arm, and how it aligns and fuses what they say. best: the source of KD."""
    check_arms(s.arms)
    sources: dict[str, tuple[str, ...]] = {"CLM": (), "KD": (best,)}
    every = tuple(map(model_name, s.sources))
    return {name: s.arm(sources.get(name, every), ARMS[name]) for name in s.arms}


def practice_of(s: Settings) -> Practice:
    """What the zoo's models read before; a source with a store is not loaded, so it has nothing to practise."""
    texts = {source: s.practice for source in s.sources if model_name(source) not in s.stores}
    texts[s.target] = s.target_practice
    return Practice(texts, s.practise, s.max_length)


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    models = [("--target", s.target), *(("--sources", source) for source in s.sources)]
    practised = practice_of(s).parts("--practise", models)
    return [*practised, *fusing_parts(s, "fusion", s.target, "--target", s.packing)]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
