"""SEFT (arXiv 2406.10813): a reviser, trained on pairs, labels unlimited prompts for a policy's fine-tuning.

    python experiments/seft.py                                            # built-in miniatures, a CPU, minutes
    python experiments/seft.py --preset llama3-8b --target POLICY --reviser BASE-MODEL --pairs pairs.jsonl \\
        --prompts prompts.jsonl --out runs/a

Data (JSON lines or hf:NAME, docs/data.md): pairs {"prompt", "chosen", "rejected", "answer"?} for the reviser, prompts
{"prompt", "answer"?} for the policy. An "answer" serves to judge what is made, never to train, but for best-of-n.

Result: accuracy, mean reward of sampled answers and P(right) of the target, of baselines on the same data and of the
policy after each round; in the run folder every stage's JSON-lines file, report.md with the reviser's measures and what
each round kept and revised, and model/. Published, as directions: SEFT above SFT, DPO and ORPO on the same pairs, more
with more prompts. docs/seft.md says how it works, what the miniature shows and how it is set.

Stages: 1 pairs.jsonl, prompts.jsonl  2 warm-up/  3 difficulty.jsonl, adapt.jsonl  4 reviser/  5 held_out.jsonl, which
calibrates the threshold  6 anchors.jsonl, baselines  7 for each round SEFT-N/drafts.jsonl, labels.jsonl, model/
then answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.order import split
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.options import Folder, OneOf
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling, Training
from fusion_jax.rewards.revision import LABELS, LabelRules, Wording
from fusion_jax.runs import evolving, examining, revising
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import conduct
from fusion_jax.runs.revising import Measure, Pair, Reviser
from fusion_jax.runs.revision_data import (
    RevisionSettings,
    eval_set_of,
    judge_of,
    pair_records,
    pairs_of,
    prompt_records,
)
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import fused_objectives, objectives
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings

PAIRED = ("SFT", "DPO", "ORPO")
BASELINES = (*PAIRED, "best-of-n", "distilled", "always-revise")


@dataclass(frozen=True)
class Settings(RevisionSettings):
    """A policy, a reviser, pairs for the one and prompts for the other."""

    basic: ClassVar = (
        "target", "reviser", "pairs", "prompts", "test_prompts", "reward_model", "verifier", "accuracy", "out", "resume",
        "seed", "seeds", "baselines", "labels.labels", "preserve", "evolution.rounds", "evolution.internal",
        "evolution.round_prompts", "evolution.drafts.num_samples", "warm_up.optimizer.learning_rate",
        "policy.optimizer.learning_rate", "text.tokens.max_length",
    )  # fmt: skip

    out: Folder = "runs/seft"
    wording: Wording = "full"
    """What the reviser is asked: with instructions, or without."""
    held_out: float = 1 / 30
    """Share of the pairs on which the threshold is calibrated and the reviser is measured."""
    difficulty: Measure = "effort"
    """What tells how hard a revision is: the good answer's nats a token given the bad one (effort), that less the nats
    without the bad one (gain), the share of the text that differs (edits), or chance (random)."""
    adapt_from: Literal["warm-up", "base"] = "warm-up"
    """What the adaptive reviser starts from."""
    label_weight: float = 1.0
    """Weight of the labels' token mean beside that of the revisions."""
    preserve: float = 0.9
    """Share of the good held-out answers that the calibrated threshold keeps."""
    baselines: tuple[Annotated[str, OneOf(BASELINES)], ...] = ()
    """What is trained beside SEFT, to compare: on the pairs SFT, DPO, ORPO; on the prompts best-of-n (drafts chosen by
    reward), distilled (answers of --reviser as it is) and always-revise (a reviser without labels)."""
    labels: LabelRules = LabelRules()
    text: TextSettings = TextSettings()
    warm_up: TrainSettings = TrainSettings()
    adapt: TrainSettings = TrainSettings()
    policy: TrainSettings = TrainSettings()
    sft: TrainSettings = TrainSettings()
    paired: TrainSettings = TrainSettings()
    dpo: PairSettings = PairSettings(beta=0.1)
    orpo: PairSettings = PairSettings(loss="orpo", beta=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "held_out", least=0, below=1)
        bounded(self, "preserve", above=0, most=1)
        bounded(self, "label_weight", least=0)


def _adamw(learning_rate: float, **how: float) -> OptimizerSettings:
    return OptimizerSettings(learning_rate, beta2=0.95, weight_decay=0.1, **{"warmup_ratio": 0.03, **how})


