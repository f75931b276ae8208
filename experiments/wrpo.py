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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split, split_sizes
from fusion_jax.data.records import Row, parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.parts import Part, Sampling, Training
from fusion_jax.plan.programs import Start
from fusion_jax.rewards import select
from fusion_jax.runs.checks import check_names, model_name
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.forecast import forecast
from fusion_jax.runs.judging import EvalSet
from fusion_jax.runs.page import conduct
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.sources import Sources, SourceSettings, eval_set_of, source_parts
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings


@dataclass(frozen=True)
class Settings(SourceSettings):
    """A run can begin later: `responses` skips the sampling of the sources, `quadruples` all before the last stage."""

    basic: ClassVar = (
        "target", "sources", "prompts", "test_prompts", "responses", "quadruples", "sft_data", "out", "resume", "seed",
        "seeds", "reward_model", "verifier", "accuracy", "sample.num_samples", "text.tokens.max_length", "sft_share",
        "sft.epochs", "sft.optimizer.learning_rate", "preference.epochs", "preference.batch_size",
        "preference.optimizer.learning_rate", "wrpo.loss", "wrpo.beta", "wrpo.alpha", "baseline",
    )  # fmt: skip

    out: Folder = "runs/wrpo"
    quadruples: File = ""
    """Ready quadruples, instead of everything before the last stage."""
    sft_data: File = ""
    """Records for the SFT stage of a run that begins with quadruples."""
    source_rank: int = 1
    """Which of the sources' responses to learn from: 1 is the best, 2 the next."""
    pairs: Literal["target", "sources"] = "target"
    """Whose responses are compared: the target's own, or the sources'."""
    sft_share: float = 1 / 3
    """Share of the prompts for SFT; the others are for preferences."""
    held_out: float = 0.1
    """Share of the quadruples that is kept for evaluation."""
    tolerance: float = 0.0
    """Best and worst response whose rewards are closer than this are a tie, which is dropped."""
    baseline: bool = True
    """Whether DPO is trained beside WRPO, to compare."""
    continued: bool = False
    """Whether SFT is continued on the sources' responses of the quadruples, for as many epochs, to compare; not where
    they do not fill a batch."""
    text: TextSettings = TextSettings()
    sft: TrainSettings = TrainSettings()
    preference: TrainSettings = TrainSettings()
    wrpo: WrpoSettings = WrpoSettings()
    dpo: PairSettings = PairSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "sft_share", "held_out", least=0, below=1)
        bounded(self, "tolerance", least=0)
        bounded(self, "source_rank", least=1)


