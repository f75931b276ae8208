"""Compare models' answers by a judge: AlpacaEval 2, Arena-Hard or MT-Bench style, with intervals everywhere.

    python experiments/judge.py                                       # three miniatures, judged by a rule, a CPU
    python experiments/judge.py --preset alpaca --answers base.jsonl mine.jsonl --model JUDGE --out runs/a
    python experiments/judge.py --preset arena --answers base.jsonl a.jsonl b.jsonl --server http://127.0.0.1:8000/v1 \\
        --served NAME --transport.key-variable NAME_OF_A_VARIABLE
    python experiments/judge.py --preset mtbench --questions mt_bench_questions.jsonl --answers mine.jsonl --model JUDGE

alpaca: the judge's probabilities of naming one answer or the other; the win rate, and what it would be at equal lengths
(arXiv 2404.04475). arena: five grades in both orders, Bradley-Terry (arXiv 2406.11939). mtbench: scores from 1 to 10 of
each turn (arXiv 2306.05685). The judge is a model of ours, a server, or without either a rule that knows the answers.

Data: a file of answers a model, {"prompt", "response"}, {"turns", "responses"}, or MT-Bench's own form beside
--questions. docs/judge.md has the forms, the wording of the questions and how to give other words.

Hardware and time: `tiny` 2 CPU cores, 22 s of CPU time, most of it for the miniatures' answers; a judge of billions of
parameters a TPU or GPU (not timed).

Result: report.md with the models' table, and how far the judge can be trusted: whether it agrees with itself
(repeatability, Cohen's kappa) and whether it prefers a place; verdicts.jsonl. Prompts are in this project's words, so
that numbers are not comparable digit for digit with published ones.

Stages: answers/ (of miniatures), replies/ (kept as they come: a run that is killed asks nothing twice), verdicts.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.evals.judging.wording import wording_of
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs.asking import asking_parts
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import conduct
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.verdict_report import report
from fusion_jax.runs.verdicts import JudgeSettings, asked_of, compared_of, verdicts_of


@dataclass(frozen=True)
class Settings(JudgeSettings):
    """Who is compared, by whom, and how the judge is asked."""

    basic: ClassVar = (
        "answers", "baseline", "style", "model", "server", "served", "rule", "questions", "wording", "difficulty",
        "both_orders", "repeat", "temperature", "judge_tokens", "batch_size", "out", "resume", "seed",
        "transport.key_variable", "transport.concurrency",
    )  # fmt: skip

    out: Folder = "runs/judge"


PRESETS = {
    "tiny": Settings(), "alpaca": Settings(style="alpaca"), "arena": Settings(style="arena", judge_tokens=4096),
    "mtbench": Settings(style="mtbench", judge_tokens=2048),
}  # fmt: skip


def main(s: Settings) -> None:
    conduct(__file__, "Answers compared by a judge", s, PRESETS, judge, parts, check=Settings.check)


def judge(s: Settings, desk: Desk) -> Measures:
    """Answers, what the judge is asked of them, its verdicts, and what they amount to."""
    compared = compared_of(s, desk)
    asked = asked_of(s, compared, wording_of(s.style, s.wording))
    return report(s, desk, compared, verdicts_of(s, desk, compared, asked))


def parts(s: Settings) -> list[Part]:
    """What the run computes: the replies of --model."""
    return asking_parts(s, s.decoding(), "verdicts") if s.model else []


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
