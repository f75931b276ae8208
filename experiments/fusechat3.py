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
from fusion_jax.data.order import split_by_name
from fusion_jax.data.tokenise import TokeniseSettings
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
from fusion_jax.runs.page import conduct
from fusion_jax.runs.policy import BASIC, PreferenceSettings
from fusion_jax.runs.preference import Preferences
from fusion_jax.runs.presets import on_skills, published
from fusion_jax.runs.seeds import Measures
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """Sources, rules for pairs, and a target; `sft_data` and `pair_data` are ready records, instead of sampling."""

    basic: ClassVar = (
        *BASIC, "sft_data", "pair_data", "sft_shares", "check_answers", "code_tests", "rules.least_gap",
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


LARGE = Settings(
    text=TextSettings(tokens=TokeniseSettings(eos="if_missing")),
    sft=TrainSettings(epochs=3.0),
    preference=TrainSettings(checkpoint_every=100, eval_every=100, best_of=2),
    loss=PairSettings(beta=0.01),
)
LLAMA = dataclasses.replace(LARGE, loss=PairSettings(loss="dpo_norm", beta=10.0))
TINY = Settings(rules=PairRules(least_gap=0.25, most_gap=1.0), loss=PairSettings(loss="dpo_norm", beta=1.0))
PRESETS = {
    "tiny": on_skills(TINY),
    "llama3.1-8b": published(LLAMA, rates=(5e-6, 8e-7), new_tokens=2048),
    "qwen2.5-7b": published(LARGE, rates=(2e-6, 3e-7), new_tokens=2048),
    "gemma2-9b": published(LARGE, rates=(2e-6, 5e-7), new_tokens=2048),
    "llama3.2-3b": published(LLAMA, rates=(5e-6, 1e-6), new_tokens=2048),
    "llama3.2-1b": published(LLAMA, rates=(5e-6, 1e-6), new_tokens=2048),
}


def main(s: Settings) -> None:
    unread = ("sources",) if s.responses or s.pair_data else ()
    conduct(__file__, "FuseChat-3.0", s, PRESETS, fuse, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file. Ready pairs leave the last two."""
    made = preference.ready(s, desk, s.pair_data, "pair", "pairs", s.sft_data) if s.pair_data else pairs(s, desk)
    held, train = split_by_name(made.rows, s.held_out, s.seed)  # all pairs of a prompt are held out, or none
    made.policy.result("FuseChat", "dpo", objectives.pair(s.loss), held, train)
    return made.policy.reported(("sft", "dpo"), what="pairs", parts=made.told)


def pairs(s: Settings, desk: Desk) -> Preferences:
    """Stages 1 to 6: SFT on the best responses, and of every prompt the best and the worst response of one source."""
    begun = preference.begin(s, desk, shares=shares_of(s.sft_shares))
    scored = begun.responses()
    rule, limits = verifier(s.verifier) if s.check_answers else None, s.limits if s.code_tests else None
    annotated = desk.records("checked.jsonl", lambda: checked(scored, rule, limits))
    best = best_passed(begun.to_first(annotated), desk.counter("responses for SFT"))
    taught = desk.records("sft.jsonl", lambda: map(released_sft, best.values()))
    if begun.first:
        desk.check_enough(len(taught), s.sft, "--sft")
    rules = dataclasses.replace(s.rules, seed=s.seed)
    found = pairs_within_source(begun.to_second(annotated), rules, desk.counter("preference prompts"))
    records = desk.records("pairs.jsonl", lambda: [released_pair(*pair) for pair in found])
    rows = begun.rows("pairs", records, "pair")
    return Preferences(begun.tuned(taught), records, rows, data_table(annotated, best, records))


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes."""
    return preference.planned(s, objectives.pair(s.loss), ready=s.pair_data, sft_data=s.sft_data)


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
