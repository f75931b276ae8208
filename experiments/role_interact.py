"""SocialBench (RoleInteract, arXiv 2403.13679): how well a model plays a role, alone and among others.

    python experiments/role_interact.py                                    # a miniature on 20 invented records, a CPU
    python experiments/role_interact.py --baseline oracle --out runs/oracle                  # what knows all answers
    python experiments/role_interact.py --preset published --model FOLDER --out runs/a --files self_awareness.json \\
        emotional_perception.json social_preference.json conversation_memory.json
    python experiments/role_interact.py --preset published --server http://127.0.0.1:8000/v1 --served NAME ...
    python experiments/role_interact.py --rescore runs/a --parser strict --out runs/b ...       # asks nobody

A record becomes one prompt: profiles, a dialogue, and options, or a turn that asks for something said long before.
Letters are read out of the reply, or keywords looked for in it; items give nine scores, and these their mean.

Data: the benchmark's files, which have no licence and are not shipped; without --files, records made for this project.
Prompts are in this project's words, so that scores are not comparable digit for digit with published ones;
--templates FILE takes the benchmark's own words, verified by their hashes. Hardware and time: `tiny` 2 CPU cores,
TIME; real models a TPU or GPU (not timed). Result: report.md and report.json with the nine scores, their mean,
intervals, and what chance gives; rows.jsonl. Expected: the miniature, which has never seen such texts, is at the level
of chance; `--baseline oracle` has 100 everywhere. Published: LLaMA-2-7B-Chat 33.80 to Xingchen-Plus 79.39 on average.

Stages: prompts.jsonl, replies/ (kept as they come: a run that is killed asks nothing twice), rows.jsonl, report.json
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.runs.asking import asking_parts
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import conduct
from fusion_jax.runs.role_interact import RoleSettings, answered, bench_of, prompts_of, speaker_of
from fusion_jax.runs.role_report import report
from fusion_jax.runs.seeds import Measures


@dataclass(frozen=True)
class Settings(RoleSettings):
    """Who plays the roles, the benchmark's files, and how replies are read."""

    basic: ClassVar = (
        "model", "server", "served", "baseline", "files", "templates", "parser", "unparsed", "rescore", "limit",
        "language", "out", "resume", "seed", "seeds", "temperature", "choice_tokens", "memory_tokens", "batch_size",
        "transport.key_variable", "transport.concurrency",
    )  # fmt: skip

    out: Folder = "runs/role_interact"


PRESETS = {"tiny": Settings(window=768, choice_tokens=16, memory_tokens=16, batch_size=8), "published": Settings()}


def main(s: Settings) -> None:
    unread = () if s.asks_model else ("model",)
    conduct(__file__, "SocialBench", s, PRESETS, interact, parts, check=Settings.check, unread=unread)


def interact(s: Settings, desk: Desk) -> Measures:
    """Every record is asked, read and scored; the stages stand at the top of this file."""
    bench, speaker = bench_of(s, desk), speaker_of(s, desk)
    asked = prompts_of(s, desk, bench, speaker)
    return report(s, desk, bench, answered(s, desk, asked, speaker))


def parts(s: Settings) -> list[Part]:
    """What the run computes: replies of --model, of which the longest are to remember something."""
    return asking_parts(s, s.decoding(memory=True), "replies") if s.asks_model else []


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
