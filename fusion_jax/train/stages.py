"""Stages that experiments share: a model trained or judged once, and read from the run folder ever after."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fusion_jax.align.parts import Stored
from fusion_jax.data.batches import Example
from fusion_jax.data.documents import Document
from fusion_jax.data.examples import NOTHING_LEFT, SAME_TOKENS, TEXT_LOST
from fusion_jax.data.jsonl import Record, read_jsonl
from fusion_jax.errors import InputError
from fusion_jax.evals.accuracy import by_skill, evaluate, mean_interval, paired_difference
from fusion_jax.evals.perplexity import surprise
from fusion_jax.files import write_json
from fusion_jax.hosts import first_host, on_first
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.folder import Model, check_folder, load, save
from fusion_jax.store.manifest import digest
from fusion_jax.train.objectives import FusionSettings, fusion_objective
from fusion_jax.train.optimise import TrainSettings, compute_for, optimise, step_count
from fusion_jax.train.provenance import Ran, write_report
from fusion_jax.train.report import training_figure
from fusion_jax.train.run_folder import REPORT, RESULTS, RunFolder
from fusion_jax.zoo import model_path


def model_name(model: str) -> str:
    """What a model is called in records, files and tables: its folder's name."""
    return Path(model.removeprefix("zoo:")).name


def check_names(models: Sequence[str], reserved: Sequence[str] = ()) -> None:
    """Refuse models that would be called the same.

    Raises:
      InputError: names the second of them.
    """
    names = [*reserved, *map(model_name, models)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"two models are called '{name}'", field="sources", cure="Rename one of the folders")


def check_arms(arms: Sequence[str], known: Collection[str]) -> None:
    """Refuse an experiment without arms, and arms that are unknown or stand twice.

    Raises:
      InputError: names the first of them.
    """
    if not arms:
        raise InputError("there is none", field="arms", cure=f"Known: {', '.join(known)}")
    for i, arm in enumerate(arms):
        if arm not in known:
            raise InputError(f"'{arm}' is no arm", field="arms", cure=f"Known: {', '.join(known)}")
        if arm in arms[:i]:
            raise InputError(f"'{arm}' stands twice", field="arms", cure="Leave one out")


def check_models(option: str, *models: str, labels: int = 0) -> None:
    """Refuse folders that `load` would refuse later, and models of another kind.

    Args:
      option: the setting that names them.
      labels: scores of the head: 1 is a reward model, 0 a language model.
    """
    for model in models:
        try:
            found = check_folder(model_path(model, option)).head.labels
        except InputError as error:
            raise InputError(error.problem, file=error.file, field=error.field or option, cure=error.cure) from None
        if found != labels:
            wanted = "a reward model has one" if labels else "a language model has none"
            raise InputError(f"has {found} scores, {wanted}", file=model, field=option, cure="Give another folder")


def counts_table(counts: Mapping[str, Counter[str]]) -> str:
    """What each stage used and dropped, and why."""
    lines = [(stage, what, n) for stage, counter in counts.items() for what, n in counter.items() if n]
    return markdown_table([{"stage": stage, "what": what, "count": n} for stage, what, n in lines])


def check_enough(
    run: RunFolder, counts: Mapping[str, Counter[str]], examples: int, settings: TrainSettings, option: str
) -> None:
    """Refuse a stage whose examples do not fill one batch; report.md then says what was dropped before it.

    Args:
      counts: of each stage before: what was used and, under the names of `CURES`, what was dropped and why.
      option: of the stage's settings, for instance "--preference".

    Raises:
      InputError: names the batch size or, where nothing is left, what most records were dropped for and its cure.
    """
    if examples >= settings.batch_size:
        return
    if counts and first_host():
        run.file(REPORT).write_text(f"# Too few examples for {option}\n\n{counts_table(counts)}\n", encoding="utf-8")
    listed = {stage: ", ".join(f"{what} {n}" for what, n in c.items() if n) for stage, c in counts.items()}
    before = "; ".join(f"{stage}: {what}" for stage, what in listed.items() if what)
    before = f" ({before})" if before else ""
    dropped = [Counter({what: n for what, n in c.items() if n and what in CURES}) for c in counts.values()]
    reasons = next((one for one in reversed(dropped) if one), None)  # of the latest stage that dropped any
    cure = "Give more data"
    if reasons:  # what happened to whole prompts tells more than what happened to single responses
        cure = CURES[max(reasons, key=lambda what: (what.startswith("prompt:"), reasons[what]))]
    if examples == 0:
        raise InputError(f"0 examples are left to train on{before}", field=option, cure=cure)
    problem = f"{examples} examples do not fill one batch of {settings.batch_size}{before}"
    cure += ". Otherwise give more data or a smaller batch size" if reasons else " or a smaller batch size"
    raise InputError(problem, field=f"{option}.batch-size", cure=cure)


