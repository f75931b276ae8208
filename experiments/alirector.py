"""Alirector (arXiv 2402.04601): a corrector of Chinese grammatical errors learns restraint from two alignment models.

    python experiments/alirector.py                                        # a miniature, a CPU, minutes
    python experiments/alirector.py --arms plain more alirector two_pass copy --seeds 5
    python experiments/alirector.py --preset bart-large-chinese --model BART-LARGE-CHINESE --pairs train.json \\
        --tests nacgec.para fcgec_dev.json --fcgec FCGEC_train.json --out runs/a

A corrector that writes sentences anew changes what is right. A first corrector, trained on part of the pairs, drafts
the rest; two alignment models learn the corrections from source and draft, one in each order; the first corrector then
learns the corrections and the distributions of both, frozen: cross-entropy + beta KL. It alone is used.

Data: pairs {"source", "target"}; test sentences as para files or FCGEC's JSON (docs/alirector.md).

Hardware and time: `tiny` one CPU core, 6.5 minutes; `bart-large-chinese` and `baichuan2-7b` are for a TPU slice (not
timed; --plan estimates). Result: precision, recall, F0.5 and the share of right sentences that are changed by each arm,
examples.html with edits in colour, model/. In the miniature Alirector is not above the plain corrector; with the
published --split.order file_order it changes fewer right sentences (docs/alirector.md). Published F0.5 of BART-large:
NLPCC18 46.67, FCGEC 53.42, NaCGEC 61.33.

Stages: corrector/, drafts.jsonl, source_first/, draft_first/, alirector/, baselines; for FCGEC the same behind
"fcgec-"; answers/ARM/TEST.jsonl, report.md, model/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fusion_jax.correction.split import stage_split
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs.checks import check_arms
from fusion_jax.runs.correcting import Correcting, CorrectingSettings, correcting, correcting_parts
from fusion_jax.runs.correction_checks import check_corrector
from fusion_jax.runs.correction_report import report
from fusion_jax.runs.correctors import WritingSettings
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import conduct
from fusion_jax.runs.seeds import Measures
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo.chinese import ChineseSettings

ArmName = Literal["plain", "corrector", "more", "two_pass", "copy", "alirector"]


@dataclass(frozen=True)
class Settings(CorrectingSettings):
    """A model, pairs, test sentences, and how the corrector learns from its alignment models."""

    basic: ClassVar = (
        "model", "pairs", "tests", "fcgec", "arms", "out", "resume", "seed", "seeds", "scorer", "loss.beta",
        "loss.alpha", "loss.kind", "loss.average", "writing.beams", "corrector.epochs", "corrector.batch_size",
        "corrector.optimizer.learning_rate", "distillation.epochs",
    )  # fmt: skip

    out: Folder = "runs/alirector"
    arms: tuple[ArmName, ...] = ("plain", "corrector", "more", "alirector")
    """What is trained and scored: one corrector on all pairs (plain), the first one, on its part (corrector), the same
    trained further without alignment models (more), the first one and an alignment model behind it (two_pass), one on
    all pairs that may copy from its source and writes greedily (copy), and Alirector. alirector or, without it, the
    last one becomes model/."""


SMALL = TrainSettings(
    OptimizerSettings(learning_rate=2e-3, warmup_ratio=0.1, schedule="linear"), epochs=3.0, batch_size=64,
    micro_batches=1, log_every=10, checkpoint_every=500, remat="none", source_dropout=0.0,
)  # fmt: skip
BART = TrainSettings(
    OptimizerSettings(learning_rate=3e-5, schedule="polynomial", warmup_steps=1000), epochs=10.0, batch_size=1024,
    micro_batches=32, dropout=0.1, source_dropout=0.2,
)  # fmt: skip
BAICHUAN = TrainSettings(
    OptimizerSettings(learning_rate=3e-5, schedule="cosine", warmup_ratio=0.1), epochs=3.0, batch_size=1024,
    micro_batches=64, lora_rank=8, lora_alpha=16,
    lora_target_modules=("o_proj", "gate_proj", "up_proj", "down_proj"),  # W_pack is three parts in one tensor
)  # fmt: skip
LINEAR = OptimizerSettings(learning_rate=3e-5, schedule="linear", warmup_ratio=0.1)
PRESETS = {
    "tiny": Settings(
        raised=8000, validation=128, corpus=ChineseSettings(lang8=6000, hsk=400, test=600, longest=14),
        raising=SMALL, corrector=SMALL, alignment=replace(SMALL, epochs=8.0), distillation=SMALL, further=SMALL,
        writing=WritingSettings(beams=1, max_new_tokens=48, batch_size=128),
    ),
    "bart-large-chinese": Settings(
        corrector=BART, alignment=replace(BART, batch_size=512, micro_batches=32),
        distillation=replace(BART, optimizer=LINEAR),
        further=replace(BART, optimizer=replace(BART.optimizer, warmup_steps=100), batch_size=256, micro_batches=16),
    ),
    "baichuan2-7b": Settings(
        corrector=BAICHUAN, alignment=replace(BAICHUAN, epochs=5.0), distillation=BAICHUAN,
        further=replace(BAICHUAN, epochs=10.0, batch_size=256, micro_batches=16),
        writing=WritingSettings(beams=2, max_new_tokens=512),
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "Alirector", s, PRESETS, correct, parts, check=check, unread=("model",))


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    check_arms(s.arms)
    check_corrector(s, copying="copy" in s.arms)
    if s.arms[-1] == "two_pass" and "alirector" not in s.arms:
        raise InputError("two_pass is two models, and no model/", field="--arms", cure="Put another arm last")
    if s.fcgec and (left := set(s.arms) - {"plain", "two_pass", "alirector"}):
        problem = f"'{min(left)}' does not go on with FCGEC"
        raise InputError(problem, field="--arms", cure="Give plain, two_pass or alirector, or leave --fcgec out")


def correct(s: Settings, desk: Desk) -> Measures:
    """Section 1 of the specification; what no arm asks for is not trained."""
    run, models, teachers = correcting(s, desk), dict[str, Model](), dict[str, Model]()
    first, second = stage_split(run.task.train, s.split)
    if set(s.arms) - {"plain", "copy"}:
        models["corrector"] = run.trained("corrector", run.start, first, s.corrector)
    if drafted := {"more", "two_pass", "alirector"} & set(s.arms):
        triples = run.drafted("drafts", models["corrector"], second)
    if "two_pass" in s.arms or ("alirector" in s.arms and s.loss.beta):
        teachers = run.aligned(triples)
    if "more" in s.arms:
        models["more"] = run.trained("more", models["corrector"], triples, s.distillation)
    if "alirector" in s.arms:
        models["alirector"] = run.distilled("alirector", models["corrector"], triples, teachers, s.distillation)
    if "plain" in s.arms or (run.task.fcgec and drafted):
        models["plain"] = run.trained("plain", run.start, run.task.train, s.corrector)
    if "copy" in s.arms:
        models["copy"] = run.copying("copy", run.start, run.task.train, s.corrector)
    if run.task.fcgec:
        models, teachers = continued(s, run, models, teachers)
    for name in s.arms:
        if name == "two_pass":
            run.judge(name, models["plain" if run.task.fcgec else "corrector"], teachers["source_first"])
        else:
            run.judge(name, models[name])
    desk.export(models["alirector" if "alirector" in s.arms else s.arms[-1]])
    return report(run, s.arms)


def continued(
    s: Settings, run: Correcting, models: Mapping[str, Model], teachers: Mapping[str, Model]
) -> tuple[dict[str, Model], dict[str, Model]]:
    """The models, trained further on FCGEC, whose drafts are by the corrector of all pairs."""
    found, pairs, run = dict(models), run.task.fcgec, run.further
    if teachers or "alirector" in models:
        triples = run.drafted("fcgec-drafts", models["plain"], pairs)
    if teachers:
        teachers = run.aligned(triples, teachers)
    if "alirector" in models:
        found["alirector"] = run.distilled("fcgec-alirector", models["alirector"], triples, teachers, s.further)
    found["plain"] = run.trained("fcgec-plain", models["plain"], pairs, s.further)
    return found, dict(teachers)


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    return correcting_parts(s)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
