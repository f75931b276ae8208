"""The report of a run: tables in Markdown and plots beside them, made from the run's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_jax.data.jsonl import read_jsonl
from fusion_jax.train.run_folder import METRICS

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def curves(stage: Path, names: Sequence[str]) -> Curves:
    """Metric name -> (steps, values), read from a training stage's metrics.jsonl; names never logged are left out."""
    path = stage / METRICS
    records = read_jsonl(path) if path.exists() else []
    found = {name: [(r["step"], r[name]) for r in records if name in r] for name in names}
    return {k: tuple(zip(*v)) for k, v in found.items() if v}  # type: ignore[misc]


def _draw(axes: Axes, stages: Mapping[str, Curves], title: str) -> None:
    gap = 4 * min(max(len(stages) - 1, 1), 2)
    for number, (stage, lines) in enumerate(stages.items()):
        for name, (steps, values) in lines.items():
            # Held-out curves are dashed, each stage's dashes in the gaps of the others': two that coincide are seen.
            style: Any = (4 * number, (4, gap)) if name.startswith("eval_") else "-"
            marker = "o" if len(steps) < 3 else ""
            axes.plot(steps, values, label=f"{stage} {name}", linewidth=1.2, linestyle=style, marker=marker)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("optimizer step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if any(stages.values()):
        axes.legend(fontsize=7)


def training_figure(stages: Mapping[str, Path]) -> Figure:
    """Loss, fusion coefficient, rewards, margins and reward accuracies of the training stages of a run."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    grid = figure.subplots(2, 3)
    panels: list[tuple[str, list[str]]] = [
        ("loss", ["loss", "eval_loss"]),
        ("fusion coefficient alpha", ["cur_alpha"]),
        ("rewards", ["rewards/source_chosen", "rewards/target_chosen", "rewards/chosen", "rewards/rejected"]),
        ("reward margins", ["rewards/margins", "eval_rewards/margins"]),
        ("reward accuracy (training batches)",
         ["rewards/accuracies", "rewards/source_accuracies", "rewards/pivot_accuracies"]),
        ("reward accuracy (held out)",
         ["eval_rewards/accuracies", "eval_rewards/source_accuracies", "eval_rewards/pivot_accuracies"]),
    ]  # fmt: skip
    for axes, (title, names) in zip(grid.flat, panels):
        _draw(axes, {stage: curves(path, names) for stage, path in stages.items()}, title)
    return figure


def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of every model at every skill, bars with 95 % intervals.

    Args:
      rows: {"model", "skill", "accuracy", "low", "high"}, one for each model and skill.
    """
    models, skills = list(dict.fromkeys(r["model"] for r in rows)), list(dict.fromkeys(r["skill"] for r in rows))
    figure = Figure(figsize=(max(7, 1.6 * len(skills)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(models), 1)
    for m, model in enumerate(models):
        mine = {r["skill"]: r for r in rows if r["model"] == model}
        at = [i + (m - (len(models) - 1) / 2) * width for i, s in enumerate(skills) if s in mine]
        shown = [mine[s] for s in skills if s in mine]
        heights = [r["accuracy"] for r in shown]
        errors = [
            [max(r["accuracy"] - r["low"], 0.0) for r in shown],
            [max(r["high"] - r["accuracy"], 0.0) for r in shown],
        ]
        axes.bar(at, heights, width, yerr=errors, label=model, error_kw={"linewidth": 0.7})
    axes.set_xticks(range(len(skills)), skills, fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, ncols=min(len(models), 4), loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


def shares_figure(bars: Mapping[str, Mapping[str, float]], *, xlabel: str) -> Figure:
    """Stacked horizontal bars of shares that sum to 1, one bar a name, the same parts in each."""
    figure = Figure(figsize=(9, 1.3 + 0.35 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for part in next(iter(bars.values()), {}):
        widths = [shares[part] for shares in bars.values()]
        axes.barh(range(len(bars)), widths, left=left, label=part, height=0.7)
        for row, (start, width) in enumerate(zip(left, widths)):
            if width >= 0.05:
                axes.text(start + width / 2, row, f"{width:.2f}", ha="center", va="center", fontsize=7)
        left = [start + width for start, width in zip(left, widths)]
    axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.legend(fontsize=7, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
