"""WRPO (arXiv 2412.03187): fuse several source models into a target through preferences over sampled text.

    python experiments/wrpo.py                                            # built-in miniatures, a CPU, minutes
    python experiments/wrpo.py --preset llama3-8b --target META-LLAMA-3-8B-INSTRUCT \\
        --responses responses.jsonl --reward-model REWARD-MODEL --out runs/a    # ready source responses
    python experiments/wrpo.py --preset llama3-8b --target TARGET-SFT --quadruples quads.jsonl --out runs/b

Data (JSON lines or hf:NAME, docs/data.md): prompts {"prompt", "answer"?}; responses {"prompt", "source_model",
"response", "reward"?, "answer"?}; quadruples {"prompt", "chosen": [source's message or null, target's], "rejected"}.

Hardware and time: `tiny` 2 CPU cores, 3 to 4 minutes; `llama3-8b` is for a TPU slice (not timed yet).
Result: accuracy, mean reward of sampled answers and P(right) of Target, sources, SFT, SFT-continued, SFT-DPO and
SFT-WRPO (without an SFT stage: DPO and WRPO), measured in README.md, "A result"; in the run folder every stage's
JSON-lines file, report.md with plots, and model/, a Hugging Face folder. Published (AlpacaEval-2 length-controlled win
rate): Target 26.0, SFT 27.2, SFT-DPO 50.7, SFT-WRPO 55.9. docs/wrpo.md says when WRPO can gain over DPO.

Stages (each is a file of the run folder; a file that is there is read, not made again; a training goes on from its
last checkpoint):
  1 prompts.jsonl  2, 3 responses/SOURCE.jsonl with rewards  4 best_source.jsonl  5 sft.jsonl  6 sft/
  7, 8 target_responses.jsonl with rewards  9 quadruples.jsonl, forecast.jsonl  10 continued/, dpo/  11 wrpo/
  then answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.options import File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.rewards import select
from fusion_jax.runs import preference
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.forecast import forecast
from fusion_jax.runs.page import conduct
from fusion_jax.runs.policy import BASIC, CONTINUED, PreferenceSettings
from fusion_jax.runs.preference import Preferences
from fusion_jax.runs.presets import on_plants, published
from fusion_jax.runs.seeds import Measures
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.settings import TrainSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """A run can begin later: `responses` skips the sampling of the sources, `quadruples` all before the last stage."""

    basic: ClassVar = (*BASIC, "quadruples", "sft_data", "wrpo.loss", "wrpo.beta", "wrpo.alpha", "baseline")

    out: Folder = "runs/wrpo"
    quadruples: File = ""
    """Ready quadruples, instead of everything before the last stage."""
    sft_data: File = ""
    """Records for the SFT stage of a run that begins with quadruples."""
    source_rank: int = 1
    """Which of the sources' responses to learn from: 1 is the best, 2 the next."""
    pairs: Literal["target", "sources"] = "target"
    """Whose responses are compared: the target's own, or the sources'."""
    tolerance: float = 0.0
    """Best and worst response whose rewards are closer than this are a tie, which is dropped."""
    baseline: bool = True
    """Whether DPO is trained beside WRPO, to compare."""
    continued: bool = False
    """Whether SFT is continued on the sources' responses of the quadruples, for as many epochs, to compare; not where
    they do not fill a batch."""
    wrpo: WrpoSettings = WrpoSettings()
    dpo: PairSettings = PairSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "tolerance", least=0)
        bounded(self, "source_rank", least=1)


PRESETS = {
    "tiny": on_plants(
        Settings(
            continued=True,
            wrpo=WrpoSettings(beta=1.0, alpha=0.6, dynamic=False, sft_weight=0.3),
            dpo=PairSettings(beta=1.0, sft_weight=0.3),
        )
    ),
    "llama3-8b": published(
        Settings(
            text=TextSettings(tokens=TokeniseSettings(truncation="official")),
            sft=TrainSettings(micro_batches=2),
            wrpo=WrpoSettings(beta=0.01, alpha=0.1),
            dpo=PairSettings(beta=0.01),
        ),
        rates=(7e-6, 3e-7),
    ),
}


def main(s: Settings) -> None:
    unread = ("sources",) if s.responses or s.quadruples else ()
    conduct(__file__, "WRPO", s, PRESETS, fuse, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file. Ready quadruples leave the last two."""
    if s.quadruples:
        quads = preference.ready(s, desk, s.quadruples, "quad", "quadruples", s.sft_data)
    else:
        quads = quadruples(s, desk)
    policy, (held, train) = quads.policy, quads.policy.split(quads.rows)
    expected = forecast(desk, policy.stage("wrpo"), policy.model, train, quads.records, s.dpo, s.wrpo)
    if s.continued:
        policy.continued(train)
    if s.baseline:
        policy.compared_with_dpo(s.dpo, held, train)
    policy.result(f"{policy.after}WRPO", "wrpo", objectives.wrpo(s.wrpo), held, train)
    return policy.reported(("sft", "continued", "dpo", "wrpo"), what="quadruples", parts=[*expected, *quads.told])


def quadruples(s: Settings, desk: Desk) -> Preferences:
    """Stages 1 to 9: the best response of a source to each prompt, beside the target's own best and worst one."""
    begun = preference.begin(s, desk, target_asked=["second"] if s.pairs == "target" else [])
    scored = begun.responses()
    best = begun.best("best_source.jsonl", select.best_of(scored, desk.counter("source responses"), seed=s.seed))
    policy = begun.taught(best, made_from="best_source.jsonl")

    counts = desk.counter("preference prompts")
    counts["prompts"] += len(begun.second)
    compared = from_sources = begun.to_second(scored)
    if s.pairs == "target":
        compared = begun.own_responses(policy, begun.second)
    pairs = select.best_and_worst(compared, counts, tolerance=s.tolerance)
    ranked = select.best_of(from_sources, Counter(), rank=s.source_rank, seed=s.seed)
    quads = desk.records("quadruples.jsonl", lambda: select.quadruples(ranked, pairs))
    counts += select.notes(quads) + Counter({"quadruples kept": len(quads)})
    return Preferences(policy, quads, begun.rows("quadruples", quads, "quad"), preference.wins(best))


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes."""
    asked = s.sample if s.pairs == "target" else None
    return preference.planned(s, objectives.wrpo(s.wrpo), ready=s.quadruples, sft_data=s.sft_data, asked=asked)


def check(s: Settings) -> None:
    """Refuse options that do not go together."""
    names = ("Target", "SFT", "DPO", "WRPO", CONTINUED, "SFT-DPO", "SFT-WRPO")
    skipped = {"source-rank": s.source_rank > 1, "pairs": s.pairs != "target"}
    ready = ("quadruples", s.quadruples)
    preference.check_begin(s, names, ready=ready, skipped=skipped, sft_data=s.sft_data)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
