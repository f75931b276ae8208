"""ProFuser (arXiv 2408.04998): learn from the source that is best on an instruction, first its own answers, then the
right ones.

    python experiments/profuser.py                                         # miniatures, a CPU, minutes
    python experiments/profuser.py --arms SFT profuser simul reverse infer train --seeds 5
    python experiments/profuser.py --preset vicuna-7b --target VICUNA-7B --sources LLAMA-2-7B-CHAT MPT-7B-8K-CHAT \\
        --instructions instructions.jsonl --judges RM1 RM2 RM3 --out runs/a

A source may know a right answer well and write a poor one, or the other way round. Two modes choose one source for
each instruction: the one that the right answer surprises least, and the one for whose own answer most judges vote. The
target learns the text and that source's distributions on it: cross-entropy + beta KL. It learns own answers first, then
mainly right ones.

Data: instructions {"prompt", "response"} and for --verifiers "answer"; test prompts {"prompt", "answer"}.

Hardware and time: `tiny` 2 CPU cores, about 2 minutes; `vicuna-7b` is for a TPU slice (not timed; --plan estimates).
Result: report.md with accuracy, mean reward and bits per byte of every arm, wins of each source in both modes, votes,
and how much of each source reached the target's tokens; model/. In the miniature SFT on right answers learns more, and
docs/profuser.md says why. Published (mean of six): Vicuna-7B 53.46, FuseLLM 54.53, both modes at once 54.56, right
answers first 54.30, ProFuser 55.11.

Stages: instructions.jsonl, teachers/SOURCE, responses/SOURCE.jsonl, scores/JUDGE.jsonl, advantage.jsonl,
winners/SOURCE, branches/MODE, arms/ARM, answers/, model/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Rewarding, Training
from fusion_jax.runs.advantage_report import tables_of, warnings_of
from fusion_jax.runs.advantages import AdvantageSettings, reading_parts, writing_parts
from fusion_jax.runs.branches import Branch, Mode, arms_of, own_answers, right_answers, staged
from fusion_jax.runs.checks import check_arms, check_names, model_name
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.instructions import instructions_of
from fusion_jax.runs.labels import labels_of
from fusion_jax.runs.page import conduct
from fusion_jax.runs.panel import panel_of
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.trained import trained
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings

ArmName = Literal["profuser", "simul", "reverse", "infer", "train", "SFT"]


@dataclass(frozen=True)
class Settings(AdvantageSettings):
    """A target, sources, judges, and how what they are best at is learnt."""

    basic: ClassVar = (
        "target", "sources", "instructions", "judges", "verifiers", "test_prompts", "arms", "out", "resume", "seed",
        "seeds", "by_reading", "by_writing", "loss.beta", "loss.kept", "loss.first_epochs", "loss.both_epochs",
        "train.batch_size", "train.optimizer.learning_rate",
    )  # fmt: skip

    out: Folder = "runs/profuser"
    arms: tuple[ArmName, ...] = ("SFT", "profuser")
    """What is trained: ProFuser, both modes at once (simul), right answers first (reverse), one mode alone (infer,
    train), or the right answers without any distribution (SFT); all with as many rows and steps. profuser or, without
    it, the last one becomes model/."""


ADAMW = OptimizerSettings(
    learning_rate=1e-5, beta2=0.95, weight_decay=0.1, warmup_ratio=0.03, schedule="cosine"
)
PRESETS = {
    "tiny": Settings(
        accuracy="fields", test_per_skill=200, teacher_batch=64, max_length=128, eval_samples=4,
        sample=SampleSettings(temperature=0.7, top_p=0.9, num_samples=1, max_new_tokens=28, batch_size=64),
        train=TrainSettings(
            OptimizerSettings(learning_rate=1e-3), batch_size=32, micro_batches=1, log_every=5, checkpoint_every=500,
            remat="dots",
        ),
    ),
    "vicuna-7b": Settings(train=TrainSettings(ADAMW, batch_size=128, micro_batches=8)),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "ProFuser", s, PRESETS, fuse, parts, check=check)


def check(s: Settings) -> None:
    """Refuse what would fail later."""
    check_arms(s.arms)
    check_names((s.target, *s.sources), s.arms)
    check_names(s.judges, s.verifiers, "judges")
    if s.problems == "skills" and not s.instructions and any(judge.startswith("zoo:plants") for judge in s.judges):
        cure = "Set --judges none --verifiers answer"
        raise InputError("know plants, and the instructions are of skills", field="--judges", cure=cure)
    if s.train.epochs != TrainSettings().epochs:
        cure = "Set --loss.first-epochs and --loss.both-epochs"
        raise InputError("is not read: both stages have epochs of their own", field="--train.epochs", cure=cure)
    if s.train.batch_size % 2:
        problem = f"{s.train.batch_size} rows are no pairs of an own and a right answer"
        raise InputError(problem, field="--train.batch-size", cure="Give an even number")


def fuse(s: Settings, desk: Desk) -> Measures:
    """Sections 3 to 7 of the specification."""
    panel, given = panel_of(s, desk), instructions_of(s, desk)
    kept, documents = panel.whole(given, "instructions", panel.names, strict=s.on_bad == "error")
    instructions = desk.records("instructions.jsonl", lambda: [given[i] for i in kept], made_from=[])
    panel.check(instructions)
    readings = {name: panel.read(name, "teachers", documents[name]) for name in panel.names}
    answers = {name: panel.written(name, instructions) for name in panel.names}
    labels = labels_of(panel, instructions, readings, answers)
    for warning in warnings_of(labels):
        desk.run.log(warning)
    branches: dict[Mode, Branch] = {
        "infer": own_answers(panel, instructions, labels, answers, readings[panel.names[0]]),
        "train": right_answers(panel, labels, readings),
    }
    target = panel.load(panel.names[0])
    panel.measure(panel.names[0], target, [])
    names = [one["prompt_id"] for one in instructions]
    result = "profuser" if "profuser" in s.arms else s.arms[-1]
    for name in (*(arm for arm in s.arms if arm != result), result):
        fused = learnt(s, desk, name, target, branches, names)
        panel.measure(name, fused, [f"arms/{name}/model"])
    desk.export(fused, made_from=[f"arms/{result}/model"])
    voters = [model_name(judge) for judge in (*s.judges, *s.verifiers)]
    return panel.report(s.arms, tables_of(panel, labels, answers, voters))


def learnt(
    s: Settings, desk: Desk, name: str, target: Model, branches: Mapping[Mode, Branch], names: Sequence[str]
) -> Model:
    """The target after both stages of an arm, one run and one program."""
    arm, train = arms_of(s.loss)[name], replace(s.train, seed=desk.seed)
    data, first_steps = staged(branches, arm, train, names)
    objective = objectives.profuser(arm.loss, first_steps)
    return trained(
        desk.run.sub("arms").sub(name), target, compute_for(train).mesh,
        lambda folder: optimise(target, data, objective, train, folder),
        made_from=[f"{mode} rows={branch.made_of}" for mode, branch in branches.items()],
    )  # fmt: skip


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    judged = [Rewarding(judge, s.train, named="--judges") for judge in s.judges]
    learnt = Training(
        "ProFuser", s.target, objectives.profuser(s.loss, 1), s.train, s.max_length, length="--max-length", k=s.k,
        records=lambda count: round(s.loss.rows * count), teachers=reading_parts(s) if s.teachers == "live" else (),
    )  # fmt: skip
    return [*judged, *reading_parts(s), *writing_parts(s), learnt]


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
