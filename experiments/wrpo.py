"""WRPO (arXiv 2412.03187): fuse several source models into a target through preferences over sampled text.

    python experiments/wrpo.py                                            # built-in miniatures, a CPU, minutes
    python experiments/wrpo.py --preset llama3-8b --target META-LLAMA-3-8B-INSTRUCT \\
        --responses responses.jsonl --reward-model REWARD-MODEL --out runs/a    # ready source responses
    python experiments/wrpo.py --preset llama3-8b --target TARGET-SFT --quadruples quads.jsonl --out runs/b

Hardware and time: `tiny` 2 CPU cores, about 80 s, 1.5 GB; `llama3-8b` is for a TPU slice (not timed yet).
Result: a table of the accuracy of Target, sources, SFT, SFT-DPO and SFT-WRPO (without an SFT stage: DPO and WRPO); in
the run folder every stage's JSON-lines file, report.md with plots, and model/, a Hugging Face folder. Published
(AlpacaEval-2 length-controlled win rate): Target 26.0, SFT 27.2, SFT-DPO 50.7, SFT-WRPO 55.9.

Stages (each is a file of the run folder; a file that is there is read, not made again):
  prompts.jsonl, responses/SOURCE.jsonl, best_source.jsonl, sft.jsonl, sft/, target_responses.jsonl,
  quadruples.jsonl, dpo/, wrpo/, answers/MODEL.jsonl, report.md, model/
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fusion_jax.data.batches import Data
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.jsonl import Record
from fusion_jax.data.loaders import load_records
from fusion_jax.data.order import split_indices
from fusion_jax.data.records import OnBad, Row, check_answers, parse_prompts, parse_responses, parse_rows
from fusion_jax.data.tokenise import TokeniseSettings
from fusion_jax.errors import InputError
from fusion_jax.hosts import HostSettings, connect, on_first
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import Model, load, save
from fusion_jax.options import File, Folder, ModelPath, Models
from fusion_jax.plan.command import run as run_experiment
from fusion_jax.plan.requests import Start
from fusion_jax.plan.runs import Ask, Planned, generation, training
from fusion_jax.rewards import select
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.rewards.verifiers import VerifierName, verifier
from fusion_jax.runs import fits, stages
from fusion_jax.runs.opening import open_run
from fusion_jax.runs.plots import accuracy_figure, training_figure
from fusion_jax.runs.provenance import Ran, answers_sentence
from fusion_jax.runs.provenance import write_report as write_page
from fusion_jax.sampling.generate import SampleSettings, load_to_sample
from fusion_jax.sampling.responses import sample_responses
from fusion_jax.settings import bounded, seeded, to_json
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import model_path
from fusion_jax.zoo.tasks import SKILLS, mixture


@dataclass(frozen=True)
class Settings:
    """Where to enter: `responses` skips the sampling of the sources, `quadruples` everything before the last stage."""

    basic: ClassVar = (
        "target", "sources", "prompts", "test_prompts", "responses", "quadruples", "sft_data", "out", "resume", "seed",
        "seeds", "reward_model", "verifier", "accuracy", "sample.num_samples", "text.tokens.max_length", "sft_share",
        "sft.epochs", "sft.optimizer.learning_rate", "preference.epochs", "preference.batch_size",
        "preference.optimizer.learning_rate", "wrpo.loss", "wrpo.beta", "wrpo.alpha", "baseline",
    )  # fmt: skip

    out: Folder = "runs/wrpo"
    """Folder of the run, which is made; it holds all stages, report.md and the model."""
    resume: bool = False
    """Continue the run that --out holds, if there is one: the same command with --resume can always be repeated."""
    hosts: HostSettings = HostSettings()
    seed: int = 42
    """Decides the zoo's problems, the samples, the split and the order of the examples."""
    seeds: int = 1
    """Whole runs, with seed, seed + 1, ...; report.md then has means with intervals."""
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
    reward_model: ModelPath = ""
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
        bounded(self, "sft_share", "held_out", least=0, below=1)
        seeded(self, "seed")
        bounded(self, "tolerance", "test_per_skill", least=0)
        bounded(self, "prompts_per_skill", "eval_new_tokens", "source_rank", "seeds", least=1)


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
    connect(s.hosts)
    check(s)
    with open_run(s.out, to_json(s), resume=s.resume) as run:
        stages.over_seeds(run, "WRPO", Ran(__file__, s, PRESETS), s.seed, s.seeds, lambda seed, folder: {
            row["model"]: {"accuracy": row["accuracy"]}
            for row in fuse(dataclasses.replace(s, seed=seed, seeds=1), folder) if row["skill"] == "all"
        })  # fmt: skip
        run.finish()