TINY_TRAINING = TrainSettings(
    batch_size=16, micro_batches=1, log_every=5, eval_every=100, checkpoint_every=100, remat="dots", mesh_fsdp=-1
)
PRESETS = {
    "tiny": Settings(
        target="zoo:plants-target",
        sources=("zoo:plants-llama", "zoo:plants-qwen", "zoo:plants-gemma"),
        problems="plants",
        prompts_per_skill=5400,
        test_per_skill=400,
        verifier="fields",
        accuracy="fields",
        sft_share=400 / 5400,
        eval_samples=2,
        held_out=0.03,
        continued=True,
        text=TextSettings(tokens=TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")),
        sample=SampleSettings(max_new_tokens=28, batch_size=256),
        sft=dataclasses.replace(TINY_TRAINING, epochs=3.0, optimizer=OptimizerSettings(learning_rate=1e-3)),
        preference=dataclasses.replace(TINY_TRAINING, epochs=1.0, optimizer=OptimizerSettings(learning_rate=6e-4)),
        wrpo=WrpoSettings(beta=1.0, alpha=0.6, dynamic=False),
        dpo=PairSettings(beta=0.3),
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


class Quads(NamedTuple):
    """Quadruples as records, which may have rewards, and as rows."""

    records: Sequence[Record]
    rows: Sequence[Row]


def main(s: Settings) -> None:
    conduct(__file__, "WRPO", s, PRESETS, fuse_ready if s.quadruples else fuse, parts, check=check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file."""
    tests = eval_set_of(s, own_data=bool(s.prompts or s.responses))
    sources = Sources(s, desk, tests, s.preference)
    given = sources.given()
    prompts = desk.records("prompts.jsonl", lambda: enough(s, desk, sources.prompts(given)))
    first, second = split(prompts, s.sft_share, s.seed)
    sources.check_prompts(prompts, second if s.pairs == "target" else ())
    target = desk.target(s.target, s.preference, tests, prompts=[prompt["prompt"] for prompt in prompts])

    scored = sources.responses(prompts, given)
    found = select.best_of(scored, desk.counter("source responses"), seed=s.seed)
    best = {record["prompt_id"]: record for record in desk.records("best_source.jsonl", found.values)}
    taught = desk.records(
        "sft.jsonl", lambda: [best[p["prompt_id"]] for p in first if p["prompt_id"] in best],
        made_from=["prompts.jsonl", "best_source.jsonl"],
    )  # fmt: skip
    if first and not taught:
        desk.check_enough(0, s.sft, "--sft")
    start = tuned(s, desk, target, taught, "sft.jsonl", tests)
    quads = preferences(s, sources, start, scored, second)
    expected = preferred(s, desk, start, quads, tests, after="SFT-" if taught else "")
    return reported(s, desk, [*expected, *wins(best)])


def fuse_ready(s: Settings, desk: Desk) -> Measures:
    """What is left of the pipeline where the quadruples are given: SFT on the user's records, if any, and WRPO."""
    tests = eval_set_of(s, own_data=True)
    records = load_records(s.quadruples)
    quads = Quads(records, desk.rows("quadruples", records, "quad", file=s.quadruples, on_bad=s.on_bad))
    desk.check_enough(trained_on(s, len(quads.rows)), s.preference, "--preference")
    taught = load_records(s.sft_data) if s.sft_data else []
    if s.sft_data:
        parse_rows(taught, "sft", file=s.sft_data, on_bad=s.on_bad)
    Sources(s, desk, tests, s.preference).check_prompts((), ())
    target = desk.target(s.target, s.preference, tests, prompts=[row.messages[-1]["content"] for row in quads.rows])
    start = tuned(s, desk, target, taught, s.sft_data, tests)
    return reported(s, desk, preferred(s, desk, start, quads, tests, after="SFT-" if taught else ""))


def enough(s: Settings, desk: Desk, prompts: list[Record]) -> list[Record]:
    """The prompts, if they are enough for both stages."""
    first, second = split_sizes(len(prompts), s.sft_share)
    if first and s.text.packing == "none":
        desk.check_enough(first, s.sft, "--sft", counts=False)
    desk.check_enough(trained_on(s, second), s.preference, "--preference", counts=False)
    return prompts


def tuned(s: Settings, desk: Desk, target: Model, taught: Sequence[Record], file: str, tests: EvalSet) -> Model:
    """Stages 5 and 6: the target after SFT on the best source responses; as it is without them."""
    if not taught:
        return target
    rows = desk.rows("sft", taught, "sft", file=file, on_bad=s.on_bad)
    model = desk.train(Stage("sft", "--sft", s.sft, s.text), target, objectives.sft(), rows)
    desk.judge("SFT", model, tests)
    return model


def preferences(
    s: Settings, sources: Sources, start: Model, scored: Sequence[Record], prompts: Sequence[Record]
) -> Quads:
    """Stages 7 to 9: the best and the worst response to each prompt, beside the one that a source wrote."""
    desk = sources.desk
    counts = desk.counter("preference prompts")
    counts["prompts"] += len(prompts)
    asked = {prompt["prompt_id"] for prompt in prompts}
    compared = from_sources = [r for r in scored if r["prompt_id"] in asked]
    if s.pairs == "target":
        compared = desk.records("target_responses.jsonl", lambda: sources.sampled(start, "target", prompts))
    pairs = select.best_and_worst(compared, counts, tolerance=s.tolerance)
    best = select.best_of(from_sources, Counter(), rank=s.source_rank, seed=s.seed)
    quads = desk.records("quadruples.jsonl", lambda: select.quadruples(best, pairs))
    counts += select.notes(quads) + Counter({"quadruples kept": len(quads)})
    desk.check_enough(trained_on(s, len(quads)), s.preference, "--preference")
    return Quads(quads, desk.rows("quadruples", quads, "quad", file="quadruples.jsonl", on_bad=s.on_bad))


def preferred(s: Settings, desk: Desk, start: Model, quads: Quads, tests: EvalSet, *, after: str) -> list[str]:
    """Stages 10 and 11: WRPO and, to compare, SFT on the sources' responses and DPO on the target's own two.

    Returns what could be expected of it, for the report.
    """
    held, train = split(quads.rows, s.held_out, s.seed)
    text = dataclasses.replace(s.text, packing="none")  # packing is for SFT alone
    stage = Stage("wrpo", "--preference", s.preference, text)
    expected = forecast(desk, stage, start, train, quads.records, s.dpo, s.wrpo)
    learnt = of_sources(train)
    if s.continued and len(learnt) >= s.preference.batch_size:
        longer = dataclasses.replace(s.preference, optimizer=s.sft.optimizer)
        more = Stage("continued", "--preference", longer, text, leaf=True)
        desk.judge(CONTINUED, desk.train(more, start, objectives.sft(), learnt), tests, made_from=["continued/model"])
    if s.baseline:
        alone = dataclasses.replace(stage, name="dpo", leaf=True)
        baseline = desk.train(alone, start, objectives.pair(s.dpo), on_policy(train), on_policy(held))
        desk.judge(f"{after}DPO", baseline, tests, made_from=["dpo/model"])
    fused = desk.train(stage, start, objectives.wrpo(s.wrpo), train, held)
    desk.judge(f"{after}WRPO", fused, tests)
    desk.export(fused, made_from=["wrpo/model"])
    return expected


def reported(s: Settings, desk: Desk, parts: Sequence[str] = ()) -> Measures:
    """report.md, and the accuracy of every model."""
    used, sources = desk.counts["wrpo"]["used"], [model_name(source) for source in s.sources]
    result = f"The model is trained on {used} quadruples; without --test-prompts nothing is judged."
    desk.report(("sft", "continued", "dpo", "wrpo"), sources, target="Target", result=result, parts=parts)
    return desk.measures()


def trained_on(s: Settings, quads: int) -> int:
    """How many of the quadruples are not held out."""
    return split_sizes(quads, s.held_out)[1]


def of_sources(quads: Sequence[Row]) -> list[Row]:
    """The sources' responses, where there are any."""
    return [Row(q.name, q.messages, q.responses[:1]) for q in quads if q.responses[0] is not None]


def on_policy(quads: Sequence[Row]) -> list[Row]:
    """The target's own two responses."""
    return [Row(q.name, q.messages, q.responses[1:]) for q in quads]


def wins(best: Mapping[str, Record]) -> list[str]:
    """Who wrote the best source response, for the report."""
    shares = [{"source": name, "share": f"{share:.3f}"} for name, share in select.wins(best).items()]
    return ["## Who wrote the best source response", markdown_table(shares)] if shares else []


def parts(s: Settings) -> list[Part]:
    """What the run computes. A plan covers SFT, sampling the target and WRPO; not what is there to compare, which takes
    no more, nor the sources' sampling."""
    first = 0.0 if s.quadruples else s.sft_share
    start: Start = "float32" if first or s.sft_data else "bfloat16"  # of weights behind a training, of a folder's
    length = s.text.tokens.max_length

    def compared(prompts: int) -> int:
        return split_sizes(prompts, first)[1]

    out: list[Part] = [Training(
        s.wrpo.loss, s.target, objectives.wrpo(s.wrpo), s.preference, length, "--preference", start=start,
        records=lambda prompts: trained_on(s, compared(prompts)),
    )]  # fmt: skip
    if first or s.sft_data:
        out.append(Training(
            "SFT", s.target, objectives.sft(), s.sft, length, "--sft", packing=s.text.packing,
            records=lambda prompts: split_sizes(prompts, first or 1.0)[0],
        ))  # fmt: skip
    if not s.quadruples:
        out += source_parts(s, s.preference, "--preference")
    if not s.quadruples and s.pairs == "target":
        out.append(Sampling("sampling the target", s.target, s.sample, records=compared, kept=start))
    return out


def unread(s: Settings) -> tuple[str, ...]:
    """Options of models that this run does not load: with ready responses the sources' folders need not exist."""
    return ("sources",) if s.responses or s.quadruples else ()


def check(s: Settings) -> None:
    """Refuse options that do not go together."""
    skipped = {
        "responses": s.responses, "prompts": s.prompts, "reward-model": s.reward_model,
        "source-rank": s.source_rank > 1, "pairs": s.pairs != "target",
    }  # fmt: skip
    for option, given in skipped.items():
        if s.quadruples and given:
            problem = "belongs to a stage that --quadruples skips"
            raise InputError(problem, field=f"--{option}", cure="Leave one of the two out")
    if s.sft_data and not s.quadruples:
        problem = "belongs to --quadruples; else SFT learns the best source responses"
        raise InputError(problem, field="--sft-data", cure="Leave it out, or train on it first with experiments/sft.py")
    if not (s.quadruples or s.responses):
        check_names(s.sources, ("Target", "SFT", "DPO", "WRPO", CONTINUED, "SFT-DPO", "SFT-WRPO"))


if __name__ == "__main__":
    run_experiment(Settings, main, parts, presets=PRESETS, description=__doc__)