CURES = {
    "prompt: tie of best and worst": "The responses to a prompt have equal rewards, so none is preferred: use another "
    "--verifier or a --reward-model, lower --tolerance, or draw more samples (--sample.num-samples)",
    "prompt: identical responses": "Draw more varied samples (--sample.temperature, --sample.num-samples)",
    "prompt: all responses blank": "The model writes nothing: look at its responses, its chat template and "
    "--sample.max-new-tokens",
    "prompt: fewer than two usable responses": "Give two responses to a prompt at least (--sample.num-samples)",
    "reward not finite": "Give finite rewards, or leave them to a verifier",
    "response to another prompt": 'Give prompts and responses the same "prompt_id" or "prompt"',
    "chosen equals rejected": "Give pairs of different responses",
    "blank response": "Give responses that are not blank",
    TEXT_LOST: "Use a chat template that keeps the text of the answers, or write the answers as the template does",
    NOTHING_LEFT: "Raise --text.tokens.max-length, or shorten the prompts",
    SAME_TOKENS: "Raise --text.tokens.max-length: what differs is cut off",
    "no source response": "Give quadruples with the sources' responses",
}  # what a drop that is counted under this name calls for


def trained(
    run: RunFolder,
    like: Model,
    mesh: Mesh | None,
    train: Callable[[RunFolder], Model],
    *,
    of: Sequence[str] | None = None,
    leaf: bool = False,
) -> Model:
    """A training stage: its finished model read from the folder, or trained and saved there in float32.

    Args:
      of, leaf: as in `RunFolder.made_once`.

    Raises:
      InputError: the finished model is not as it was written, or was made from something else.
    """
    run.made_once("model", lambda folder: save(train(run), folder, dtype="float32"), of=of, leaf=leaf)
    return dataclasses.replace(load(run.file("model"), mesh=mesh), file_dtype=like.file_dtype)


def judged(
    run: RunFolder, name: str, model: Model, test: Sequence[Record], *, of: Sequence[str] | None = None, **how: Any
) -> list[dict[str, Any]]:
    """Accuracy of a model's greedy answers on the test prompts, if there are any.

    Args:
      of: what the model was made from, as in `RunFolder.made_once`; how: goes to `evaluate`.
    """
    if not test:
        return []
    answers = run.stage(f"answers/{name}.jsonl", lambda: evaluate(name, model, test, **how)[1], of=of, leaf=True)
    return by_skill(name, answers)


def accuracy_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """One line a model, one column a skill, with the interval on the total."""
    out = []
    for model in dict.fromkeys(r["model"] for r in rows):
        line = {"model": model}
        for r in (r for r in rows if r["model"] == model):
            line[r["skill"]] = f"{r['accuracy']:.3f}" + (
                f" [{r['low']:.3f}, {r['high']:.3f}]" if r["skill"] == "all" else ""
            )
        out.append(line)
    return out


def measured(
    run: RunFolder,
    name: str,
    model: Model,
    held: Sequence[Document],
    test: Sequence[Record],
    settings: TrainSettings,
    *,
    max_length: int,
    **how: Any,
) -> dict[str, float]:
    """Bits per byte of held-out documents and accuracy on test prompts, where there are any; `how` as in `judged`."""
    compute = compute_for(settings)
    out = {}
    if held:
        out["bits per byte"] = surprise(model, held, max_length=max_length, compute=compute).bits_per_byte
    for row in judged(run, name, model, test, **how):
        out["accuracy" if row["skill"] == "all" else row["skill"]] = row["accuracy"]
    return out


def trained_on_fused(
    run: RunFolder, model: Model, examples: Stored[Example], fusion: FusionSettings, settings: TrainSettings
) -> Model:
    """A model on fused examples, or the finished one where the arm was trained already."""
    objective = fusion_objective(fusion, step_count(len(examples), settings))
    mesh, made_of = compute_for(settings).mesh, digest(examples.made_of)
    return trained(
        run, model, mesh, lambda folder: optimise(model, examples, objective, settings, folder),
        of=[f"fused examples={made_of}"],
    )  # fmt: skip


