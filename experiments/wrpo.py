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

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.rewards import select
from fusion_jax.runs import preference
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.forecast import forecast
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.miniatures import on_plants
from fusion_jax.runs.page import conduct
from fusion_jax.runs.preference import Begun, PreferenceSettings
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """A run can begin later: `responses` skips the sampling of the sources, `quadruples` all before the last stage."""

    basic: ClassVar = (*preference.BASIC, "quadruples", "sft_data", "wrpo.loss", "wrpo.beta", "wrpo.alpha", "baseline")

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
    "llama3-8b": Settings(
        text=TextSettings(tokens=TokeniseSettings(truncation="official")),
        sample=SampleSettings(),
        eval_new_tokens=1024,
        held_out=0.03,
        sft=TrainSettings(optimizer=OptimizerSettings(learning_rate=7e-6), micro_batches=2),
        preference=TrainSettings(optimizer=OptimizerSettings(learning_rate=3e-7)),
        wrpo=WrpoSettings(beta=0.01, alpha=0.1),
        dpo=PairSettings(beta=0.01),
    ),
}
CONTINUED = "SFT-continued"
STAGES = ("sft", "continued", "dpo", "wrpo")


class Quads(NamedTuple):
    """Quadruples as records, which may have rewards, and as rows."""

    records: Sequence[Record]
    rows: Sequence[Row]


def main(s: Settings) -> None:
    method = fuse_ready if s.quadruples else fuse
    unread = ("sources",) if s.responses or s.quadruples else ()
    conduct(__file__, "WRPO", s, PRESETS, method, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file."""
    begun = preference.begin(s, desk, target_asked=["second"] if s.pairs == "target" else [])
    scored = begun.responses()
    found = select.best_of(scored, desk.counter("source responses"), seed=s.seed)
    best = {record["prompt_id"]: record for record in desk.records("best_source.jsonl", found.values)}
    start = begun.tuned(best, made_from=["best_source.jsonl"])
    quads = quadruples(s, begun, start, scored)
    expected = preferred(s, desk, start, quads, begun.tests, after="SFT-" if begun.first else "")
    return preference.reported(s, desk, STAGES, what="quadruples", parts=[*expected, *preference.wins(best)])


def fuse_ready(s: Settings, desk: Desk) -> Measures:
    """What is left of the pipeline where the quadruples are given: SFT on the user's records, if any, and WRPO."""
    records = load_records(s.quadruples)
    begun = preference.ready(s, desk, records, "quad", file=s.quadruples, stage="quadruples", sft_data=s.sft_data)
    quads, after = Quads(records, begun.rows), "SFT-" if begun.tuned else ""
    expected = preferred(s, desk, begun.start, quads, begun.tests, after=after)
    return preference.reported(s, desk, STAGES, what="quadruples", parts=expected)


def quadruples(s: Settings, begun: Begun, start: Model, scored: Sequence[Record]) -> Quads:
    """Stages 7 to 9: the best and the worst response to each prompt, beside the one that a source wrote."""
    desk, counts = begun.desk, begun.desk.counter("preference prompts")
    counts["prompts"] += len(begun.second)
    compared = from_sources = begun.to_second(scored)
    if s.pairs == "target":
        sampled = lambda: begun.sources.sampled(start, "target", begun.second)  # noqa: E731
        compared = desk.records("target_responses.jsonl", sampled)
    pairs = select.best_and_worst(compared, counts, tolerance=s.tolerance)
    best = select.best_of(from_sources, Counter(), rank=s.source_rank, seed=s.seed)
    quads = desk.records("quadruples.jsonl", lambda: select.quadruples(best, pairs))
    counts += select.notes(quads) + Counter({"quadruples kept": len(quads)})
    desk.check_enough(preference.trained_on(s, len(quads)), s.preference, "--preference")
    return Quads(quads, desk.rows("quadruples", quads, "quad", file="quadruples.jsonl", on_bad=s.on_bad))


def preferred(s: Settings, desk: Desk, start: Model, quads: Quads, tests: EvalSet, *, after: str) -> list[str]:
    """Stages 10 and 11: WRPO and, to compare, SFT on the sources' responses and DPO on the target's own two.

    Returns what could be expected of it, for the report.
    """
    held, train = preference.held_and_trained(s, desk, quads.rows)
    stage = preference.preference_stage(s, "wrpo")
    expected = forecast(desk, stage, start, train, quads.records, s.dpo, s.wrpo)
    learnt = of_sources(train)
    if s.continued and len(learnt) >= s.preference.batch_size:
        longer = dataclasses.replace(s.preference, optimizer=s.sft.optimizer)
        more = dataclasses.replace(stage, name="continued", settings=longer)
        preference.compared(desk, CONTINUED, more, start, objectives.sft(), learnt, tests=tests)
    if s.baseline:
        preference.compared_with_dpo(s, desk, f"{after}DPO", start, s.dpo, train, held, tests=tests)
    preference.result(desk, f"{after}WRPO", stage, start, objectives.wrpo(s.wrpo), train, held, tests=tests)
    return expected


def of_sources(quads: Sequence[Row]) -> list[Row]:
    """The sources' responses, where there are any."""
    return [Row(q.name, q.messages, q.responses[:1]) for q in quads if q.responses[0] is not None]


def parts(s: Settings) -> Sequence[Part]:
    """What the run computes."""
    asked = s.sample if s.pairs == "target" else None
    return preference.planned(
        s, s.wrpo.loss, objectives.wrpo(s.wrpo), ready=s.quadruples, sft_data=s.sft_data, asked=asked
    )


def check(s: Settings) -> None:
    """Refuse options that do not go together."""
    names = ("Target", "SFT", "DPO", "WRPO", CONTINUED, "SFT-DPO", "SFT-WRPO")
    skipped = {"source-rank": s.source_rank > 1, "pairs": s.pairs != "target"}
    ready = ("quadruples", s.quadruples)
    preference.check_begin(s, names, ready=ready, skipped=skipped, sft_data=s.sft_data)


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