TINY = TrainSettings(batch_size=16, micro_batches=1, log_every=5, eval_every=10**6, checkpoint_every=100, remat="dots")
PUBLISHED = TrainSettings(_adamw(1e-5), micro_batches=4)
PRESETS = {
    "tiny": Settings(),
    "llama3-8b": Settings(
        baselines=("SFT", "DPO", "ORPO"),
        eval_new_tokens=1024,
        warm_up=PUBLISHED,
        adapt=PUBLISHED,
        policy=dataclasses.replace(PUBLISHED, optimizer=_adamw(5e-6)),
        paired=dataclasses.replace(PUBLISHED, optimizer=_adamw(5e-7)),
    ),
}


@dataclass(frozen=True)
class Bench:
    """What all rounds share. anchored: see `evolving.anchors`."""

    settings: Settings
    desk: Desk
    tests: EvalSet
    target: Model
    prompts: Sequence[Record]
    judge: evolving.Judge
    anchored: Sequence[Record]


Label = Callable[[list[Record], int], list[Record]]
"""(drafts of a round, its number) -> the same prompts with what the policy shall learn."""


def main(s: Settings) -> None:
    conduct(__file__, "SEFT", s, PRESETS, evolve, parts, check=RevisionSettings.check)


def evolve(s: Settings, desk: Desk) -> Measures:
    """The pipeline; the stages stand at the top of this file."""
    tests, judge, how = eval_set_of(s), judge_of(s, desk, s.adapt), s.evolution
    base, target = desk.load(s.reviser, s.warm_up), desk.load(s.target, s.policy)
    revising.spelling(base.tokenizer, s.text, LABELS[s.labels.labels])
    pairs = pairs_of(desk.records("pairs.jsonl", lambda: pair_records(s, desk, target)))
    prompts = desk.records("prompts.jsonl", lambda: prompt_records(s, desk, pairs, tests))
    desk.note_shared(tests.prompts, [pair.messages[-1]["content"] for pair in pairs])
    held, train = split(pairs, s.held_out, s.seed)
    desk.judge(model_name(s.reviser), base, tests, made_from=[])
    desk.judge("Target", target, tests, made_from=[])

    plain, reviser = revisers(s, desk, base, train)
    seen = desk.records("held_out.jsonl", lambda: examining.examined(reviser, held, how.revisions, s.seed, judge))
    found = examining.examination(seen, s.preserve)
    reviser = dataclasses.replace(reviser, threshold=found.threshold)
    first = how.shard(prompts, 1)
    anchored = desk.records("anchors.jsonl", lambda: evolving.anchors(reviser, target, first, how, s.seed))
    bench = Bench(s, desk, tests, target, prompts, judge, anchored)
    others = compared(bench, base, plain, train)
    policy, told = rounds(bench, "SEFT", labels_of(s, reviser))
    desk.export(policy)
    return reported(s, desk, found, examining.kinds_table(seen, found.threshold), [*others, *told])


def revisers(s: Settings, desk: Desk, base: Model, pairs: Sequence[Pair]) -> tuple[Reviser, Reviser]:
    """Stages 2 to 4: a reviser without labels and, by how hard each pair is for it, the adaptive one."""
    read = compute_for(s.adapt), s.adapt.batch_size // s.adapt.micro_batches
    plain = Reviser(base, 0, s.wording, s.text, *read)
    stage = Stage("warm-up", "--warm-up", s.warm_up, s.text)
    warm = desk.train(stage, base, objectives.sft(), revising.revision_rows(plain, pairs))
    plain = dataclasses.replace(plain, model=warm)
    hard = desk.records("difficulty.jsonl", lambda: revising.difficulty(plain, pairs, s.difficulty, s.seed))
    rules, counts = dataclasses.replace(s.labels, seed=s.seed), desk.counter("labelled drafts")
    drafts = desk.records("adapt.jsonl", lambda: revising.label_records(pairs, hard, rules, counts))
    reviser = Reviser(base if s.adapt_from == "base" else warm, rules.labels, s.wording, s.text, *read)
    stage = Stage("reviser", "--adapt", s.adapt, s.text)
    data = revising.marked(reviser, drafts, desk.data(stage, base, revising.label_rows(reviser, drafts)))
    model = desk.train_on(stage, reviser.model, fused_objectives.reviser(s.label_weight), data)
    return plain, dataclasses.replace(reviser, model=model)


def labels_of(s: Settings, reviser: Reviser) -> Label:
    """Stage 7: what a reviser makes of the drafts of a round; one without labels revises every first draft."""
    how = s.evolution
    return lambda drafts, number: evolving.pseudo_labels(
        reviser, drafts, how.mode(number) if reviser.labels else "always", how.revisions, s.seed
    )


