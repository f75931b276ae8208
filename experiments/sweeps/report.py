"""What a sweep found: one line a cell and model with intervals over seeds, and its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.sweeps.files import Cell, Sweep
from fusion_jax.figures import EQUALS, MARKS, new_figure, tidy
from fusion_jax.intervals import mean_interval
from fusion_jax.jsonl import Record, write_jsonl
from fusion_jax.markdown import markdown_table, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[tuple[str, str], Mapping[str, Sequence[float]]]  # (cell, model) -> measure -> one a seed


def write_report(
    place: Path, sweep: Sweep, records: Sequence[Record], failures: Mapping[tuple[str, int], str], seeds: int
) -> str:
    """report.md, sweep.png and results.jsonl; returns the tables.

    Args:
      records: {"cell", "options", "seed", "model", "measures": {name: value}} of every finished run.
      failures: (cell, seed) -> why it did not finish.
    """
    write_jsonl(place / "results.jsonl", records)
    values = collected(sweep, records)
    parts = [f"# {sweep.name}", sweep.about] if sweep.about else [f"# {sweep.name}"]
    told = ["Mean and 95 % Student interval over seeds." if seeds > 1 else "One seed.", table(sweep, values)]
    missing = [m for m in sweep.models if records and m not in {r["model"] for r in records}]
    if missing:
        told.append(f"No run has a model called {', '.join(missing)}.")
    if failures:
        lines = [{"cell": c, "seed": seed, "error": why} for (c, seed), why in failures.items()]
        told += ["Runs that did not finish:", markdown_table(lines)]
    if values:
        parts.append(save_figure(figure(sweep, values), place / "sweep.png"))
    result = best_cell(values)
    parts[1:1] = [f"**{result}**"] if result else []
    parts.append(f"Commands, seeds and versions: report.md of each run, in {place}/CELL/seed-N.")
    (place / "report.md").write_text("\n\n".join(parts + told) + "\n", encoding="utf-8")
    return "\n\n".join(told)


def best_cell(values: Values) -> str:
    """Which cell and model has the highest value of the first measure, or the lowest of bits per byte and losses."""
    measure = next(iter(_measures(values)), "")
    found = {key: mean_interval(v[measure])[0] for key, v in values.items() if measure in v}
    if not found:
        return ""
    lower = "bits" in measure or "loss" in measure
    cell, model = (min if lower else max)(found, key=lambda key: found[key])
    best = _interval(values[cell, model][measure])
    return f"{'Lowest' if lower else 'Highest'} {measure}: {best}, {model} with {cell}."


def collected(sweep: Sweep, records: Sequence[Record]) -> Values:
    """The values of each cell's models, in the order of the sweep."""
    shown = sweep.models or tuple(dict.fromkeys(r["model"] for r in records))
    out: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in sweep.cells:
        for model in shown:
            for r in (r for r in records if (r["cell"], r["model"]) == (cell.name, model)):
                for measure, value in r["measures"].items():
                    out.setdefault((cell.name, model), {}).setdefault(measure, []).append(value)
    return out


def table(sweep: Sweep, values: Values) -> str:
    """A line a cell and model; a cell without a finished run has one with no values."""
    measures = _measures(values)
    lines = []
    for cell in sweep.cells:
        for model in [m for name, m in values if name == cell.name] or [""]:
            found = values.get((cell.name, model), {})
            published = sweep.published.get(cell.name, "")
            shown = published if isinstance(published, str) else published.get(model, "")
            lines.append({
                "cell": cell.name, "model": model, **{m: _interval(found.get(m, ())) for m in measures},
                "seeds": max(map(len, found.values()), default=0), "published": shown,
            })  # fmt: skip
    return markdown_table(lines)


def _measures(values: Values) -> list[str]:
    return list(dict.fromkeys(measure for found in values.values() for measure in found))


def _interval(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, half = mean_interval(values)
    return f"{mean:.4f} ± {half:.4f}" if len(values) > 1 else f"{mean:.4f}"


def figure(sweep: Sweep, values: Values) -> Figure:
    """A panel a measure: over the first option of a grid where that is a number, else a point a cell."""
    measures = _measures(values)
    columns = min(len(measures), 3)
    rows = -(-len(measures) // columns)
    axis = {cell.name: _number(cell.options[sweep.grid[0]]) for cell in sweep.cells} if sweep.grid else {"": None}
    height = 3.2 if None not in axis.values() else max(3.2, 0.35 * len(sweep.cells) + 1)
    out, every = new_figure(rows, columns, size=(5.5 * columns, height * rows))
    for axes in every[len(measures) :]:
        axes.set_visible(False)
    for axes, measure in zip(every, measures):
        if None not in axis.values():
            _lines(axes, sweep, values, measure)
        else:
            _points(axes, sweep, values, measure)
        tidy(axes, measure, x=sweep.grid[0] if None not in axis.values() else "")
    return out


def _number(value: Any) -> float | None:
    """The number that an option's value is, if any: YAML takes 1e-4 for a text."""
    try:
        return None if isinstance(value, bool | list) else float(value)
    except ValueError:
        return None


def _mean(values: Sequence[float]) -> tuple[float, float]:
    mean, half = mean_interval(values)
    return mean, 0.0 if math.isnan(half) else half


def _lines(axes: Axes, sweep: Sweep, values: Values, measure: str) -> None:
    """One line for each combination of the other options and each model."""
    first, *others = sweep.grid
    lines: dict[str, list[tuple[float, float, float]]] = {}

    def label(cell: Cell, model: str) -> str:
        return ", ".join([model, *(f"{key.rpartition('.')[2]}={cell.options[key]}" for key in others)])

    for cell in sweep.cells:
        for (name, model), found in values.items():
            if name == cell.name and measure in found:
                at = float(cell.options[first])
                lines.setdefault(label(cell, model), []).append((at, *_mean(found[measure])))
    for number, (name, points) in enumerate(lines.items()):
        x, mean, half = zip(*sorted(points))
        axes.errorbar(x, mean, yerr=half, label=name, linewidth=1.2, **_look(number))


def _look(number: int) -> dict[str, Any]:
    """Colour and mark of one of several equals."""
    colour, mark = EQUALS[number % len(EQUALS)], MARKS[number % len(MARKS)]
    return {"color": colour, "marker": mark, "markersize": 5, "capsize": 3}


def _points(axes: Axes, sweep: Sweep, values: Values, measure: str) -> None:
    """Cells from top to bottom, a colour for each model."""
    names = [cell.name for cell in sweep.cells]
    models = list(dict.fromkeys(model for _, model in values))
    for i, model in enumerate(models):
        found = [(n, *_mean(values[name, model][measure])) for n, name in enumerate(names)
                 if measure in values.get((name, model), {})]  # fmt: skip
        if found:
            y, mean, half = zip(*found)
            shift = (i - (len(models) - 1) / 2) * 0.6 / len(models)
            axes.errorbar(mean, [n + shift for n in y], xerr=half, linestyle="none", label=model, **_look(i))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
