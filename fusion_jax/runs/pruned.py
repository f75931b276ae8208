"""The report of a search for blocks: what each step cost, the order on the grid of layers, other orders beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion_jax.figures import EQUALS, INK, MARKS, PALE, hue, new_figure, tidy
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.config import ModelConfig
from fusion_jax.prune.blocks import PARTS, Block, layers_of, parameters_of, ratio
from fusion_jax.prune.search import Blocks, Step, removed_by
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.seeds import Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"attention": "attention", "mlp": "feed-forward"}


def report(
    desk: Desk, config: ModelConfig, steps: Sequence[Step], removed: Blocks, curves: Sequence[Record]
) -> Measures:
    """report.md with its pictures; the measures of the exported model and of the orders at the share that it lacks.

    Args:
      removed: of the exported model. curves: as `prune.orders.curves` gives them, none where no text is held out.
    """
    measures = _measures(config, steps, removed, curves)
    desk.run.on_first(lambda: _write(desk, config, steps, removed, curves))
    return measures


def _measures(config: ModelConfig, steps: Sequence[Step], removed: Blocks, curves: Sequence[Record]) -> Measures:
    lacking = ratio(config, removed)
    number = next(n for n in range(1, len(steps) + 1) if removed_by(steps[:n]) == removed)
    found: Measures = {"pruned": {"ratio": lacking, "calibration perplexity": steps[number - 1].perplexity}}
    for name in dict.fromkeys(point["order"] for point in curves):
        points = [point for point in curves if point["order"] == name and point["ratio"] <= lacking + 1e-9]
        found[name] = {key: points[-1][key] for key in ("ratio", "perplexity")}
    return found


def _write(desk: Desk, config: ModelConfig, steps: Sequence[Step], removed: Blocks, curves: Sequence[Record]) -> None:
    run, held = desk.run, {p["blocks"]: p["perplexity"] for p in curves if p["order"] == "search"}
    lines = []
    for number, step in enumerate(steps, 1):
        gone = removed_by(steps[:number])
        line = {
            "step": str(number), "removed": told(step.chosen), "parameters": f"{parameters_of(config, gone):,}",
            "ratio": f"{100 * ratio(config, gone):.2f} %", "calibration perplexity": f"{step.perplexity:.3f}",
        }  # fmt: skip
        lines.append(line | ({"held-out perplexity": f"{held[number]:.3f}"} if number in held else {}))
    parts = ["## Steps", markdown_table(lines), save_figure(grid_figure(config, steps), run.file("order.png"))]
    every = 2 * len(layers_of(config))
    result = f"Without {len(removed)} of {every} blocks the model lacks {_percent(config, removed)}."
    if curves:
        result = f"{result[:-1]}, and {_sentence(curves, ratio(config, removed))}"
        parts += ["## Against other orders", save_figure(curves_figure(curves), run.file("perplexity.png"))]
        parts.append(markdown_table(_compared(curves, ratio(config, removed))))
    write_report(run, desk.title, result, desk.ran, parts)
    run.log(markdown_table(lines))
    run.log(result)
    run.log(f"report: {run.file('report.md')}; model: {run.file('model')}")


def told(blocks: Blocks) -> str:
    """Blocks in words."""
    return ", ".join(f"{NAMES[block.part]} {block.layer}" for block in sorted(blocks)) or "nothing"


def _percent(config: ModelConfig, removed: Blocks) -> str:
    return f"{100 * ratio(config, removed):.1f} % of its parameters"


def _last(curves: Sequence[Record], name: str, most: float) -> Record:
    return [p for p in curves if p["order"] == name and p["ratio"] <= most + 1e-9][-1]


def _sentence(curves: Sequence[Record], most: float) -> str:
    whole, pruned = curves[0]["perplexity"], _last(curves, "search", most)["perplexity"]
    return f"the perplexity of held-out text goes from {whole:.3f} to {pruned:.3f}."


def _compared(curves: Sequence[Record], most: float) -> list[dict[str, str]]:
    """A line an order: the last removal that leaves as much as the exported model, or more."""
    out = []
    for name in dict.fromkeys(p["order"] for p in curves):
        last = _last(curves, name, most)
        share, value = f"{100 * last['ratio']:.2f} %", f"{last['perplexity']:.3f}"
        out.append({"order": name, "removals": str(last["blocks"]), "ratio": share, "held-out perplexity": value})
    return out


def curves_figure(curves: Sequence[Record]) -> Figure:
    """Held-out perplexity against the share of the parameters that is gone, a line an order."""
    figure, (axes,) = new_figure(size=(7.2, 4.2))
    for place, name in enumerate(dict.fromkeys(p["order"] for p in curves)):
        points = [p for p in curves if p["order"] == name]
        axes.plot(
            [100 * p["ratio"] for p in points], [p["perplexity"] for p in points], label=name,
            color=EQUALS[place % len(EQUALS)], marker=MARKS[place % len(MARKS)], markersize=4.5,
            linewidth=2.2 if name == "search" else 1.2,
        )  # fmt: skip
    axes.set_yscale("log")
    tidy(axes, "Perplexity of held-out text", x="parameters removed, %", legend=True)
    return figure


def grid_figure(config: ModelConfig, steps: Sequence[Step]) -> Figure:
    """The number of the step that removed each block, on the grid of layers."""
    layers, colours = len(layers_of(config)), hue(max(len(steps), 2))
    figure, (axes,) = new_figure(size=(max(4.0, 0.42 * layers), 1.9))
    when = {block: number for number, step in enumerate(steps) for block in step.chosen}
    for row, part in enumerate(PARTS):
        for layer in range(layers):
            number = when.get(Block(part, layer))
            face = "white" if number is None else colours[number]
            axes.add_patch(_cell(layer, row, face))
            if number is not None:
                shade = "white" if number > len(steps) / 2 else INK
                axes.text(layer, row, str(number + 1), ha="center", va="center", fontsize=8.5, color=shade)
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(-0.6, 1.6)
    axes.set_yticks([0, 1], [NAMES[part] for part in PARTS])
    tidy(axes, "The step that removed each block", x="layer")
    axes.grid(visible=False)
    return figure


def _cell(x: int, y: int, face: str):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=face, edgecolor=PALE)