def rounds(
    bench: Bench, name: str, label: Label, *, writer: Model | None = None, anchor: bool = True, leaf: bool = False,
) -> tuple[Model, list[examining.Round]]:  # fmt: skip
    """Stage 7: each round's drafts, what `label` makes of them, and the policy trained on that; it is judged.

    Args:
      writer: of the drafts; None: the policy itself. leaf: only to compare.
    """
    s, desk, how = bench.settings, bench.desk, bench.settings.evolution
    policy, said, told = bench.target, list[Record](), list[examining.Round]()
    for number in range(1, how.rounds + 1):
        stage = Stage(f"{name}-{number}", "--policy", s.policy, s.text, leaf=leaf)
        author = writer or (policy if how.on_policy else bench.target)
        write = functools.partial(evolving.drafted, author, how.shard(bench.prompts, number), how.drafts, s.seed)
        drafts = desk.records(f"{stage.name}/drafts.jsonl", write)
        labels = desk.records(f"{stage.name}/labels.jsonl", functools.partial(label, drafts, number))
        evolving.counted(labels, desk.counter(stage.name))
        told.append(examining.round_of(stage.name, drafts, labels, bench.judge))
        new = evolving.mixed(labels, bench.anchored if anchor else (), how.anchor, s.seed + number)
        said = [*said, *new] if how.start_from == "target" else new
        policy = evolving.learnt(desk, stage, bench.target if how.start_from == "target" else policy, said)
        desk.judge(stage.name, policy, bench.tests)
    return policy, told


def compared(bench: Bench, base: Model, plain: Reviser, pairs: Sequence[Pair]) -> list[examining.Round]:
    """The baselines that are asked for, on the same pairs or the same prompts."""
    s, desk = bench.settings, bench.desk
    rows = [Row(p.name, p.messages, (p.chosen, p.rejected)) for p in pairs]
    of_pairs = {
        "SFT": ("--policy", s.sft, objectives.sft(), [Row(r.name, r.messages, r.responses[:1]) for r in rows]),
        "DPO": ("--paired", s.paired, objectives.pair(s.dpo), rows),
        "ORPO": ("--paired", s.paired, objectives.pair(s.orpo), rows),
    }
    for name in (name for name in of_pairs if name in s.baselines):
        option, how, objective, learnt = of_pairs[name]
        model = desk.train(Stage(name, option, how, s.text, leaf=True), bench.target, objective, learnt)
        desk.judge(name, model, bench.tests, made_from=[f"{name}/model"])
    told = list[examining.Round]()
    if "best-of-n" in s.baselines:
        told += rounds(bench, "best-of-n", lambda d, n: evolving.best_rewarded(d, bench.judge), anchor=False)[1]
    if "distilled" in s.baselines:
        told += rounds(bench, "distilled", lambda d, n: evolving.first_drafts(d), writer=base, anchor=False)[1]
    if "always-revise" in s.baselines:
        told += rounds(bench, "always-revise", labels_of(s, plain), anchor=False)[1]
    return told


def reported(
    s: Settings, desk: Desk, found: examining.Examination, kinds: str, told: Sequence[examining.Round]
) -> Measures:
    """report.md, and what was measured of every model."""
    measures = desk.measures()
    ours = [one for one in told if one.name.startswith("SEFT-")]
    rewards = [measures.get(name, {}).get("mean reward", math.nan) for name in ("Target", *(one.name for one in ours))]
    calls = examining.alarms(found, ours, rewards)
    parts = ["## The reviser", examining.measures_table(found), kinds, "## Rounds", examining.rounds_table(told)]
    parts += ["## Alarms", "\n".join(f"- {one}" for one in calls) or "None."]
    for one in calls:
        desk.run.log(f"alarm: {one}")
    stages = ["warm-up", "reviser", *(name for name in s.baselines if name in PAIRED), *(one.name for one in told)]
    result = f"The policy went through {len(ours)} rounds; without --test-prompts nothing is judged."
    desk.report(stages, [model_name(s.reviser)], target="Target", result=result, parts=list(filter(None, parts)))
    return measures


def parts(s: Settings) -> list[Part]:
    """What the run computes: a plan's rows are pairs for the reviser, and prompts of a round for the policy."""
    length, how = s.text.tokens.max_length, s.evolution
    adapt = fused_objectives.reviser(s.label_weight)
    out: list[Part] = [
        Training("reviser, warm-up", s.reviser, objectives.sft(), s.warm_up, length, "--warm-up", "--reviser"),
        Training("reviser, labels", s.reviser, adapt, s.adapt, length, "--adapt", "--reviser", start="float32"),
        Training("policy, a round", s.target, objectives.sft(), s.policy, length, "--policy", start="float32"),
        Sampling("drafts", s.target, how.drafts, "--evolution.drafts.mesh-tensor", kept="float32"),
        Sampling(
            "revisions", s.reviser, how.revisions, "--evolution.revisions.mesh-tensor", "--reviser", kept="float32"
        ),
    ]
    for name in (name for name in PAIRED if name in s.baselines):
        objective, train = (objectives.sft(), s.sft) if name == "SFT" else (objectives.pair(s.dpo), s.paired)
        out.append(Training(name, s.target, objective, train, length, "--sft" if name == "SFT" else "--paired"))
    return out


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
