"""InfiFPO (arXiv 2505.13878): preference optimisation whose reference is fused from the sources' sequence log-probs.

    python experiments/infifpo.py                                         # built-in miniatures, a CPU, minutes
    python experiments/infifpo.py --preset qwen2.5-14b --target QWEN2.5-14B-INSTRUCT --prompts prompts.jsonl \\
        --sources MISTRAL-SMALL QWEN2.5-CODER-14B GEMMA-3-12B --reward-model REWARD-MODEL --out runs/a

Data (JSON lines or hf:NAME, docs/data.md): prompts {"prompt", "answer"?}; responses {"prompt", "source_model",
"response", "reward"?, "answer"?}; or ready pairs with the sources' log-probs, as published (--pair-data).

Hardware and time: `tiny` 2 CPU cores, 4 minutes; `qwen2.5-14b` is for a TPU slice (not timed yet).
Result: accuracy and mean reward of sampled answers (with --problems plants also P(right)) of Target, sources, SFT,
SFT-DPO and SFT-InfiFPO. Published (mean of 11 benchmarks): Phi-4 79.95, SFT 81.57, SFT-DPO 82.67, SFT-WRPO 82.80,
SFT-InfiFPO 83.33;
Qwen2.5-14B-Instruct 80.97, SFT-WRPO 83.46, SFT-InfiFPO 84.01.

Stages (each is a file of the run folder, made once):
  1 prompts.jsonl  2 responses/SOURCE.jsonl, target_responses.jsonl with rewards, before SFT
  3 best.jsonl: the best response of any author  4 pairs.jsonl: the best and the worst one, to the second part of the
  prompts  5 values/SOURCE.jsonl: every source's log-probs of these texts in its own tokens, once
  6 sft.jsonl, sft/: on the best responses to the first part  7 dpo/  8 infifpo/
  then answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.data.chat import ChatSettings
from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling, Scoring
from fusion_jax.rewards import select
from fusion_jax.rewards.within_source import best_passed
from fusion_jax.runs import preference, source_values
from fusion_jax.runs.checks import check_names
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.miniatures import on_skills
from fusion_jax.runs.page import conduct
from fusion_jax.runs.preference import Begun, PreferenceSettings
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import fused_objectives
from fusion_jax.train.fused_objectives import InfifpoSettings
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """Sources that sample responses and then score what all models wrote; `sample.num_samples` is of each source."""

    basic: ClassVar = (
        *preference.BASIC, "target_samples", "infifpo.loss", "infifpo.beta", "infifpo.fusion", "pair_data", "baseline",
    )  # fmt: skip

    out: Folder = "runs/infifpo"
    sft_share: float = 0.5
    """Share of the prompts for SFT; the others are for preferences."""
    text: TextSettings = TextSettings(ChatSettings(header="prompt"), TokeniseSettings(eos="if_missing"))
    pair_data: File = ""
    """Ready pairs with fuse_chosen_logps, fuse_rejected_logps and the same with fuse_mean_, a list of one number a
    source; only the preference stage is left, from the target as it is."""
    target_samples: int = 8
    """Responses of the target itself to each prompt."""
    baseline: bool = True
    """Whether DPO is trained on the same pairs, to compare."""
    infifpo: InfifpoSettings = InfifpoSettings()
    dpo: PairSettings = PairSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "target_samples", least=1)

    @property
    def target_sampling(self) -> SampleSettings:
        return dataclasses.replace(self.sample, num_samples=self.target_samples)


TOKENS = TokeniseSettings(max_length=4096, max_prompt_length=3072, eos="if_missing")
PRESETS = {
    "tiny": on_skills(Settings(target_samples=5, dpo=PairSettings(beta=0.1))),
    "qwen2.5-14b": Settings(
        sample=SampleSettings(top_p=1.0, num_samples=4),
        eval_new_tokens=1024,
        held_out=0.03,
        text=TextSettings(ChatSettings(header="prompt"), TOKENS),
        sft=TrainSettings(OptimizerSettings(learning_rate=1e-6), epochs=3.0),
        preference=TrainSettings(OptimizerSettings(learning_rate=1e-7), epochs=1.0),
    ),
}
STAGES = ("sft", "dpo", "infifpo")


def main(s: Settings) -> None:
    method, unread = (fuse_ready, ("sources",)) if s.pair_data else (fuse, ())
    conduct(__file__, "InfiFPO", s, PRESETS, method, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file."""
    begun = preference.begin(s, desk, target_asked=["first", "second"])
    scored = begun.responses()
    sampled = lambda: begun.sources.sampled(begun.target, "target", begun.prompts, s.target_sampling)  # noqa: E731
    own = desk.records("target_responses.jsonl", sampled, made_from=["prompts.jsonl"])
    found = best_passed([*scored, *own], desk.counter("responses"))
    best = {record["prompt_id"]: record for record in desk.records("best.jsonl", found.values)}
    rows = preferences(s, begun, begun.to_second(scored), begun.to_second(own))
    values = source_values.scored_by_all(
        desk, s.sources, rows, preference.preference_stage(s, "infifpo"), s.source_weights
    )
    dropped = desk.counter("preference prompts")
    rows = source_values.with_values(rows, values, length_norm=s.infifpo.length_norm, dropped=dropped)
    parts = preference.held_and_trained(s, desk, rows)
    start = begun.tuned(best, made_from=["best.jsonl"])
    preferred(s, desk, start, *parts, tests=begun.tests, after="SFT-" if begun.first else "")
    return preference.reported(s, desk, STAGES, what="preferences", parts=preference.wins(best))


