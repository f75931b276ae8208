"""FuseChat-3.0 (arXiv 2503.04222): SFT on the sources' best responses, then DPO on pairs of one source each.

    python experiments/fusechat3.py                                       # built-in miniatures, a CPU, minutes
    python experiments/fusechat3.py --preset llama3.1-8b --target META-LLAMA-3.1-8B-INSTRUCT \\
        --sources GEMMA-2-27B-IT MISTRAL-LARGE QWEN-2.5-72B LLAMA-3.1-70B --source-temperature .8 .8 .7 .8 \\
        --source-top-p .95 .95 .8 .95 --source-repetition-penalty 1 1 1.05 1 \\
        --prompts prompts.jsonl --reward-model ARMORM --check-answers --sft-shares math=0.78 code=0.75 --out runs/a
    python experiments/fusechat3.py --preset llama3.1-8b --target TARGET --sft-data FUSECHAT-SFT.json \\
        --pair-data FUSECHAT-DPO.json --out runs/b                                   # the released records

Data (JSON lines or hf:NAME, docs/data.md): prompts {"prompt", "answer"?, "tests"?, "domain"?}; responses {"prompt",
"source_model", "response", "reward"?, "passed"?}; sft-data {"conversations": [{"from", "value"}]}; pair-data {"prompt",
"chosen", "rejected": messages}.

Hardware and time: `tiny` 2 CPU cores, 3 minutes; the other presets are for TPU slices (not timed yet).
Result: accuracy and mean reward of sampled answers (with --problems plants also P(right)) of Target, sources, SFT and
FuseChat. Published (Llama-3.1-8B, mean of 14 benchmarks): Target 40.5, SFT 43.2, FuseChat 47.3.

Stages (each is a file of the run folder, made once):
  1 prompts.jsonl  2 responses/SOURCE.jsonl with rewards  3 checked.jsonl: whether a checker found them right
  4 sft.jsonl: the best response that passed, of any source
  5 pairs.jsonl: the best and the worst response of one source, a pair a prompt  6 sft/  7 dpo/
  then answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split_by_name
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.rewards.code_tests import CodeLimits, check_worker
from fusion_jax.rewards.passed import checked
from fusion_jax.rewards.verifiers import verifier
from fusion_jax.rewards.within_source import PairRules, best_passed, pairs_within_source, released_pair, released_sft
from fusion_jax.runs import preference
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.domains import data_table, shares_of
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.miniatures import on_skills
from fusion_jax.runs.page import conduct
from fusion_jax.runs.preference import PreferenceSettings
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """Sources, rules for pairs, and a target; `sft_data` and `pair_data` are ready records, instead of sampling."""

    basic: ClassVar = (
        *preference.BASIC, "sft_data", "pair_data", "sft_shares", "check_answers", "code_tests", "rules.least_gap",
        "rules.most_gap", "loss.loss", "loss.beta",
    )  # fmt: skip

    out: Folder = "runs/fusechat3"
    sft_share: float = 0.4
    """Share of the prompts for SFT; the others are for preferences."""
    sft_shares: tuple[str, ...] = ()
    """The share for prompts of some values of "domain" or, without it, "dataset": NAME=SHARE; 1 means SFT alone."""
    sft_data: File = ""
    """Ready records for SFT, beside pair_data."""
    pair_data: File = ""
    """Ready pairs, instead of everything before the training."""
    check_answers: bool = False
    """Whether a response to a prompt with "answer" has to be right to be chosen, and wrong to be rejected."""
    code_tests: bool = False
    """Whether the code of a response to a prompt with "tests" is run, with these, in a process without a network."""
    limits: CodeLimits = CodeLimits()
    rules: PairRules = PairRules()
    loss: PairSettings = PairSettings()


def published(sft_rate: float, rate: float, *, normalised: bool) -> Settings:
    """Sections 6 and 7 of the specification: what differs between the five targets."""
    train = TrainSettings(epochs=3.0, optimizer=OptimizerSettings(learning_rate=sft_rate))
    saved = dataclasses.replace(train, epochs=1.0, checkpoint_every=100, eval_every=100, best_of=2)
    return Settings(
        sample=SampleSettings(),
        eval_new_tokens=2048,
        held_out=0.03,
        text=TextSettings(tokens=TokeniseSettings(eos="if_missing")),
        sft=train,
        preference=dataclasses.replace(saved, optimizer=OptimizerSettings(learning_rate=rate)),
        loss=PairSettings(loss="dpo_norm", beta=10.0) if normalised else PairSettings(beta=0.01),
    )


PRESETS = {
    "tiny": on_skills(
        Settings(rules=PairRules(least_gap=0.25, most_gap=1.0), loss=PairSettings(loss="dpo_norm", beta=1.0))
    ),
    "llama3.1-8b": published(5e-6, 8e-7, normalised=True),
    "qwen2.5-7b": published(2e-6, 3e-7, normalised=False),
    "gemma2-9b": published(2e-6, 5e-7, normalised=False),
    "llama3.2-3b": published(5e-6, 1e-6, normalised=True),
    "llama3.2-1b": published(5e-6, 1e-6, normalised=True),
}
STAGES = ("sft", "dpo")


def main(s: Settings) -> None:
    method = fuse_ready if s.pair_data else fuse
    unread = ("sources",) if s.responses or s.pair_data else ()
    conduct(__file__, "FuseChat-3.0", s, PRESETS, method, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file."""
    begun = preference.begin(s, desk, shares=shares_of(s.sft_shares))
    scored = begun.responses()
    annotated = desk.records("checked.jsonl", lambda: annotate(s, scored))
    best = best_passed(begun.to_first(annotated), desk.counter("responses for SFT"))
    taught = desk.records("sft.jsonl", lambda: map(released_sft, best.values()))
    if begun.first:
        desk.check_enough(len(taught), s.sft, "--sft")
    rules = dataclasses.replace(s.rules, seed=s.seed)
    found = pairs_within_source(begun.to_second(annotated), rules, desk.counter("preference prompts"))
    pairs = desk.records("pairs.jsonl", lambda: [released_pair(*pair) for pair in found])
    desk.check_enough(preference.trained_on(s, len(pairs)), s.preference, "--preference")
    rows = desk.rows("pairs", pairs, "pair", file="pairs.jsonl", on_bad=s.on_bad)
    start = preference.tuned(s, desk, begun.target, taught, tests=begun.tests)
    preferred(s, desk, start, rows, begun.tests)
    return preference.reported(s, desk, STAGES, what="pairs", parts=data_table(annotated, best, pairs))