def check(s: Settings) -> None:
    """Refuse before the first stage what a later one would refuse."""
    verifier(s.verifier), verifier(s.accuracy, "accuracy")
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
    stages.check_models("--target", s.target)
    if not (s.quadruples or s.responses):
        stages.check_names(s.sources, ("Target", "SFT", "DPO", "WRPO", "SFT-DPO", "SFT-WRPO"))
        stages.check_models("--sources", *s.sources)
    if s.reward_model:
        stages.check_models("--reward-model", s.reward_model, labels=1)
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


def fuse(s: Settings, run: RunFolder) -> list[dict[str, Any]]:
    """The pipeline of the paper (section 3 of the specification), stages 1 to 10; returns the accuracy rows."""
    counts: dict[str, Counter[str]] = {}
    test = test_prompts(s, run)
    given = parse_responses(load_records(s.responses), file=s.responses) if s.responses else []
    quads, sft_records = ready_records(s, run)
    prompts = [] if s.quadruples else train_prompts(s, run, given)
    check_room(s, prompts, test)
    note_shared(run, test, [p["prompt"] for p in prompts], counts)
    start, prefix = load(model_path(s.target), mesh=compute_for(s.preference).mesh), ""
    accuracy = judge(s, run, "Target", start, test)
    source_wins: dict[str, float] = {}
    if not s.quadruples:
        drops = counts["source responses"] = Counter[str]()
        scored, sources_accuracy = source_responses(s, run, prompts, test, given, drops)
        accuracy += sources_accuracy
        best = select.best_of(scored, names_of(scored), drops)
        source_wins = select.wins(best)
        run.stage("best_source.jsonl", best.values)
        sft_part, preference_part = split_indices(len(prompts), s.sft_share, s.seed)
        sft_records = run.stage(
            "sft.jsonl", lambda: [best[p] for i in sft_part if (p := prompts[i]["prompt_id"]) in best],
            of=["prompts.jsonl", "best_source.jsonl"],
        )

        if len(sft_part) and not sft_records:
            stages.check_enough(run, counts, 0, s.sft, "--sft")
    if sft_records:
        start, prefix = train_sft(s, run, start, sft_records, counts), "SFT-"
        accuracy += judge(s, run, "SFT", start, test)

    if not s.quadruples:
        quads = preferences(s, run, start, scored, [prompts[i] for i in preference_part], counts)

    rows, drops = parse_rows(quads, "quad", file=s.quadruples or "quadruples.jsonl", on_bad=s.on_bad)
    counts["quadruples"] = drops + Counter({"used": len(rows)})
    if s.quadruples:
        note_shared(run, test, [r.messages[-1]["content"] for r in rows], counts)
    held, train = split_indices(len(rows), s.held_out, s.seed)
    train_rows, held_rows = [rows[i] for i in train], [rows[i] for i in held]
    if s.baseline:
        on_policy, held_pairs = ([Row(r.name, r.messages, r.responses[1:]) for r in q] for q in (train_rows, held_rows))
        baseline = train_preference(s, run, "dpo", start, on_policy, held_pairs, s.dpo, counts)
        accuracy += judge(s, run, f"{prefix}DPO", baseline, test, of=["dpo/model"])
    fused = train_preference(s, run, "wrpo", start, train_rows, held_rows, s.wrpo, counts)
    accuracy += judge(s, run, f"{prefix}WRPO", fused, test)
    run.made_once("model", lambda folder: save(fused, folder), of=["wrpo/model"])
    on_first(lambda: write_report(s, run, accuracy, counts, source_wins))
    return accuracy


def preferences(
    s: Settings,
    run: RunFolder,
    start: Model,
    scored: Sequence[Record],
    prompts: Sequence[Record],
    counts: dict[str, Counter[str]],
) -> list[Record]:
    """Stages 7 to 9: the best and the worst response to each prompt, beside the one that a source wrote."""
    drops = counts["preference prompts"] = Counter[str](prompts=len(prompts))
    asked = {p["prompt_id"] for p in prompts}
    from_sources = [r for r in scored if r["prompt_id"] in asked]
    judged = from_sources if s.pairs == "sources" else run.stage(
        "target_responses.jsonl", lambda: rewarded(s, sampled(s, run, start, "target", prompts))
    )  # fmt: skip
    pairs = select.best_and_worst(judged, drops, tolerance=s.tolerance)
    learnt = select.best_of(from_sources, names_of(scored), Counter(), rank=s.source_rank)
    quads = run.stage("quadruples.jsonl", lambda: select.quadruples(learnt, pairs))
    drops += select.notes(quads) + Counter({"quadruples kept": len(quads)})
    stages.check_enough(run, counts, len(quads) - round(len(quads) * s.held_out), s.preference, "--preference")
    return quads


