"""SEFT (arXiv 2406.10813): a reviser, trained on pairs, labels unlimited prompts for a policy's fine-tuning.

    python experiments/seft.py                                            # built-in miniatures, a CPU, minutes
    python experiments/seft.py --preset llama3-8b --target POLICY --reviser BASE-MODEL --pairs pairs.jsonl \\
        --prompts prompts.jsonl --out runs/a

Data (JSON lines or hf:NAME, docs/data.md): pairs {"prompt", "chosen", "rejected", "answer"?} for the reviser, prompts
{"prompt", "answer"?} for the policy. An "answer" serves to judge what is made, never to train, but for best-of-n.

Hardware and time: `tiny` 2 CPU cores, 5 minutes (all baselines: 10); `llama3-8b` is for a TPU slice (not timed yet).
Result: accuracy, mean reward of sampled answers and P(right) of the target, of baselines on the same data and of the
policy after each round; in the run folder every stage's JSON-lines file, report.md with the reviser's measures and what
each round kept and revised, and model/. Published, as directions: SEFT above SFT, DPO and ORPO on the same pairs, more
with more prompts. docs/seft.md says how it works, what the miniature shows and how it is set.

Stages: 1 pairs.jsonl, prompts.jsonl  2 warm-up/  3 difficulty.jsonl, adapt.jsonl  4 reviser/  5 held_out.jsonl, which
calibrates the threshold  6 anchors.jsonl, baselines  7 for each round SEFT-N/: drafts, labels, rewards, model/
then answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.order import split
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.models.folder import Model
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs import examining, revising, revision_data
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.evolving import EvolutionSettings
from fusion_jax.runs.page import conduct
from fusion_jax.runs.revising import Pair, Reviser, RevisingSettings
from fusion_jax.runs.revision_data import PAIRED, RevisionSettings
from fusion_jax.runs.rounds import Rounds
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train import fused_objectives, objectives
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(RevisionSettings):
    """A policy, a reviser, pairs for the one and prompts for the other."""

    basic: ClassVar = (
        "target", "reviser", "pairs", "prompts", "test_prompts", "reward_model", "verifier", "accuracy", "out",
        "resume", "seed", "seeds", "baselines", "revising.rules.labels", "revising.preserve", "evolution.rounds",
        "evolution.internal", "evolution.round_prompts", "evolution.drafts.num_samples", "adapt.epochs",
        "adapt.optimizer.learning_rate", "policy.optimizer.learning_rate", "text.tokens.max_length",
    )  # fmt: skip

    out: Folder = "runs/seft"


def training(learning_rate: float, like: TrainSettings, epochs: float = 1.0) -> TrainSettings:
    """AdamW as the specification has it."""
    optimizer = OptimizerSettings(learning_rate, warmup_ratio=0.03, beta2=0.95, weight_decay=0.1)
    return dataclasses.replace(like, optimizer=optimizer, epochs=epochs)


TINY = TrainSettings(
    batch_size=16, micro_batches=1, bucket_window=1, log_every=5, eval_every=10**6, checkpoint_every=100, remat="none"
)
LARGE = TrainSettings(batch_size=128, micro_batches=4)
PRESETS = {
    "tiny": Settings(
        test_per_skill=200, zoo_pairs=1200, own_drafts=0.5, accuracy="fields", eval_samples=2, baselines=PAIRED,
        revising=RevisingSettings(wording="turns", held_out=0.15, preserve=0.5),
        evolution=EvolutionSettings(
            internal=0, round_prompts=1200,
            drafts=SampleSettings(0.9, 0.95, num_samples=1, max_new_tokens=32, batch_size=256),
            revisions=SampleSettings(0.7, 0.9, num_samples=1, max_new_tokens=40, batch_size=256),
        ),
        text=TextSettings(tokens=TokeniseSettings(max_length=192, max_prompt_length=144, eos="if_missing")),
        warm_up=training(1e-3, TINY), adapt=training(5e-4, TINY, epochs=4.0), policy=training(1e-3, TINY),
        sft=training(1e-3, TINY, epochs=3.0), paired=training(1e-4, TINY, epochs=3.0),
    ),
    "llama3-8b": Settings(
        eval_new_tokens=1024, baselines=PAIRED,
        warm_up=training(1e-5, LARGE), adapt=training(1e-5, LARGE), policy=training(5e-6, LARGE),
        sft=training(5e-6, LARGE), paired=training(5e-7, LARGE),
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "SEFT", s, PRESETS, evolve, parts, check=RevisionSettings.check)


def evolve(s: Settings, desk: Desk) -> Measures:
    """The pipeline; the stages stand at the top of this file."""
    tests, judge, how = revision_data.eval_set_of(s), revision_data.judge_of(s, desk, s.adapt), s.evolution
    base, target = desk.load(s.reviser, s.warm_up), desk.load(s.target, s.policy)
    revising.spelling(base.tokenizer, s.text, s.revising.rules)
    pairs = revision_data.pairs_of(s, desk, target)
    prompts = revision_data.prompts_of(s, desk, pairs, tests)
    held, train = split(pairs, s.revising.held_out, s.seed)
    desk.judge("Target", target, tests, made_from=[])
    desk.judge(model_name(s.reviser), base, tests, made_from=[])

    plain, reviser = revisers(s, desk, base, train)
    seen = desk.records("held_out.jsonl", lambda: examining.examined(reviser, held, how.revisions, s.seed, judge))
    found = examining.examination(seen, s.revising.preserve)
    reviser = dataclasses.replace(reviser, threshold=found.threshold)

    stage = Stage("SEFT", "--policy", s.policy, s.text)
    rounds = Rounds(desk, how, stage, tests, target, prompts, judge).anchored_by(reviser)
    rounds.compared_on_pairs(revision_data.on_pairs(s), train)
    others = rounds.compared(s.baselines, base, plain)
    policy, ours = rounds.run("SEFT", rounds.revised_by(reviser))
    desk.export(policy)
    return examining.reported(desk, model_name(s.reviser), ["warm-up", "reviser", *PAIRED], seen, found, ours, others)


def revisers(s: Settings, desk: Desk, base: Model, pairs: Sequence[Pair]) -> tuple[Reviser, Reviser]:
    """Stages 2 to 4: a reviser without labels and, by how hard each pair is for it, the one with labels."""
    asked, read = s.revising, (compute_for(s.adapt), s.adapt.batch_size // s.adapt.micro_batches)
    plain = Reviser(base, None, asked.wording, s.text, *read)
    pairs = revising.fitting_pairs(plain, pairs, desk.counter("warm-up"))
    stage = Stage("warm-up", "--warm-up", s.warm_up, s.text)
    warm = desk.train(stage, base, objectives.sft(), revising.revision_rows(plain, pairs))
    plain = dataclasses.replace(plain, model=warm)
    hard = desk.records("difficulty.jsonl", lambda: revising.difficulty(plain, pairs, asked.difficulty, s.seed))
    reviser = Reviser(base if asked.adapt_from == "base" else warm, asked.rules, asked.wording, s.text, *read)
    counts = desk.counter("labelled drafts")
    found = revising.label_records(pairs, hard, asked.rules, s.seed, counts)
    found = revising.fitting_drafts(reviser, found, counts)
    drafts = desk.records("adapt.jsonl", lambda: found)
    stage = Stage("reviser", "--adapt", s.adapt, s.text)
    data = desk.data(stage, base, revising.label_rows(reviser, drafts))
    data = revising.marked(reviser, drafts, data, counts)
    desk.check_enough(len(data), s.adapt, "--adapt")
    model = desk.train_on(stage, reviser.model, fused_objectives.reviser(asked.label_weight), data)
    return plain, dataclasses.replace(reviser, model=model)


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    return revision_data.planned(s)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