def reading_limit(folders: Mapping[str, Path], max_length: int, k: int) -> int:
    """The tokens that every model reads of a text.

    Raises:
      InputError: k entries are more than the smallest vocabulary has.
    """
    configs = {name: check_folder(folder) for name, folder in folders.items()}
    name, smallest = min(configs.items(), key=lambda item: item[1].vocab_size)
    if k > smallest.vocab_size:
        raise InputError(
            f"{k} entries of a distribution are asked for, '{name}' has {smallest.vocab_size}", field="k",
            cure="Lower it",
        )  # fmt: skip
    return min(max_length, *(config.max_positions for config in configs.values()))


def fusion_report(
    run: RunFolder,
    title: str,
    ran: Ran,
    result: str,
    measures: dict[str, dict[str, float]],
    coverage: Sequence[dict[str, Any]],
    counts: Counter[str],
) -> None:
    """report.md of an experiment that trained several arms under arms/, and its results on the screen.

    Args:
      result: one sentence from the numbers.
      measures: of every model; coverage: lines of text and of shares, what decided the rows of each source.
    """
    results = "No held-out data and no test prompts: nothing is measured."
    if any(measures.values()):
        results = markdown_table([{"model": n, **{k: f"{v:.4f}" for k, v in m.items()}} for n, m in measures.items()])
    reached = [{k: v if isinstance(v, str) else f"{v:.3f}" for k, v in line.items()} for line in coverage]
    arms = {path.name: path for path in sorted(run.file("arms").iterdir())}
    parts = [
        "## Held-out data", results,
        "## Training", save_figure(training_figure(arms), run.file("training.png")),
        "## What decided the rows of each source (shares of the target's tokens)", markdown_table(reached),
        "## Records", markdown_table([{"what": k, "count": v} for k, v in counts.items()]),
    ]  # fmt: skip
    write_report(run, title, result, ran, parts)
    run.log(results)
    run.log(result)
    run.log(f"report: {run.file('report.md')}")


def paired_table(run: RunFolder, models: Sequence[str]) -> str:
    """The first of the judged models against each of the others on the same prompts."""
    right = {name: [r["right"] for r in read_jsonl(run.file(f"answers/{name}.jsonl"))] for name in models}
    first, *others = models
    differences = {f"{first} - {name}": paired_difference(right[first], right[name]) for name in others}
    return markdown_table([{"comparison": k, "difference": f"{d:+.3f} ± {h:.3f}"} for k, (d, h) in differences.items()])


def over_seeds(
    run: RunFolder,
    title: str,
    ran: Ran | None,
    first: int,
    count: int,
    one: Callable[[int, RunFolder], dict[str, dict[str, float]]],
) -> None:
    """A whole run with one seed or several: results.json holds what was measured; of several, report.md has the mean
    and the 95 % Student interval of every model's every measure.

    Args:
      ran: what was run, for the report.
      one: (seed, its folder) -> {model: {measure: value}}; a single seed has the run's own folder and report.
    """
    if count < 1:
        raise InputError(f"{count} is out of range", field="--seeds", cure="Give 1 or more")
    seen: dict[str, dict[str, list[float]]] = {}
    for seed in range(first, first + count):
        if count > 1:
            run.log(f"seed {seed}")
        for name, measured in one(seed, run if count == 1 else run.sub(f"seed-{seed}")).items():
            for measure, value in measured.items():
                seen.setdefault(name, {}).setdefault(measure, []).append(value)
        run.manifests.leave(f"seed-{seed}")
    on_first(lambda: write_json(run.file(RESULTS), seen, sort=False))
    if count > 1:
        _report_seeds(run, title, ran, count, seen)


def _report_seeds(
    run: RunFolder, title: str, ran: Ran | None, count: int, seen: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    table = []
    for name, measures in seen.items():
        line = {"model": name}
        for measure, values in measures.items():
            mean, half = mean_interval(values)
            line |= {measure: f"{mean:.4f} ± {half:.4f}", f"{measure}, each": " ".join(f"{v:.3f}" for v in values)}
        table.append(line)
    result = ""
    if table:
        name, measures = list(seen.items())[-1]
        told = [f"{measure} {table[-1][measure]}" for measure in list(measures)[:1]]
        first = next(iter(seen))
        told += [f"{first}'s is {table[0][m]}" for m in list(seen[first])[:1] if first != name]
        result = f"Over {count} seeds {name} has {'; '.join(told)}."
    parts = ["Mean and 95 % Student interval.", markdown_table(table)]
    on_first(lambda: write_report(run, f"{title} over {count} seeds", result, ran, parts))
    run.log(markdown_table(table))
