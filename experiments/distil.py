"""Distillation: a student learns the next-token distributions of one teacher or several, its own vocabulary or not.

    python experiments/distil.py                                              # built-in miniatures, a CPU
    python experiments/distil.py --arms sft ce kl reverse_kl jsd tv --seeds 5 # all losses on the same data
    python experiments/distil.py --teachers live --fusion.tail renormalise    # teachers asked while the student trains
    python experiments/distil.py --preset llama3.2-1b --student STUDENT --sources TEACHER \\
        --chats chats.jsonl --out runs/a

Data (JSON lines or hf:NAME, docs/data.md): chats, of which the answers are learnt, or texts; test prompts {"prompt",
"answer"}.

Hardware and time: `tiny` 2 CPU cores, about 2 minutes, 2 GB; `llama3.2-1b` is for a TPU slice (not timed yet).
Result: bits per byte of held-out answers (or texts) and accuracy of the student before, the teachers, the student after
each loss; how much of each teacher's probability reaches the student's tokens, by class of token; students/ARM/,
Hugging Face folders.
Losses: docs/fusion.md. Jensen-Shannon is GKD's (arXiv 2306.13649), on given texts instead of the student's own.

Stages (each a folder of the run, made once): teachers/MODEL (top-k stores, unless live), aligned/MODEL (token ranges,
vocabulary map, rows), arms/ARM, students/ARM, report.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from fusion_jax.errors import InputError
from fusion_jax.options import Folder, ModelPath, Models, OneOf
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs.checks import check_arms, check_names, model_name
from fusion_jax.runs.corpora import ChatSettings, TextSettings, chat_corpus, text_corpus
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.fusing import TINY_TRAINING, UNTAUGHT, Arm, Fusing, check_stores, fusing_parts
from fusion_jax.runs.page import conduct
from fusion_jax.runs.seeds import Measures
from fusion_jax.settings import bounded
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path

ARMS: Mapping[str, Mapping[str, Any]] = {  # what each changes of the settings
    "sft": UNTAUGHT,
    **{kind: {"fusion.kind": kind} for kind in ("ce", "kl", "reverse_kl", "jsd", "tv")},
    "as-set": {},
}
ArmName = Annotated[str, OneOf(tuple(ARMS))]


@dataclass(frozen=True)
class Settings(TextSettings, ChatSettings):
    """A student, its teachers, texts or chats."""

    basic: ClassVar = (
        "student", "sources", "texts", "chats", "held_out_texts", "held_out_chats", "test_prompts", "arms", "out",
        "resume", "seed", "seeds", "max_length", "k", "teachers", "teacher_batch", "fusion.weight", "fusion.tail",
        "train.epochs", "train.batch_size", "train.optimizer.learning_rate",
    )  # fmt: skip

    out: Folder = "runs/distil"
    student: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, a GGUF file, or zoo:NAME."""
    sources: Models = ("zoo:qwen-source",)
    """Teachers: folders, or zoo:NAME; of several, fusion.function says how they become one."""
    arms: tuple[ArmName, ...] = ("sft", "kl", "jsd")
    """Losses that are compared: on the text alone (sft), a divergence from the teachers beside it, or the one that
    fusion.kind names (as-set)."""
    chats_per_skill: int = 60
    """The zoo's problems of each skill to train on."""
    fusion: FusionSettings = FusionSettings(weight=0.9, kind="kl", tail="bucket", pivot=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "chats_per_skill", least=1)


TINY = replace(TINY_TRAINING, optimizer=OptimizerSettings(learning_rate=3e-4), epochs=3.0)
ADAMW = OptimizerSettings(learning_rate=1e-5, warmup_ratio=0.03)
PRESETS = {
    "tiny": Settings(max_length=160, teacher_batch=64, train=TINY),
    "llama3.2-1b": Settings(
        k=64,
        fusion=FusionSettings(weight=0.5, kind="kl", tail="bucket", pivot=False),
        train=TrainSettings(optimizer=ADAMW, epochs=2.0),
    ),
}


def main(s: Settings) -> None:
    conduct(__file__, "Distillation", s, PRESETS, distil, parts, check=check)


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    check_names((s.student, *s.sources), tuple(arms_of(s)))
    check_stores(s)
    if not s.sources:
        raise InputError("there is none", field="sources", cure="Give at least one model")
    if s.texts and s.chats:
        raise InputError("are given beside chats", field="texts", cure="Give one of the two")


def distil(s: Settings, desk: Desk) -> Measures:
    """Teachers read, the student learns; once for each loss."""
    folders = {model_name(path): model_path(path) for path in (s.student, *s.sources)}
    if s.texts:
        corpus = text_corpus(s, desk, folders, per_skill=s.chats_per_skill, window=0)
    else:
        corpus = chat_corpus(s, desk, folders, per_skill=s.chats_per_skill)
    desk.check_enough(corpus.size, s.train, "--train")
    corpus.tests.check(*folders.values())

    fusing = Fusing(desk, s, corpus, mask="labels", whole=bool(s.texts) or s.template == "pivot")
    readings = {name: fusing.read(name) for name in folders}
    student = fusing.load(folders[model_name(s.student)])
    for name, arm in arms_of(s).items():
        taught = fusing.trained(name, arm, student, readings)
        desk.export(taught, f"students/{name}", made_from=[f"arms/{name}/model"])
    return fusing.report(before=model_name(s.student), plain="sft")


def arms_of(s: Settings) -> dict[str, Arm]:
    """Who teaches each arm, and by which loss."""
    check_arms(s.arms)
    teachers = tuple(map(model_name, s.sources))
    return {name: s.arm(() if name == "sft" else teachers, ARMS[name]) for name in s.arms}


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    return fusing_parts(s, "distillation", s.student, "--student")


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
