"""FuseRL (arXiv 2504.06562): weighted SFT, then weighted preference optimisation, on all sources' responses.

    python experiments/fuserl.py                                          # built-in miniatures, a CPU, minutes
    python experiments/fuserl.py --preset llama3-8b --target META-LLAMA-3.1-8B-INSTRUCT --sources A B C D \\
        --prompts prompts.jsonl --reward-model ARMORM --out runs/a
    python experiments/fuserl.py --preset llama3-8b ... --fuserl.loss simpo --fuserl.beta 10 \\
        --preference.optimizer.learning-rate 6e-7 --out runs/b

Neither code nor the body of the paper is public: its abstract and its reviews say which responses count and what
weighs them, the equations are this project's (docs/papers.md).

Data (JSON lines or hf:NAME, docs/data.md): prompts {"prompt", "answer"?}; responses {"prompt", "source_model",
"response", "reward"?, "answer"?}.

Hardware and time: `tiny` 2 CPU cores, 3 to 4 minutes; `llama3-8b` is for a TPU slice (not timed yet).
Result: accuracy and mean reward of sampled answers (with --problems plants also P(right)) of Target, sources, SFT (on
the best response alone), FuseSFT and FuseRL. Published (reviews; AlpacaEval-2 win rate): WRPO 74.1, FuseRL at most
71.3.

Stages (each is a file of the run folder, made once):
  1 prompts.jsonl  2 responses/SOURCE.jsonl with rewards
  3 fuse_sft.jsonl: the best responses to each prompt of the first part, with weights  4 sft/, fuse_sft/
  5 fuse_po.jsonl: every source's best and worst response (rloo: all) to each prompt of the second part, with weights
  6 fuse_po/  then answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusion_jax.jsonl import Record
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.rewards import select
from fusion_jax.rewards.weights import WeightRules, weighted_responses, weighted_sources
from fusion_jax.runs import preference, weighted
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.page import conduct
from fusion_jax.runs.policy import BASIC, Policy, PreferenceSettings
from fusion_jax.runs.presets import on_skills, published
from fusion_jax.runs.seeds import Measures
from fusion_jax.train import fused_objectives, objectives
from fusion_jax.train.fused_objectives import FuseRLSettings
from fusion_jax.train.objective import Objective


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """Sources whose responses all count, by their rewards."""

    basic: ClassVar = (
        *BASIC, "weights.select", "weights.count", "weights.temperature", "fuserl.loss", "fuserl.beta",
        "baseline",
    )  # fmt: skip

    out: Folder = "runs/fuserl"
    weights: WeightRules = WeightRules()
    fuserl: FuseRLSettings = FuseRLSettings()
    length_norm: bool = True
    """Whether a response of FuseSFT counts its token mean; else its sum."""
    baseline: bool = True
    """Whether SFT on each prompt's best response alone is trained beside FuseSFT, to compare."""


PRESETS = {
    "tiny": on_skills(Settings(weights=WeightRules(temperature=0.05), fuserl=FuseRLSettings(beta=0.1))),
    "llama3-8b": published(Settings(), rates=(7e-6, 3e-7)),
}


def main(s: Settings) -> None:
    unread = ("sources",) if s.responses else ()
    conduct(__file__, "FuseRL", s, PRESETS, fuse, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """Both stages; they stand at the top of this file."""
    begun = preference.begin(s, desk)
    scored = begun.responses()
    names = select.source_names(scored)
    sft, po = objectives_of(s, len(names))
    samples = s.sample.num_samples if s.fuserl.loss == "rloo" else 0
    dropped = desk.counter("preference prompts")
    found = weighted_sources(begun.to_second(scored), names, s.weights, dropped, samples=samples)
    records = desk.records("fuse_po.jsonl", lambda: found)
    begun.policy.check_enough(len(records))
    chosen = weighted_responses(begun.to_first(scored), s.weights, desk.counter("responses for SFT"))
    taught = desk.records("fuse_sft.jsonl", lambda: chosen)
    policy = tuned(s, begun.policy, sft, taught) if begun.first else begun.policy
    pairs = weighted.source_rows(records, names, len(po.slots) // len(names))
    desk.counts["fuse_po"] = Counter({"used": len(pairs)})
    policy.result("FuseRL", "fuse_po", po, *policy.split(pairs))
    told = weighted.shares(taught, records)
    return policy.reported(("sft", "fuse_sft", "fuse_po"), what="prompts", parts=told)


def tuned(s: Settings, policy: Policy, sft: Objective, taught: Sequence[Record]) -> Policy:
    """FuseSFT and, to compare, SFT on each prompt's best response alone."""
    desk, rows = policy.desk, weighted.response_rows(taught, len(sft.slots))
    desk.counts["fuse_sft"] = Counter({"used": len(rows)})
    desk.check_enough(len(rows), s.sft, "--sft")
    stage = Stage("fuse_sft", "--sft", s.sft, dataclasses.replace(s.text, packing="none"))
    if s.baseline:
        alone, best = dataclasses.replace(stage, name="sft"), weighted.heaviest(rows)
        desk.compared("SFT", alone, policy.model, objectives.sft(), best, tests=policy.tests)
    model = desk.train(stage, policy.model, sft, rows)
    desk.judge("FuseSFT", model, policy.tests)
    return dataclasses.replace(policy, model=model)


def objectives_of(s: Settings, sources: int) -> tuple[Objective, Objective]:
    """FuseSFT and FusePO."""
    responses = s.weights.count if s.weights.select == "top_k" else sources
    sft = fused_objectives.fuse_sft(responses, length_norm=s.length_norm)
    return sft, fused_objectives.fuse_po(s.fuserl, sources, s.sample.num_samples)


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes."""
    sft, po = objectives_of(s, len(s.sources))
    return preference.planned(s, po, sft=sft)


def check(s: Settings) -> None:
    """Refuse names of sources that stand for a model of the report."""
    preference.check_begin(s, ("Target", "SFT", "FuseSFT", "FuseRL"))


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
