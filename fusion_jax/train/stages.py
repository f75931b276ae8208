"""Stages that experiments share: a model trained or judged once, and read from the run folder ever after."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fusion_jax.data.jsonl import Record
from fusion_jax.errors import InputError
from fusion_jax.evals.accuracy import by_skill, evaluate, mean_interval
from fusion_jax.models.folder import Model, load, save
from fusion_jax.train.report import markdown_table, save_figure, training_figure
from fusion_jax.train.run_folder import RunFolder


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


def trained(run: RunFolder, like: Model, mesh: Mesh | None, train: Callable[[RunFolder], Model]) -> Model:
    """A training stage: its finished model read from the folder, or trained and saved there in float32."""
    folder = run.file("model")
    if not folder.exists():
        save(train(run), folder, dtype="float32")
    return dataclasses.replace(load(folder, mesh=mesh), file_dtype=like.file_dtype)


def judged(
    run: RunFolder, name: str, model: Model, test: Sequence[Record], mesh: Mesh | None, **how: Any
) -> list[dict[str, Any]]:
    """Accuracy of a model's greedy answers on the test prompts, if there are any; `how` goes to `evaluate`."""
    if not test:
        return []
    run.sub("answers")
    return by_skill(name, run.stage(f"answers/{name}.jsonl", lambda: evaluate(name, model, test, mesh=mesh, **how)[1]))


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


def fusion_report(
    run: RunFolder,
    title: str,
    measures: dict[str, dict[str, float]],
    coverage: Sequence[dict[str, Any]],
    counts: Counter[str],
) -> None:
    """report.md of an experiment that trained several arms under arms/, and its results on the screen.

    Args:
      measures: of every model; coverage: lines of text and of shares, what decided the rows of each source.
    """
    results = markdown_table([{"model": n, **{k: f"{v:.4f}" for k, v in m.items()}} for n, m in measures.items()])
    reached = [{k: v if isinstance(v, str) else f"{v:.3f}" for k, v in line.items()} for line in coverage]
    arms = {path.name: path for path in sorted(run.file("arms").iterdir())}
    parts = [
        f"# {title}", save_figure(training_figure(arms), run.file("training.png")),
        "## Held-out data", results,
        "## What decided the rows of each source (shares of the target's tokens)", markdown_table(reached),
        "## Records", markdown_table([{"what": k, "count": v} for k, v in counts.items()]),
    ]  # fmt: skip
    run.file("report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    run.log(results)
    run.log(f"report: {run.file('report.md')}")


def over_seeds(
    run: RunFolder, title: str, first: int, count: int, one: Callable[[int, RunFolder], dict[str, dict[str, float]]]
) -> None:
    """A whole run with several seeds: mean and 95 % Student interval of every model's every measure.

    Args:
      one: (seed, its folder) -> {model: {measure: value}}.
    """
    seen: dict[str, dict[str, list[float]]] = {}
    for seed in range(first, first + count):
        run.log(f"seed {seed}")
        for name, measured in one(seed, run.sub(f"seed-{seed}")).items():
            for measure, value in measured.items():
                seen.setdefault(name, {}).setdefault(measure, []).append(value)
    table = []
    for name, measures in seen.items():
        line = {"model": name}
        for measure, values in measures.items():
            mean, half = mean_interval(values)
            line |= {measure: f"{mean:.4f} ± {half:.4f}", f"{measure}, each": " ".join(f"{v:.3f}" for v in values)}
        table.append(line)
    text = markdown_table(table)
    run.file("report.md").write_text(
        f"# {title} over {count} seeds\n\nMean and 95 % Student interval.\n\n{text}\n", encoding="utf-8"
    )
    run.log(text)