def ready_records(s: Settings, run: RunFolder) -> tuple[list[Record], list[Record]]:
    """The quadruples and the SFT records given, looked through before anything is computed."""
    quads = load_records(s.quadruples) if s.quadruples else []
    sft_records = load_records(s.sft_data) if s.sft_data else []
    if s.quadruples:
        rows, drops = parse_rows(quads, "quad", file=s.quadruples, on_bad=s.on_bad)
        stages.check_enough(
            run, {"quadruples": drops}, len(rows) - round(len(rows) * s.held_out), s.preference, "--preference"
        )
    if s.sft_data:
        parse_rows(sft_records, "sft", file=s.sft_data, on_bad=s.on_bad)
    return quads, sft_records


def train_prompts(s: Settings, run: RunFolder, given: Sequence[Record]) -> list[Record]:
    """Stage 1: prompts that are enough for the stages, from a file, from the responses given, or the zoo's."""

    def make() -> list[Record]:
        prompts = read_prompts(s, given)
        first_part = round(len(prompts) * s.sft_share)
        if first_part and s.text.packing == "none":
            stages.check_enough(run, {}, first_part, s.sft, "--sft")
        rest = len(prompts) - first_part
        stages.check_enough(run, {}, rest - round(rest * s.held_out), s.preference, "--preference")
        return prompts

    return run.stage("prompts.jsonl", make)


def read_prompts(s: Settings, given: Sequence[Record]) -> list[Record]:
    """Prompts with what the records of each know; without a reward model each needs an answer."""
    if not (s.prompts or given):
        return mixture(dict.fromkeys(SKILLS, s.prompts_per_skill), split="train", seed=s.seed + 1000)
    records = parse_prompts(load_records(s.prompts), file=s.prompts) if s.prompts else given
    if not s.reward_model:
        cure = "Add it, for the target's responses are verified against it, or give a --reward-model"
        check_answers(records, file=s.prompts or s.responses, cure=cure)
    known: dict[str, Record] = {}
    for r in records:
        kept = r if s.prompts else ("prompt_id", "prompt", "answer", "skill")
        known.setdefault(r["prompt_id"], {}).update({k: r[k] for k in kept if r.get(k) is not None})
    return list(known.values())


def test_prompts(s: Settings, run: RunFolder) -> list[Record]:
    """Held-out prompts with answers; none when the data is the user's and no test file is given."""
    if s.test_prompts:
        prompts = parse_prompts(load_records(s.test_prompts), file=s.test_prompts)
        check_answers(prompts, file=s.test_prompts, cure='Add "answer" to the test prompts')
        return prompts
    if s.prompts or s.responses or s.quadruples:
        run.log("no --test-prompts: accuracies are not measured")
        return []
    return mixture(dict.fromkeys(SKILLS, s.test_per_skill), split="test", seed=s.seed)


def note_shared(run: RunFolder, test: Sequence[Record], learnt: Sequence[str], counts: dict[str, Counter[str]]) -> None:
    """Say how many test prompts are trained on as well: the accuracy on them is not that on unseen prompts."""
    shared = len({p["prompt"] for p in test} & set(learnt))
    if shared:
        counts["test prompts"] = Counter({"also trained on": shared})
        run.log(f"note: {shared} of {len(test)} test prompts are trained on, too: they are not unseen")