def fuse_ready(s: Settings, desk: Desk) -> Measures:
    """What is left of the pipeline where the pairs and what sources make of them are given."""
    kind = "averaged pair" if s.infifpo.length_norm else "summed pair"
    records = load_records(s.pair_data)
    begun = preference.ready(s, desk, records, kind, file=s.pair_data, stage="pairs", sft_data="")
    text = preference.preference_stage(s, "pairs").text
    rows = source_values.uncut(begun.rows, begun.start, text, desk.counter("preference prompts"))
    preferred(s, desk, begun.start, *preference.held_and_trained(s, desk, rows), tests=begun.tests, after="")
    return preference.reported(s, desk, STAGES, what="preferences")


def preferences(s: Settings, begun: Begun, of_sources: Sequence[Record], own: Sequence[Record]) -> list[Row]:
    """Pairs of the best and the worst response of any author; for the loss wrpo, quadruples. What the target does not
    read as a whole is left out: every model scores the same text."""
    desk, counts = begun.desk, begun.desk.counter("preference prompts")
    if s.infifpo.loss == "wrpo":
        kind, best, pairs = "quad", best_passed(of_sources, Counter()), select.best_and_worst(own, counts)
        records = desk.records("pairs.jsonl", lambda: select.quadruples(best, pairs))
    else:
        kind, everyone = "pair", [{**r, "sample": number} for number, r in enumerate([*of_sources, *own])]
        pairs = select.best_and_worst(everyone, counts)
        records = desk.records("pairs.jsonl", lambda: select.pairs(pairs.values()))
    desk.check_enough(preference.trained_on(s, len(records)), s.preference, "--preference")
    rows = desk.rows("pairs", records, kind, file="pairs.jsonl", on_bad=s.on_bad)
    return source_values.uncut(rows, begun.target, preference.preference_stage(s, "pairs").text, counts)


def preferred(
    s: Settings, desk: Desk, start: Model, held: list[Row], train: list[Row], *, tests: EvalSet, after: str
) -> None:
    """DPO on the same pairs, to compare, and InfiFPO."""
    if s.baseline:
        preference.compared_with_dpo(s, desk, f"{after}DPO", start, s.dpo, train, held, tests=tests)
    stage, objective = preference.preference_stage(s, "infifpo"), fused_objectives.infifpo(s.infifpo)
    preference.result(desk, f"{after}InfiFPO", stage, start, objective, train, held, tests=tests)


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes: as every fusion through preferences does, and the sources' scoring."""
    objective = fused_objectives.infifpo(s.infifpo)
    last, *others = preference.planned(s, objective.name, objective, ready=s.pair_data)
    if s.pair_data:
        return [last]
    own = Sampling("sampling the target", s.target, s.target_sampling)
    rows, how = len(objective.slots), s.source_weights
    scoring = [Scoring(f"log-probs by {source}", source, rows, last, weights=how) for source in s.sources]
    return [last, *others, own, *scoring]


def check(s: Settings) -> None:
    """Refuse options that do not go together, and names of sources that stand for a model of the report."""
    preference.check_begin(s, (), ready=("pair-data", s.pair_data))
    if not s.pair_data:
        source_values.check_authors(s.responses, s.sources, unnamed=s.sources == Settings().sources, on_bad=s.on_bad)
        check_names(s.sources, ("Target", "target", "SFT", "DPO", "InfiFPO", "SFT-DPO", "SFT-InfiFPO"))
    elif s.infifpo.loss == "wrpo":
        cure = "Choose dpo or ipo, or leave --pair-data out"
        raise InputError("learns from quadruples, and --pair-data has pairs", field="--infifpo.loss", cure=cure)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