def fuse_ready(s: Settings, desk: Desk) -> Measures:
    """What is left where the records are given."""
    records = load_records(s.pair_data)
    begun = preference.ready(s, desk, records, "pair", file=s.pair_data, stage="pairs", sft_data=s.sft_data)
    preferred(s, desk, begun.start, begun.rows, begun.tests)
    return preference.reported(s, desk, STAGES, what="pairs")


def annotate(s: Settings, scored: Sequence[Record]) -> list[Record]:
    """The responses with "passed" where a checker looks at them."""
    rule = verifier(s.verifier) if s.check_answers else None
    return checked(scored, rule, s.limits if s.code_tests else None)


def preferred(s: Settings, desk: Desk, start: Model, rows: Sequence[Row], tests: EvalSet) -> None:
    """DPO, of sums or of token means, from the SFT checkpoint; all pairs of a prompt are held out, or none."""
    held, train = split_by_name(rows, s.held_out, s.seed)
    stage = preference.preference_stage(s, "dpo")
    preference.result(desk, "FuseChat", stage, start, objectives.pair(s.loss), train, held, tests=tests)


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes."""
    return preference.planned(s, s.loss.loss, objectives.pair(s.loss), ready=s.pair_data, sft_data=s.sft_data)


def check(s: Settings) -> None:
    """Refuse options that do not go together."""
    shares_of(s.sft_shares)
    ready, names = ("pair-data", s.pair_data), ("Target", "SFT", "FuseChat")
    skipped = {"sft-shares": s.sft_shares, "check-answers": s.check_answers, "code-tests": s.code_tests}
    preference.check_begin(s, names, ready=ready, skipped=skipped, sft_data=s.sft_data)
    if s.code_tests:
        check_worker(s.limits)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
