"""MK-TOD (arXiv 2310.08877): a retriever of entities learns from the responses that a generator makes of them, and the
generator is told what the retriever thinks of each.

    python experiments/mktod.py                                            # miniature, a CPU, minutes
    python experiments/mktod.py --arms no-tags no-mml no-negative prompt ctr full --seeds 5
    python experiments/mktod.py --preset t5-base --generator T5 --retriever BERT --dataset multiwoz \\
        --knowledge all_db.json --entities entities.json --train-turns train.json --validation-turns val.json \\
        --test-turns test.json --out runs/a

For a dialogue so far, a retriever (BERT) ranks the entities of a knowledge base; a generator (T5) reads the context
with each of the best, all together (fusion in decoder), and writes the response. Both learn at once: cross-entropy
given all entities, and the marginal likelihood of the response over the entities one by one, whose gradient pushes up
the scores of those that help. Tags before each entity (tokens or phrases) tell the generator its rank, the retriever's
confidence and whether it was spoken of; or a contrastive loss does instead. In training the worst entity is added as a
negative.

Data: five files in the form of MAKER's; docs/data.md. Hardware and time: `tiny` 2 CPU cores, 5.5 minutes;
`t5-base` and `t5-large` a TPU slice (not timed; --plan estimates). Result: report.md with entity F1, BLEU and
Recall@K of each arm and retriever, examples.html with retrieved entities beside responses; model/generator,
model/retriever. Published: T5-base with a large knowledge base on MultiWOZ, entity F1 50.35 (prefix), 50.69 (prompt),
51.35 (ctr).

Stages: data/, raised/ (the miniature's), retriever/, arms/ARM, answers/ARM.jsonl, chat/FORM.jsonl, model/
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fusion_jax.dialogue.inputs import Lengths
from fusion_jax.options import Folder, ModelPath
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs.aligning import (
    AligningSettings,
    ArmName,
    answered,
    dialogues_of,
    exported,
    jointly,
    models_of,
    plan_parts,
    pretrained,
)
from fusion_jax.runs.chatting import chat_answers
from fusion_jax.runs.checks import check_arms
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.dialogue_report import report
from fusion_jax.runs.page import conduct
from fusion_jax.runs.ranking import rank_tests
from fusion_jax.runs.seeds import Measures
from fusion_jax.train.mktod import MktodSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(AligningSettings):
    """A data set, a generator and a retriever, and which parts of the method are left out beside it."""

    basic: ClassVar = (
        "generator", "retriever", "dataset", "knowledge", "entities", "train_turns", "validation_turns", "test_turns",
        "arms", "chat", "out", "resume", "seed", "seeds", "loss.variant", "loss.top_k", "loss.scale", "loss.beta",
        "loss.tau", "joint.epochs", "joint.optimizer.learning_rate", "joint.batch_size",
    )  # fmt: skip

    out: Folder = "runs/mktod"
    arms: tuple[ArmName, ...] = ("no-mml", "full")
    """What is trained: the whole method (full), the same without one part or with one kind of tag only, or the other
    variants. full or, without it, the last one becomes model/."""
    chat: ModelPath = ""
    """A decoder that answers with the entities of the last arm's retriever, in three forms of tags; without, none."""


def adamw(learning_rate: float, clip: float) -> OptimizerSettings:
    """As published: a linear decay without warm-up."""
    return OptimizerSettings(learning_rate, "linear", warmup_ratio=0.0, weight_decay=0.01, clip_norm=clip)


def training(micro: int) -> TrainSettings:
    """As published, for so many turns of a micro-batch: 64 turns a step, an evaluation every 2,000 micro-batches."""
    every = max(2000 * micro // 64, 1)
    return TrainSettings(
        adamw(1e-4, 0.01), batch_size=64, micro_batches=64 // micro, epochs=9.677, dropout=0.1, best_of=8,
        eval_every=every, checkpoint_every=every, bucket_window=1,
    )  # fmt: skip


PRETRAIN = TrainSettings(adamw(5e-5, 1.0), batch_size=128, micro_batches=1, epochs=10.0, dropout=0.1, bucket_window=1)
SMALL = TrainSettings(
    OptimizerSettings(3e-3, "cosine", warmup_ratio=0.05, beta2=0.98), batch_size=32, micro_batches=1, log_every=10,
    eval_every=10**6, checkpoint_every=200, remat="none", bucket_window=1,
)  # fmt: skip
JOINT = replace(
    SMALL, optimizer=OptimizerSettings(1e-3, "linear", warmup_ratio=0.0, beta2=0.98), eval_every=32,
    checkpoint_every=32, best_of=4, epochs=2.0,
)  # fmt: skip
PRESETS = {
    "tiny": Settings(
        lengths=Lengths(context=72, query=72, entity=32, response=16), projection=32, answer_batch=64,
        loss=MktodSettings(top_k=3, tau=0.2), raising=replace(SMALL, epochs=2.0), joint=JOINT,
        pretrain=replace(SMALL, optimizer=OptimizerSettings(1e-3, "cosine", warmup_ratio=0.1), epochs=3.0),
        retriever_optimizer=OptimizerSettings(1e-3, "linear", warmup_ratio=0.0, beta2=0.98),
    ),
    "t5-base": Settings(
        pretrain=PRETRAIN, joint=training(2), retriever_optimizer=adamw(1e-4, 0.01), loss=MktodSettings(top_k=7),
    ),
    "t5-large": Settings(
        pretrain=PRETRAIN, joint=training(1), retriever_optimizer=adamw(1e-4, 0.01), loss=MktodSettings(top_k=5),
    ),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "MK-TOD", s, PRESETS, align, parts, check=check)


def check(s: Settings) -> None:
    """Refuse what would fail later."""
    s.check()
    check_arms(s.arms)


def align(s: Settings, desk: Desk) -> Measures:
    """The pipeline; the stages stand at the top of this file."""
    data = dialogues_of(s, desk)
    system = pretrained(s, desk, data, models_of(s, desk))
    board = rank_tests(s, desk, data, system)
    result: ArmName = "full" if "full" in s.arms else s.arms[-1]
    for name in (*(arm for arm in s.arms if arm != result), result):
        aligned, reader = jointly(s, desk, name, data, system)
        board.answer(name, answered(desk, name, aligned, reader, data.test))
    if s.chat:
        chat_answers(s, desk, board, s.chat, result)
    exported(desk, aligned, result)
    return report(desk, board, s.arms, result)


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    return plan_parts(s, s.chat)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
