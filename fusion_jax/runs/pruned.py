"""The report of a run that prunes: what each step cost, the order on the grid of layers, other orders beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fusion_jax.errors import InputError
from fusion_jax.figures import EQUALS, INK, MARKS, PALE, hue, new_figure, tidy
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.pruned import config_without
from fusion_jax.models.folder import Model, config_values
from fusion_jax.plan.flops import forward_flops
from fusion_jax.plan.programs import Decode
from fusion_jax.plan.report import plan_all
from fusion_jax.plan.requests import Request
from fusion_jax.plan.runs import Planned
from fusion_jax.prune.blocks import PARTS, Block, Blocks, layers_of, parameters_of, ratio
from fusion_jax.prune.export import without_blocks
from fusion_jax.prune.orders import SLACK
from fusion_jax.prune.search import Step, removed_by
from fusion_jax.runs.counts import counts_table
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.seeds import Measures
from fusion_jax.sampling.ids import decoding_ways
from fusion_jax.slices import slice_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"attention": "attention", "mlp": "feed-forward"}
Line = dict[str, str]
Curves = Mapping[str, Sequence[Record]]
"""{order: its points}, the search's last; see `runs.pruning.Comparing.points`."""


def measures_of(config: ModelConfig, steps: Sequence[Step], curves: Curves, shares: Sequence[float]) -> Measures:
    """What was measured of each order at the pruned model's share of the parameters: perplexity, between two removals
    in proportion (of its logarithm), at smaller shares too; accuracy of the last removal that takes no more."""
    most, found = ratio(config, removed_by(steps)), Measures()
    if curves:
        whole = next(iter(curves.values()))[0]
        found["whole"] = _finite({"perplexity": whole["perplexity"], "accuracy": whole["accuracy"]})
    for name, points in curves.items():
        values = {"perplexity": perplexity_at(points, most), "accuracy": accuracy_at(points, most)}
        for share in [share for share in shares if share < most - SLACK]:
            values[f"perplexity at {share:g}"] = perplexity_at(points, share)
            values[f"accuracy at {share:g}"] = accuracy_at(points, share)
        found[name] = _finite(values)
    removed = {"ratio": most, "attention": sum(block.part == "attention" for block in removed_by(steps))}
    found.setdefault("search", {}).update(removed)
    if not curves and math.isfinite(steps[-1].perplexity):
        found["search"]["calibration perplexity"] = steps[-1].perplexity
    return found


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def perplexity_at(points: Sequence[Record], share: float) -> float | None:
    """Held-out perplexity of an order at a share of the parameters."""
    below = [p for p in points if p["ratio"] <= share + SLACK][-1]
    above = next((p for p in points if p["ratio"] > share + SLACK), None)
    if abs(below["ratio"] - share) <= SLACK or above is None:
        return below["perplexity"] if abs(below["ratio"] - share) <= SLACK else None
    if below["perplexity"] is None or above["perplexity"] is None:
        return None
    weight = (share - below["ratio"]) / (above["ratio"] - below["ratio"])
    logs = math.log(below["perplexity"]), math.log(above["perplexity"])
    return math.exp(logs[0] + weight * (logs[1] - logs[0]))


def accuracy_at(points: Sequence[Record], share: float) -> float | None:
    """Accuracy behind the last removal of an order that takes no more than a share of the parameters."""
    return [p for p in points if p["ratio"] <= share + SLACK][-1]["accuracy"]


def report(
    desk: Desk, config: ModelConfig, steps: Sequence[Step], curves: Curves, measures: Measures, length: int,
    times: Sequence[Line] = (),
) -> None:  # fmt: skip
    """report.md with its pictures.

    Args:
      measures: of `measures_of` and, behind them, of what followed the pruning. length: tokens of a row, for FLOPs.
      times: of `decoding_times`.
    """
    desk.run.on_first(lambda: _write(desk, config, steps, curves, measures, length, times))


