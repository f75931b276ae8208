"""The figures of a run, made from the run's own files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_jax.figures import greys, hue, measured_curve, new_figure, tidy, training_curve
from fusion_jax.intervals import wilson
from fusion_jax.jsonl import read_jsonl
from fusion_jax.store.run_folder import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def curves(stage: Path, names: Sequence[str]) -> Curves:
    """Metric name -> (steps, values), read from a training stage's metrics.jsonl; names never logged are left out."""
    path = stage / METRICS
    records = read_jsonl(path) if path.exists() else []
    found = {name: [(r["step"], r[name]) for r in records if name in r] for name in names}
    return {k: tuple(zip(*v)) for k, v in found.items() if v}  # type: ignore[misc]


# A panel a quantity: its title and the metrics that measure it.
PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "language-model loss": ("loss/language",),
    "fusion loss": ("loss/fusion",),
    "weight of the language-model loss": ("lambda",),
    "weight of the source's response (alpha)": ("cur_alpha",),
    "reward of the source's chosen response": ("rewards/source_chosen",),
    "reward of the chosen response": ("rewards/target_chosen", "rewards/chosen"),
    "reward of the rejected response": ("rewards/rejected",),
    "reward margin": ("rewards/margins",),
    "share of pairs ranked rightly": ("rewards/accuracies",),
    "share ranked rightly, source's response": ("rewards/source_accuracies",),
    "share ranked rightly, target's response": ("rewards/pivot_accuracies",),
}
SCHEDULES = ("lambda", "cur_alpha")


def training_figure(stages: Mapping[str, Path]) -> Figure:
    """What was logged of the training stages of a run: a panel a quantity, with held-out values where there are any.

    Losses of stages with other objectives are other quantities, in panels of their own.
    """
    logged = {stage: _records(path) for stage, path in stages.items()}
    colours = dict(zip(stages, hue(len(stages)), strict=True))
    panels = [panel for title, names in PANELS.items() for panel in _panels(title, names, logged)]
    columns = min(max(len(panels), 1), 3)
    rows = max(-(-len(panels) // columns), 1)
    figure, every = new_figure(rows, columns, size=(4.6 * columns, 3.2 * rows))
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, names, some) in zip(every, panels):
        for stage in some:
            _draw(axes, stage, names, logged[stage], colours[stage])
        tidy(axes, title, x="optimizer step", legend=len(stages) > 1 or None)
    return figure


def _records(stage: Path) -> list[dict[str, Any]]:
    return read_jsonl(stage / METRICS) if (stage / METRICS).exists() else []


def _panels(
    title: str, names: Sequence[str], logged: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[tuple[str, Sequence[str], list[str]]]:
    """The panels of a quantity: one, but of a loss one for each objective, told apart by what else it logs."""
    groups: dict[frozenset[str], list[str]] = {}
    for stage, records in logged.items():
        keys = frozenset(name for record in records for name in record if not name.startswith("eval_"))
        if keys & set(names):
            groups.setdefault(keys if title == "loss" else frozenset(), []).append(stage)
    if title != "loss" or len(groups) < 2:
        return [(title, names, some) for some in groups.values()]
    return [(f"loss of {', '.join(some)}" if len(some) < 4 else "loss", names, some) for some in groups.values()]


def _draw(axes: Axes, stage: str, names: Sequence[str], records: Sequence[Mapping[str, Any]], colour: str) -> None:
    """The first of the metrics that the stage logged, and its held-out values; schedules have none."""
    name = next((n for n in names if any(n in r for r in records)), "")
    found = [(r["step"], r[name]) for r in records if name in r]
    if found:
        steps, values = zip(*found)
        training_curve(axes, steps, values, colour, stage)
    held = [r for r in records if f"eval_{name}" in r and name not in SCHEDULES]
    if held:
        means = [r[f"eval_{name}"] for r in held]
        low, high = zip(*(_interval(r, name) for r in held))
        measured_curve(axes, [r["step"] for r in held], means, low, high, colour, f"{stage}, held out")


def _interval(record: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The 95 % interval of a held-out mean: Wilson's of a share, Student's over the batches of another; without what
    it needs, none."""
    mean, count = record[f"eval_{name}"], record.get("eval_examples")
    if name.endswith("accuracies"):
        return wilson(mean * count, count) if count else (mean, mean)
    half = record.get(f"eval_{name}/half", math.nan)
    return (mean, mean) if math.isnan(half) else (mean - half, mean + half)


def accuracy_figure(rows: Sequence[Mapping[str, Any]], sources: Sequence[str] = ()) -> Figure:
    """Accuracy of every model at every skill, bars with 95 % intervals: sources grey, the target's stages blue from
    light to dark.

    Args:
      rows: {"model", "skill", "accuracy", "low", "high"}, one for each model and skill.
      sources: the models that are not the target's.
    """
    models, skills = list(dict.fromkeys(r["model"] for r in rows)), list(dict.fromkeys(r["skill"] for r in rows))
    teachers = [m for m in models if m in sources]
    models = teachers + [m for m in models if m not in sources]
    colours = greys(len(teachers)) + hue(len(models) - len(teachers))
    figure, (axes,) = new_figure(size=(max(8, 1.7 * len(skills)), 4.2))
    width = 0.84 / max(len(models), 1)
    for m, (model, colour) in enumerate(zip(models, colours, strict=True)):
        mine = {r["skill"]: r for r in rows if r["model"] == model}
        shown = [(i + (m - (len(models) - 1) / 2) * width, mine[s]) for i, s in enumerate(skills) if s in mine]
        heights = [r["accuracy"] for _, r in shown]
        below = [max(r["accuracy"] - r["low"], 0.0) for _, r in shown]
        above = [max(r["high"] - r["accuracy"], 0.0) for _, r in shown]
        axes.bar(
            [at for at, _ in shown], heights, width * 0.94, yerr=[below, above], color=colour, label=model,
            error_kw={"linewidth": 0.8, "ecolor": "black"},
        )  # fmt: skip
    tidy(axes, y="share of right answers, mean", legend=False)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(skills)), skills)
    axes.set_ylim(0, 1.02)
    figure.legend(fontsize=10, ncols=min(len(models), 8), frameon=False, loc="outside upper center")
    return figure


def shares_figure(bars: Mapping[str, Mapping[str, float]], *, xlabel: str, grey: Sequence[str] = ()) -> Figure:
    """Stacked horizontal bars of shares that sum to 1, one bar a name, the same parts in each, those of `grey` grey."""
    figure, (axes,) = new_figure(size=(9, 1.5 + 0.4 * len(bars)))
    left = [0.0] * len(bars)
    parts = list(next(iter(bars.values()), {}))
    kept = [part for part in parts if part not in grey]
    colours = dict(zip(kept, hue(len(kept))[::-1])) | dict(zip((p for p in parts if p in grey), greys(len(grey))[::-1]))
    for part in parts:
        widths = [shares[part] for shares in bars.values()]
        axes.barh(range(len(bars)), widths, left=left, label=part, height=0.7, color=colours[part])
        for row, (start, width) in enumerate(zip(left, widths)):
            if width >= 0.05:
                ink = "white" if part == kept[0] else "black"
                axes.text(start + width / 2, row, f"{width:.2f}", ha="center", va="center", fontsize=9.5, color=ink)
        left = [start + width for start, width in zip(left, widths)]
    tidy(axes, x=xlabel, legend=False)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    figure.legend(fontsize=10, ncols=5, frameon=False, loc="outside upper center")
    return figure
