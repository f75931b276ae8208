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
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.options import File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling
from fusion_jax.rewards import select
from fusion_jax.rewards.within_source import best_passed
from fusion_jax.runs import preference, source_values
from fusion_jax.runs.checks import check_names
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.page import conduct
from fusion_jax.runs.policy import BASIC, PreferenceSettings
from fusion_jax.runs.preference import Preferences
from fusion_jax.runs.presets import on_skills, published
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import fused_objectives
from fusion_jax.train.fused_objectives import InfifpoSettings
from fusion_jax.train.objectives import PairSettings
from fusion_jax.train.settings import TrainSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """Sources that sample responses and then score what all models wrote; `sample.num_samples` is of each source."""

    basic: ClassVar = (
        *BASIC, "target_samples", "infifpo.loss", "infifpo.beta", "infifpo.fusion", "pair_data", "baseline",
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


LARGE = TokeniseSettings(max_length=4096, max_prompt_length=3072, eos="if_missing")
PRESETS = {
    "tiny": on_skills(Settings(target_samples=5, dpo=PairSettings(beta=0.1))),
    "qwen2.5-14b": published(
        Settings(
            text=TextSettings(ChatSettings(header="prompt"), LARGE),
            sft=TrainSettings(epochs=3.0),
        ),
        rates=(1e-6, 1e-7),
        sample=SampleSettings(top_p=1.0, num_samples=4),
    ),
}


def main(s: Settings) -> None:
    unread = ("sources",) if s.pair_data else ()
    conduct(__file__, "InfiFPO", s, PRESETS, fuse, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file. Ready pairs leave the last two."""
    if s.pair_data:
        kind = "averaged pair" if s.infifpo.length_norm else "summed pair"
        pairs = preference.ready(s, desk, s.pair_data, kind, "pairs")
        pairs = dataclasses.replace(pairs, rows=source_values.read_whole(pairs.policy, pairs.rows))
    else:
        pairs = preferences(s, desk)
    policy, (held, train) = pairs.policy, pairs.policy.split(pairs.rows)
    if s.baseline:
        policy.compared_with_dpo(s.dpo, held, train)
    policy.result(f"{policy.after}InfiFPO", "infifpo", fused_objectives.infifpo(s.infifpo), held, train)
    return policy.reported(("sft", "dpo", "infifpo"), what="preferences", parts=pairs.told)


def preferences(s: Settings, desk: Desk) -> Preferences:
    """Stages 1 to 6: the best and the worst response of any author, scored by every source, and SFT on the best."""
    begun = preference.begin(s, desk, target_asked=["first", "second"])
    scored = begun.responses()
    own = begun.own_responses(begun.policy, begun.prompts, s.target_sampling, made_from=["prompts.jsonl"])
    best = begun.best("best.jsonl", best_passed([*scored, *own], desk.counter("responses")))

    dropped = desk.counter("preference prompts")
    of_sources, own = begun.to_second(scored), begun.to_second(own)
    if s.infifpo.loss == "wrpo":
        found = select.quadruples(best_passed(of_sources, Counter()), select.best_and_worst(own, dropped))
    else:
        everyone = [{**r, "sample": number} for number, r in enumerate([*of_sources, *own])]
        found = select.pairs(select.best_and_worst(everyone, dropped).values())
    pairs = desk.records("pairs.jsonl", lambda: found)
    rows = begun.rows("pairs", pairs, "quad" if s.infifpo.loss == "wrpo" else "pair")
    rows = source_values.read_whole(begun.policy, rows)
    rows = source_values.scored_by_all(begun.policy, rows, length_norm=s.infifpo.length_norm)
    begun.policy.check_enough(len(rows))
    return Preferences(begun.taught(best, made_from="best.jsonl"), pairs, rows, preference.wins(best))


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes: as every fusion through preferences does, and the sources' scoring."""
    objective = fused_objectives.infifpo(s.infifpo)
    last, *others = preference.planned(s, objective, ready=s.pair_data)
    if s.pair_data:
        return [last]
    own = Sampling("sampling the target", s.target, s.target_sampling)
    return [last, *others, own, *source_values.scoring_parts(s, last)]


def check(s: Settings) -> None:
    """Refuse options that do not go together, and names of sources that stand for a model of the report."""
    preference.check_begin(s, (), ready=("pair-data", s.pair_data))
    if not s.pair_data:
        source_values.check_authors(s)
        check_names(s.sources, ("Target", "target", "SFT", "DPO", "InfiFPO", "SFT-DPO", "SFT-InfiFPO"))
    elif s.infifpo.loss == "wrpo":
        cure = "Choose dpo or ipo, or leave --pair-data out"
        raise InputError("learns from quadruples, and --pair-data has pairs", field="--infifpo.loss", cure=cure)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
