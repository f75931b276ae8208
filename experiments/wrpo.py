"""WRPO (arXiv 2412.03187): fuse several source models into a target through preferences over sampled text.

    python experiments/wrpo.py                                            # built-in miniatures, a CPU, minutes
    python experiments/wrpo.py --preset llama3-8b --target META-LLAMA-3-8B-INSTRUCT \\
        --responses responses.jsonl --reward-model REWARD-MODEL --out runs/a    # ready source responses
    python experiments/wrpo.py --preset llama3-8b --target TARGET-SFT --quadruples quads.jsonl --out runs/b

Hardware and time: `tiny` 2 CPU cores, about 80 s, 1.4 GB; `llama3-8b` is for a TPU slice (not timed yet).
Result: a table of the accuracy of Target, sources, SFT, SFT-DPO and SFT-WRPO (without an SFT stage: DPO and WRPO); in
the run folder every stage's JSON-lines file, report.md with plots, and model/, a Hugging Face folder. Published
(AlpacaEval-2 length-controlled win rate): Target 26.0, SFT 27.2, SFT-DPO 50.7, SFT-WRPO 55.9.

Stages (each is a file of the run folder; a file that is there is read, not made again):
  prompts.jsonl, responses/SOURCE.jsonl, best_source.jsonl, sft.jsonl, sft/, target_responses.jsonl,
  quadruples.jsonl, dpo/, wrpo/, answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fusion_jax.data.examples import TextSettings
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split_indices
from fusion_jax.data.records import OnBad, Row, parse_responses, parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import Model
from fusion_jax.options import File, Folder, ModelPath, Models, RewardModel
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.programs import Start
from fusion_jax.plan.runs import Ask, Planned, generation, training
from fusion_jax.rewards import select
from fusion_jax.rewards.verifiers import VerifierName
from fusion_jax.runs import fits
from fusion_jax.runs.checks import check_names, model_name
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.page import SeededSettings, conduct
from fusion_jax.runs.prompts import held_out_prompts, training_prompts
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.generate import SampleSettings, load_to_sample
from fusion_jax.settings import bounded
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class Settings(SeededSettings):
    """Where to enter: `responses` skips the sampling of the sources, `quadruples` everything before the last stage."""

    basic: ClassVar = (
        "target", "sources", "prompts", "test_prompts", "responses", "quadruples", "sft_data", "out", "resume", "seed",
        "seeds", "reward_model", "verifier", "accuracy", "sample.num_samples", "text.tokens.max_length", "sft_share",
        "sft.epochs", "sft.optimizer.learning_rate", "preference.epochs", "preference.batch_size",
        "preference.optimizer.learning_rate", "wrpo.loss", "wrpo.beta", "wrpo.alpha", "baseline",
    )  # fmt: skip

    out: Folder = "runs/wrpo"
    target: ModelPath = "zoo:target"
    """Model to improve: a Hugging Face folder, or zoo:NAME."""
    sources: Models = ("zoo:llama-source", "zoo:qwen-source", "zoo:gemma-source")
    """Models to learn from: folders, or zoo:NAME."""
    prompts: File = ""
    """JSON lines with "prompt" and, for a verifier, "answer"; without, the zoo's problems."""
    test_prompts: File = ""
    """Held-out prompts with "answer", on which every model is judged."""
    responses: File = ""
    """Ready responses of the sources, instead of sampling them."""
    quadruples: File = ""
    """Ready quadruples, instead of everything before the last stage."""
    sft_data: File = ""
    """Records for the SFT stage of a run that begins with quadruples."""
    on_bad: OnBad = "error"
    """What a broken record does: stop the run, or be left out and counted."""
    verifier: VerifierName = "answer"
    """What gives rewards, unless there is a reward model."""
    accuracy: VerifierName = "answer"
    """What judges test answers."""
    reward_model: RewardModel = ""
    """A model with one score that gives the rewards: a folder."""
    prompts_per_skill: int = 160
    """The zoo's problems of each skill to train on."""
    test_per_skill: int = 60
    """The zoo's problems of each skill to be judged on."""
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
    sample: SampleSettings = SampleSettings(max_new_tokens=28, batch_size=64)
    eval_new_tokens: int = 28
    """Longest test answer, in tokens."""
    text: TextSettings = TextSettings()
    sft: TrainSettings = TrainSettings()
    preference: TrainSettings = TrainSettings()
    wrpo: WrpoSettings = WrpoSettings()
    dpo: PairSettings = PairSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, "sft_share", "held_out", least=0, below=1)
        bounded(self, "tolerance", "test_per_skill", least=0)
        bounded(self, "prompts_per_skill", "eval_new_tokens", "source_rank", least=1)


