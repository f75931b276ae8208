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

from fusion_jax.data.order import split
from fusion_jax.data.records import Row
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.options import Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part
from fusion_jax.rewards import select
from fusion_jax.rewards.weights import WeightRules, weighted_responses, weighted_sources
from fusion_jax.runs import preference
from fusion_jax.runs.checks import check_names
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.page import conduct
from fusion_jax.runs.preference import Begun, PreferenceSettings
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.train import fused_objectives, objectives
from fusion_jax.train.fused_objectives import FuseRLSettings
from fusion_jax.train.objective import Objective
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(PreferenceSettings):
    """Sources whose responses all count, by their rewards."""

    basic: ClassVar = (
        *preference.BASIC, "weights.select", "weights.count", "weights.temperature", "fuserl.loss", "fuserl.beta",
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
    "tiny": preference.on_skills(Settings(weights=WeightRules(temperature=0.05), fuserl=FuseRLSettings(beta=0.1))),
    "llama3-8b": Settings(
        sample=SampleSettings(),
        eval_new_tokens=1024,
        held_out=0.03,
        sft=TrainSettings(optimizer=OptimizerSettings(learning_rate=7e-6)),
        preference=TrainSettings(optimizer=OptimizerSettings(learning_rate=3e-7)),
    ),
}
STAGES = ("sft", "fuse_sft", "fuse_po")


def main(s: Settings) -> None:
    conduct(__file__, "FuseRL", s, PRESETS, fuse, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """Both stages; they stand at the top of this file."""
    begun = preference.begin(s, desk)
    scored = begun.responses()
    names = select.source_names(scored)
    sft, po = objectives_of(s, len(names))
    dropped = desk.counter("preference prompts")
    samples = s.sample.num_samples if s.fuserl.loss == "rloo" else 0
    found = weighted_sources(begun.to_second(scored), names, s.weights, dropped, samples=samples)
    records = desk.records("fuse_po.jsonl", lambda: found)
    desk.check_enough(preference.trained_on(s, len(records)), s.preference, "--preference")
    chosen = weighted_responses(begun.to_first(scored), s.weights, desk.counter("responses for SFT"))
    taught = desk.records("fuse_sft.jsonl", lambda: chosen)
    start = tuned(s, begun, sft, several(desk, "fuse_sft", taught, len(sft.slots))) if begun.first else begun.target
    pairs = of_sources(records, names, len(po.slots) // len(names))
    desk.counts["fuse_po"] = Counter({"used": len(pairs)})
    held, train = split(pairs, s.held_out, s.seed)
    fused = desk.train(preference.preference_stage(s, "fuse_po"), start, po, train, held)
    desk.judge("FuseRL", fused, begun.tests)
    desk.export(fused, made_from=["fuse_po/model"])
    return preference.reported(s, desk, STAGES, what="prompts", parts=shares(taught, records))


def tuned(s: Settings, begun: Begun, sft: Objective, rows: Sequence[Row]) -> Model:
    """FuseSFT and, to compare, SFT on each prompt's best response alone."""
    desk, start = begun.desk, begun.target
    desk.check_enough(len(rows), s.sft, "--sft")
    stage = Stage("fuse_sft", "--sft", s.sft, dataclasses.replace(s.text, packing="none"))
    if s.baseline:
        best = [Row(row.name, row.messages, (row.responses[heaviest(row)],)) for row in rows]
        alone = dataclasses.replace(stage, name="sft")
        preference.compared(desk, "SFT", alone, start, objectives.sft(), best, tests=begun.tests)
    model = desk.train(stage, start, sft, rows)
    desk.judge("FuseSFT", model, begun.tests)
    return model


def objectives_of(s: Settings, sources: int) -> tuple[Objective, Objective]:
    """FuseSFT and FusePO."""
    responses = s.weights.count if s.weights.select == "top_k" else sources
    sft = fused_objectives.fuse_sft(responses, length_norm=s.length_norm)
    return sft, fused_objectives.fuse_po(s.fuserl, sources, s.sample.num_samples)


def several(desk: Desk, stage: str, records: Sequence[Record], most: int) -> list[Row]:
    """Rows of up to `most` responses, each with its weight."""
    desk.counts[stage] = Counter({"used": len(records)})
    return [
        Row(
            record["prompt_id"],
            ({"role": "user", "content": record["prompt"]},),
            (*record["responses"], *[None] * (most - len(record["responses"]))),
            (*((weight,) for weight in record["weights"]), *[(0.0,)] * (most - len(record["responses"]))),
        )
        for record in records
    ]


def heaviest(row: Row) -> int:
    """The place of the response with the largest weight, which is the best one."""
    return max(range(len(row.values)), key=lambda place: row.values[place])


def of_sources(records: Sequence[Record], sources: Sequence[str], each: int) -> list[Row]:
    """Rows of `each` responses of every source with (weight, advantage); absent ones have weight 0."""
    rows = []
    for record in records:
        entries = {entry["source_model"]: entry for entry in record["sources"]}
        responses, values = list[str | None](), list[tuple[float, float]]()
        for source in sources:
            entry = entries.get(source, {"responses": [None] * each, "weight": 0.0})
            responses += entry["responses"]
            values += [(entry["weight"], advantage) for advantage in entry.get("advantages", [0.0] * each)]
        messages = ({"role": "user", "content": record["prompt"]},)
        rows.append(Row(record["prompt_id"], messages, tuple(responses), tuple(values)))
    return rows


def shares(taught: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """How much each source weighs in both stages, for the report."""
    weights: dict[str, Counter[str]] = {"FuseSFT": Counter(), "FusePO": Counter()}
    for record in taught:
        for name, weight in zip(record["source_models"], record["weights"], strict=True):
            weights["FuseSFT"][name] += weight / len(taught)
    for record in records:
        for entry in record["sources"]:
            weights["FusePO"][entry["source_model"]] += entry["weight"] / len(records)
    names = sorted(weights["FuseSFT"] | weights["FusePO"])
    table = [{"source": n, **{stage: f"{found[n]:.3f}" for stage, found in weights.items()}} for n in names]
    return ["## Mean weight of each source", markdown_table(table)] if table else []


def parts(s: Settings) -> list[Part]:
    """What the run computes."""
    sft, po = objectives_of(s, len(s.sources))
    last = preference.preference_part(s, po.name, po, share=s.sft_share, tuned=s.sft_share > 0)
    return preference.preference_parts(s, last, sft=sft)


def unread(s: Settings) -> tuple[str, ...]:
    """Options of models that this run does not load."""
    return ("sources",) if s.responses else ()


def check(s: Settings) -> None:
    """Refuse names of sources that stand for a model of the report."""
    if not s.responses:
        check_names(s.sources, ("Target", "SFT", "FuseSFT", "FuseRL"))


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