def source_responses(
    s: Settings,
    run: RunFolder,
    prompts: Sequence[Record],
    test: Sequence[Record],
    given: Sequence[Record],
    drops: Counter[str],
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Stages 2 and 3: every source's responses with rewards, and the sources' accuracy."""
    if given:
        carried = select.carry(prompts, given, drops, file=s.responses)
        return run.stage("responses.jsonl", lambda: rewarded(s, carried)), []
    out: list[Record] = []
    accuracy: list[dict[str, Any]] = []
    for source in s.sources:
        name = stages.model_name(source)
        model = load_to_sample(model_path(source), s.sample.mesh_tensor, "--sample.mesh-tensor")
        out += run.stage(
            f"responses/{name}.jsonl", lambda m=model, n=name: rewarded(s, sampled(s, run, m, n, prompts)),  # type: ignore[misc]
            of=["prompts.jsonl"],
        )  # fmt: skip
        accuracy += judge(s, run, name, model, test, of=[])
    return out, accuracy


def names_of(responses: Sequence[Record]) -> list[str]:
    """The sources in the order that breaks ties."""
    return list(dict.fromkeys(r["source_model"] for r in responses))


def sampled(s: Settings, run: RunFolder, model: Model, name: str, prompts: Sequence[Record]) -> list[Record]:
    """Responses of one model, with progress on the screen."""
    with run.console.status(f"  sampling {name}") as status:
        return sample_responses(
            model, name, prompts, s.sample, seed=s.seed,
            progress=lambda done: status.update(f"  sampling {name}: {done} of {len(prompts)} prompts"),
        )  # fmt: skip


def rewarded(s: Settings, responses: Sequence[Record]) -> list[Record]:
    """Stage 3: rewards by the reward model or, without one, by the verifier; ready rewards stay."""
    if s.reward_model:
        missing = [r for r in responses if r.get("reward") is None]
        mesh = compute_for(s.preference).mesh
        fresh = iter(
            score_responses(load(model_path(s.reward_model), mesh=mesh), missing, mesh=mesh) if missing else []
        )
        return [r if r.get("reward") is not None else next(fresh) for r in responses]
    return select.score_with(responses, verifier(s.verifier))


def train_sft(
    s: Settings, run: RunFolder, target: Model, records: Sequence[Record], counts: dict[str, Counter[str]]
) -> Model:
    """Stage 6: supervised fine-tuning on the best source responses of the first part."""
    rows, drops = parse_rows(records, "sft", file=s.sft_data or "sft.jsonl", on_bad=s.on_bad)
    examples, cut = make_examples(rows, target.tokenizer, s.text)
    counts["sft"] = drops + cut + Counter({"used": cut["documents"] or len(examples)})
    stages.check_enough(run, counts, len(examples), s.sft, "--sft")
    settings = dataclasses.replace(s.sft, seed=s.seed)
    packed = s.text.packing != "none"
    return stages.trained(run.sub("sft"), target, compute_for(settings).mesh, lambda folder: optimise(
        target, Data(examples, lambda i: f"block {i}" if packed else rows[i].name), objectives.sft(), settings, folder
    ))  # fmt: skip


def train_preference(
    s: Settings,
    run: RunFolder,
    stage: str,
    model: Model,
    rows: Sequence[Row],
    held: Sequence[Row],
    loss: WrpoSettings | PairSettings,
    counts: dict[str, Counter[str]],
) -> Model:
    """Stage 10 (quadruples) or its baseline (pairs): policy and reference both start from the SFT model."""
    text = dataclasses.replace(s.text, packing="none")
    examples, cut = make_examples(rows, model.tokenizer, text)
    validation, lost = make_examples(held, model.tokenizer, text) if held else ([], Counter[str]())
    counts[stage] = cut + Counter({"used": len(examples), "held out": len(validation)})
    counts[f"{stage}, held out"] = lost
    stages.check_enough(run, counts, len(examples), s.preference, "--preference")
    settings = dataclasses.replace(s.preference, seed=s.seed)
    objective = objectives.wrpo(loss) if isinstance(loss, WrpoSettings) else objectives.pair(loss)
    return stages.trained(run.sub(stage), model, compute_for(settings).mesh, lambda folder: optimise(
        model, Data(examples, lambda i: rows[i].name), objective, settings, folder,
        held=Data(validation, lambda i: held[i].name),
    ), leaf=stage == "dpo")  # fmt: skip


def judge(
    s: Settings, run: RunFolder, name: str, model: Model, test: Sequence[Record], of: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Accuracy of a model's greedy answers."""
    how = {"max_new_tokens": s.eval_new_tokens, "verifier": verifier(s.accuracy)}
    return stages.judged(run, name, model, test, of=of, **how)


def write_report(
    s: Settings,
    run: RunFolder,
    accuracy: Sequence[dict[str, Any]],
    counts: dict[str, Counter[str]],
    source_wins: dict[str, float],
) -> None:
    """report.md, its plots, and the table on the screen."""
    folders = {name: run.file(name) for name in ("sft", "dpo", "wrpo") if run.file(name).exists()}
    sources, parts = [stages.model_name(source) for source in s.sources], []
    result = f"The model is trained on {counts['wrpo']['used']} quadruples; without --test-prompts nothing is judged."
    if accuracy:
        table = stages.accuracy_table(accuracy)
        result = answers_sentence(accuracy, "Target", sources)
        figure = save_figure(accuracy_figure(accuracy, sources), run.file("accuracy.png"))
        parts += ["## Accuracy (greedy, 95 % Wilson intervals)", markdown_table(table), figure]
        run.log(markdown_table(table))
        own = [m for m in dict.fromkeys(r["model"] for r in reversed(accuracy)) if m not in sources]
        parts += ["Paired on the same prompts (95 % interval):", stages.paired_table(run, own)]
    parts += ["## Training", save_figure(training_figure(folders), run.file("training.png"))]
    if source_wins:
        shares = [{"source": k, "share": f"{v:.3f}"} for k, v in source_wins.items()]
        parts += ["## Who wrote the best source response", markdown_table(shares)]
    parts += ["## Records, drops and their reasons", stages.counts_table(counts)]
    write_page(run, "WRPO", result, Ran(__file__, s, PRESETS), parts)
    run.log(f"{result}")
    run.log(f"report: {run.file('report.md')}; model: {run.file('model')}")


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