TINY_TRAINING = TrainSettings(
    batch_size=16, micro_batches=1, log_every=1, eval_every=10, checkpoint_every=50, remat="dots", mesh_fsdp=-1
)
PRESETS = {
    "tiny": Settings(
        text=TextSettings(tokens=TokeniseSettings(max_length=128, max_prompt_length=96, eos="if_missing")),
        sft=dataclasses.replace(TINY_TRAINING, epochs=3.0, optimizer=OptimizerSettings(learning_rate=1e-4)),
        preference=dataclasses.replace(TINY_TRAINING, epochs=3.0, optimizer=OptimizerSettings(learning_rate=6e-5)),
        wrpo=WrpoSettings(beta=0.1, alpha=0.3),
        dpo=PairSettings(beta=0.1),
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


def main(s: Settings) -> None:
    conduct(__file__, "WRPO", s, PRESETS, fuse, check, unread=unread)


def fuse(s: Settings, desk: Desk) -> Measures:
    """The pipeline of the paper; the stages stand at the top of this file."""
    own_data = bool(s.prompts or s.responses or s.quadruples)
    test = held_out_prompts(s.test_prompts, own_data=own_data, per_skill=s.test_per_skill, seed=s.seed)
    if not test:
        desk.run.log("no --test-prompts: accuracies are not measured")
    if s.quadruples:
        quads, sft_records = ready(s, desk)
        shared = [row.messages[-1]["content"] for row in quads]
    else:
        given = parse_responses(load_records(s.responses), file=s.responses) if s.responses else []
        prompts = desk.records("prompts.jsonl", lambda: enough_prompts(s, desk, given))
        shared = [prompt["prompt"] for prompt in prompts]
    check_room(s, [] if s.quadruples else prompts, test)
    desk.note_shared(test, shared)
    start, prefix = desk.load(s.target, s.preference), ""
    desk.judge("Target", start, test, **judging(s))

    if not s.quadruples:
        scored = source_responses(s, desk, prompts, test, given)
        best = select.best_of(scored, names_of(scored), desk.counter("source responses"))
        desk.records("best_source.jsonl", best.values)
        first, second = ([prompts[i] for i in part] for part in split_indices(len(prompts), s.sft_share, s.seed))
        sft_records = desk.records(
            "sft.jsonl", lambda: [best[p["prompt_id"]] for p in first if p["prompt_id"] in best],
            of=["prompts.jsonl", "best_source.jsonl"],
        )  # fmt: skip
        if first and not sft_records:
            desk.check_enough(0, s.sft, "--sft")
    if sft_records:
        rows = desk.rows("sft", sft_records, "sft", file=s.sft_data or "sft.jsonl", on_bad=s.on_bad)
        start, prefix = desk.train(Stage("sft", "--sft", s.sft, s.text), start, objectives.sft(), rows), "SFT-"
        desk.judge("SFT", start, test, **judging(s))

    if not s.quadruples:
        records = preferences(s, desk, start, scored, second)
        quads = desk.rows("quadruples", records, "quad", file="quadruples.jsonl", on_bad=s.on_bad)
    held, train = ([quads[i] for i in part] for part in split_indices(len(quads), s.held_out, s.seed))
    if s.baseline:
        stage = Stage("dpo", "--preference", s.preference, unpacked(s.text), leaf=True)
        baseline = desk.train(stage, start, objectives.pair(s.dpo), on_policy(train), on_policy(held))
        desk.judge(f"{prefix}DPO", baseline, test, of=["dpo/model"], **judging(s))
    stage = Stage("wrpo", "--preference", s.preference, unpacked(s.text))
    fused = desk.train(stage, start, objectives.wrpo(s.wrpo), train, held)
    desk.judge(f"{prefix}WRPO", fused, test, **judging(s))
    desk.export(fused, of=["wrpo/model"])
    parts = [] if s.quadruples else wins(best)
    used = desk.counts["wrpo"]["used"]
    result = f"The model is trained on {used} quadruples; without --test-prompts nothing is judged."
    desk.report(("sft", "dpo", "wrpo"), names(s), target="Target", result=result, parts=parts)
    return desk.measures()


def source_responses(
    s: Settings, desk: Desk, prompts: Sequence[Record], test: Sequence[Record], given: Sequence[Record]
) -> list[Record]:
    """Stages 2 and 3: every source's responses with rewards, and the sources' accuracy."""
    if given:
        carried = select.carry(prompts, given, desk.counter("source responses"), file=s.responses)
        return desk.records("responses.jsonl", lambda: rewarded(s, desk, carried))
    scored: list[Record] = []
    for source in s.sources:
        name = model_name(source)
        model = load_to_sample(model_path(source), s.sample.mesh_tensor, "--sample.mesh-tensor")
        scored += desk.records(
            f"responses/{name}.jsonl",
            lambda model=model, name=name: rewarded(s, desk, desk.sampled(model, name, prompts, s.sample)),  # type: ignore[misc]
            of=["prompts.jsonl"],
        )
        desk.judge(name, model, test, of=[], **judging(s))
    return scored


def preferences(
    s: Settings, desk: Desk, start: Model, scored: Sequence[Record], prompts: Sequence[Record]
) -> list[Record]:
    """Stages 7 to 9: the best and the worst response to each prompt, beside the one that a source wrote."""
    drops = desk.counter("preference prompts")
    drops["prompts"] += len(prompts)
    asked = {prompt["prompt_id"] for prompt in prompts}
    from_sources = [r for r in scored if r["prompt_id"] in asked]
    if s.pairs == "sources":
        compared = from_sources
    else:
        compared = desk.records(
            "target_responses.jsonl", lambda: rewarded(s, desk, desk.sampled(start, "target", prompts, s.sample))
        )
    pairs = select.best_and_worst(compared, drops, tolerance=s.tolerance)
    learnt = select.best_of(from_sources, names_of(scored), Counter(), rank=s.source_rank)
    quads = desk.records("quadruples.jsonl", lambda: select.quadruples(learnt, pairs))
    drops += select.notes(quads) + Counter({"quadruples kept": len(quads)})
    desk.check_enough(trained_on(s, len(quads)), s.preference, "--preference")
    return quads


def rewarded(s: Settings, desk: Desk, responses: Sequence[Record]) -> list[Record]:
    """Responses with rewards: their own, the reward model's, or the verifier's."""
    return desk.rewarded(responses, s.reward_model, s.verifier, s.preference)


def ready(s: Settings, desk: Desk) -> tuple[list[Row], list[Record]]:
    """The quadruples and the SFT records given, looked through before anything is computed."""
    quads = desk.rows("quadruples", load_records(s.quadruples), "quad", file=s.quadruples, on_bad=s.on_bad)
    desk.check_enough(trained_on(s, len(quads)), s.preference, "--preference")
    if not s.sft_data:
        return quads, []
    sft_records = load_records(s.sft_data)
    parse_rows(sft_records, "sft", file=s.sft_data, on_bad=s.on_bad)
    return quads, sft_records


def enough_prompts(s: Settings, desk: Desk, given: Sequence[Record]) -> list[Record]:
    """Stage 1: prompts that are enough for the stages, from a file, from the responses given, or the zoo's."""
    prompts = training_prompts(
        s.prompts, given, s.responses, answers=not s.reward_model, per_skill=s.prompts_per_skill, seed=s.seed
    )
    first = round(len(prompts) * s.sft_share)
    if first and s.text.packing == "none":
        desk.check_enough(first, s.sft, "--sft", counts=False)
    desk.check_enough(trained_on(s, len(prompts) - first), s.preference, "--preference", counts=False)
    return prompts


def trained_on(s: Settings, quads: int) -> int:
    """How many of the quadruples are not held out."""
    return quads - round(quads * s.held_out)


def on_policy(quads: Sequence[Row]) -> list[Row]:
    """The target's own two responses."""
    return [Row(q.name, q.messages, q.responses[1:]) for q in quads]


def unpacked(text: TextSettings) -> TextSettings:
    """Packing is for SFT alone."""
    return dataclasses.replace(text, packing="none")


def names(s: Settings) -> list[str]:
    """What the sources are called."""
    return [model_name(source) for source in s.sources]


def names_of(responses: Sequence[Record]) -> list[str]:
    """The sources in the order that breaks ties."""
    return list(dict.fromkeys(r["source_model"] for r in responses))


def wins(best: dict[str, Record]) -> list[str]:
    """Who wrote the best source response, for the report."""
    shares = [{"source": name, "share": f"{share:.3f}"} for name, share in select.wins(best).items()]
    return ["## Who wrote the best source response", markdown_table(shares)] if shares else []


def judging(s: Settings) -> dict[str, Any]:
    """How test answers are judged."""
    return {"max_new_tokens": s.eval_new_tokens, "verifier_name": s.accuracy}


def unread(s: Settings) -> tuple[str, ...]:
    """Options of models that this run does not load: ready responses may be of sources that are nowhere."""
    return ("sources",) if s.responses or s.quadruples else ()


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
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
        check_names(s.sources, ("Target", "SFT", "DPO", "WRPO", "SFT-DPO", "SFT-WRPO"))
    check_devices(s)


def check_devices(s: Settings) -> None:
    """Refuse meshes, heads and lengths that a later stage would refuse."""
    target = model_path(s.target)
    fits.check_length(target, s.text.tokens.max_length, "--text.tokens.max-length")
    fits.check_training(s.preference, "--preference", target)
    if s.sft_data or (s.sft_share and not s.quadruples):
        fits.check_training(s.sft, "--sft", target)
    if s.reward_model:
        fits.check_reading(s.preference, "--preference", model_path(s.reward_model))
    sampled = () if s.quadruples else (*(() if s.responses else s.sources), *((s.target,) * (s.pairs == "target")))
    fits.check_sampling(s.sample.mesh_tensor, "--sample.mesh-tensor", *map(model_path, sampled))


def check_room(s: Settings, prompts: Sequence[Record], test: Sequence[Record]) -> None:
    """Refuse prompts that leave one of the models no room for an answer."""
    own = () if s.pairs == "sources" else split_indices(len(prompts), s.sft_share, s.seed)[1]
    models = [model_path(m) for m in (() if s.responses or s.quadruples else s.sources)]
    asked = [(model_path(s.target), [prompts[i] for i in own]), *((m, prompts) for m in models)]
    for folder, some in asked:
        fits.check_prompts(folder, some, s.sample.max_new_tokens, "--sample.max-new-tokens")
        fits.check_prompts(folder, test, s.eval_new_tokens, "--eval-new-tokens")
    if s.reward_model:
        answered = prompts if models else asked[0][1]
        fits.check_judged(model_path(s.reward_model), answered, s.sample.max_new_tokens, "--sample.max-new-tokens")


def plans(s: Settings, ask: Ask) -> list[Planned]:
    """What `--plan` compiles: the WRPO stage, SFT, sampling the target. Not the DPO baseline, which takes two thirds of
    WRPO, nor the sources' sampling; `--plan-rows` counts prompts or, with `--quadruples`, these."""
    length, reference = s.text.tokens.max_length, objectives.wrpo(s.wrpo).reference
    trains_sft = bool(s.sft_data or not s.quadruples)
    start: Start = "float32" if trains_sft else "bfloat16"
    first = 0 if s.quadruples else round(ask.rows * s.sft_share)
    rest = ask.rows - first
    learnt = dataclasses.replace(ask, rows=rest - round(rest * s.held_out))
    taught = ask if s.sft_data else dataclasses.replace(ask, rows=first)
    return [
        *training(
            s.wrpo.loss, s.target, "wrpo", s.preference, length, learnt, reference=reference, start=start,
            settings="--preference",
        ),
        *(training(
            "SFT", s.target, "sft", s.sft, length, taught, packing=s.text.packing, settings="--sft"
        ) if trains_sft else ()),
        *(() if s.quadruples else generation(
            "sampling the target", s.target, s.sample, dataclasses.replace(ask, rows=rest), kept=start
        )),
    ]  # fmt: skip


if __name__ == "__main__":
    run_experiment(Settings, main, plans, presets=PRESETS, description=__doc__)