def _write(
    desk: Desk, config: ModelConfig, steps: Sequence[Step], curves: Curves, measures: Measures, length: int,
    times: Sequence[Line],
) -> None:  # fmt: skip
    run, removed = desk.run, removed_by(steps)
    lines = [*_steps(config, steps, curves.get("search", ()))]
    saved = markdown_table([*_saved(config, removed, length), *times])
    parts = ["## What is saved", saved, "## Steps", markdown_table(lines)]
    parts.append(save_figure(grid_figure(config, steps), run.file("order.png")))
    told = f"Without {len(removed)} of {2 * len(layers_of(config))} blocks the model lacks "
    told += f"{100 * ratio(config, removed):.1f} % of its parameters."
    if curves:
        told += _sentence(measures)
        table = markdown_table(_compared(measures))
        parts += ["## Against other orders", HOW_COMPARED, table]
        parts.append(save_figure(curves_figure(curves), run.file("curves.png")))
        run.log(table)
    if any(desk.counts.values()):
        parts += ["## Records", counts_table(desk.counts)]
    write_report(run, desk.title, told, desk.ran, parts)
    run.log(told)
    run.log(f"report: {run.file('report.md')}; model: {run.file('model')}")


HOW_COMPARED = (
    "At the share of the parameters that the pruned model lacks, and at smaller ones: held-out perplexity, between two "
    "removals in proportion (of its logarithm), and accuracy behind the last removal that takes no more."
)


def _compared(measures: Measures) -> list[dict[str, str]]:
    """A line an order; what one does not have stays empty."""
    names = list(dict.fromkeys(name for values in measures.values() for name in values))
    names = [name for name in names if name.startswith(("perplexity", "accuracy"))]
    return [
        {"order": order} | {name: f"{values[name]:.4f}" if name in values else "" for name in names}
        for order, values in measures.items()
    ]


def _sentence(measures: Measures) -> str:
    last, told = list(measures)[-1], ""
    for name, words in (("perplexity", "Perplexity of held-out text"), ("accuracy", "Accuracy")):
        if all(name in measures[model] for model in ("whole", "search")):
            told += f" {words}: {measures['whole'][name]:.4f} whole, {measures['search'][name]:.4f} pruned"
            told += f", {measures[last][name]:.4f} after {last}." if last != "search" else "."
    return told


def _steps(config: ModelConfig, steps: Sequence[Step], held: Sequence[Record]) -> list[dict[str, str]]:
    lines = []
    known = {point["removals"]: point["perplexity"] for point in held}
    for number, step in enumerate(steps, 1):
        gone = removed_by(steps[:number])
        line = {
            "step": str(number), "removed": told(step.chosen), "parameters": f"{parameters_of(config, gone):,}",
            "ratio": f"{100 * ratio(config, gone):.2f} %",
        }  # fmt: skip
        if not all(math.isnan(one.perplexity) for one in steps):
            line["calibration perplexity"] = f"{step.perplexity:.4f}"
        if any(value is not None for value in known.values()):
            line["held-out perplexity"] = f"{known.get(number) or math.nan:.4f}"
        lines.append(line)
    return lines


def told(blocks: Blocks) -> str:
    """Blocks in words."""
    return ", ".join(f"{NAMES[block.part]} {block.layer}" for block in sorted(blocks)) or "nothing"


def _saved(config: ModelConfig, removed: Blocks, length: int) -> list[Line]:
    """Parameters, FLOPs of a row and layers that keep keys and values, whole and pruned."""
    small, layers = config_without(config, removed), len(layers_of(config))
    kept = layers - sum(block.part == "attention" for block in removed)
    flops, less = (forward_flops(one, 0, length, 1, False) for one in (config, small))
    pairs = {
        "parameters": (parameters_of(config), parameters_of(config, removed)),
        f"FLOPs of a forward pass of {length} tokens": (flops, less),
        "layers that keep keys and values": (layers, kept),
    }
    return [_line_of(what, *pair, "{:,.0f}") for what, pair in pairs.items()]


def decoding_times(slice: str, model: Model, removed: Blocks) -> list[Line]:
    """What a token takes on a TPU slice and how much HBM, whole and without the blocks, by the TPU compiler; nothing
    without a slice.

    32 rows behind prompts of 1,024 tokens, or half of what the model reads, grow by a quarter of that.
    """
    if not slice:
        return []
    chips, prompt = slice_of(slice).chips, min(model.config.max_positions // 2, 1024)
    program = Decode(32, prompt, prompt // 4)
    mesh = (-1, 1, decoding_ways(model.config, chips))
    every = [config_values(one) for one in (model, without_blocks(model, removed))]
    found = []
    for result in plan_all([Planned("decoding", Request(slice, values, program, mesh)) for values in every]):
        if isinstance(result, InputError):  # the search is done by now, and the report shall be there
            return [{"what": f"decoding on {slice}", "whole": result.problem, "pruned": "", "less": ""}]
        found.append((result.times.total / program.capacity * 1e3, result.needed / 2**30))
    (slow, large), (fast, small) = found
    return [
        _line_of(f"ms a token of 32 rows on {slice} (estimate)", slow, fast, "{:.3f}"),
        _line_of(f"HBM a chip of {slice}, GiB (compiler)", large, small, "{:.2f}"),
    ]


def _line_of(what: str, whole: float, pruned: float, shown: str) -> Line:
    less = f"{100 * (1 - pruned / whole):.1f} %"
    return {"what": what, "whole": shown.format(whole), "pruned": shown.format(pruned), "less": less}


def curves_figure(curves: Curves) -> Figure:
    """Perplexity and accuracy against the share of the parameters that is gone, a line an order; the search is dark."""
    first = next(iter(curves.values()))
    shown = [name for name in ("perplexity", "accuracy") if any(point[name] is not None for point in first)]
    figure, panels = new_figure(1, len(shown), size=(6.4 * len(shown), 4.4))
    for axes, measure in zip(panels, shown, strict=True):
        for place, (name, points) in enumerate(curves.items()):
            _line(axes, name, place, [p for p in points if p[measure] is not None], measure)
        if measure == "perplexity":
            axes.set_yscale("log")
        title = {"perplexity": "Perplexity of held-out text", "accuracy": "Share of right answers"}[measure]
        tidy(axes, title, x="parameters removed, %", legend=measure == shown[0])
    return figure


def _line(axes: Axes, name: str, place: int, points: Sequence[Record], measure: str) -> None:
    ours = name == "search"
    axes.plot(
        [100 * p["ratio"] for p in points], [p[measure] for p in points], label=name,
        color=INK if ours else EQUALS[place % (len(EQUALS) - 1)], marker=MARKS[place % len(MARKS)], markersize=4,
        linewidth=2.4 if ours else 1.2, linestyle="-" if ours or place < len(EQUALS) - 1 else ":",
    )  # fmt: skip


def grid_figure(config: ModelConfig, steps: Sequence[Step]) -> Figure:
    """The number of the step that removed each block, on the grid of layers."""
    from matplotlib.patches import Rectangle

    layers, colours = len(layers_of(config)), hue(max(len(steps), 2))
    figure, (axes,) = new_figure(size=(max(4.0, 0.42 * layers), 1.9))
    when = {block: number for number, step in enumerate(steps) for block in step.chosen}
    for row, part in enumerate(PARTS):
        for layer in range(layers):
            number = when.get(Block(part, layer))
            face = "white" if number is None else colours[number]
            axes.add_patch(Rectangle((layer - 0.46, row - 0.46), 0.92, 0.92, facecolor=face, edgecolor=PALE))
            if number is not None:
                shade = "white" if number > len(steps) / 2 else INK
                axes.text(layer, row, str(number + 1), ha="center", va="center", fontsize=8.5, color=shade)
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(-0.6, 1.6)
    axes.set_yticks([0, 1], [NAMES[part] for part in PARTS])
    tidy(axes, "The step that removed each block", x="layer")
    axes.grid(visible=False)
    return figure
