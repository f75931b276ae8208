"""What a run of correctors tells: scores of every arm, by type of error, and what they have made of sentences."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fusion_jax.evals.cgec import NOOP, Edit, Item, Report, f_beta
from fusion_jax.figures import INK, hue, new_figure, tidy
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.paths import write_text
from fusion_jax.runs.correcting import Correcting
from fusion_jax.runs.counts import counts_table
from fusion_jax.runs.plots import training_figure
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.seeds import Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 40
PAGE = """<!doctype html><meta charset="utf-8"><title>Corrections</title><style>
body {{font: 16px sans-serif; margin: 2em; max-width: 60em}} ins {{background: #cfe8cf; text-decoration: none}}
del {{background: #f4cccc}} b {{background: #f4cccc}} td {{padding: .2em .8em .2em 0; vertical-align: top}}
td:first-child {{color: #777}}</style>
<p>Edits of a corrector against the source: <ins>written</ins>, <del>taken away</del>. Behind each arm: its right and
its wrong edits, and the right ones that it has not made.</p>
{rows}
"""


def report(run: Correcting, arms: Sequence[str]) -> Measures:
    """report.md and examples.html; what was measured of each arm."""
    measures = {arm: _measures(run.reports.get(arm, {})) for arm in arms}
    run.desk.run.on_first(lambda: _write(run, arms, measures))
    return measures


def _measures(reports: dict[str, Report]) -> dict[str, float]:
    """By test file; of one alone without its name."""
    found = dict[str, float]()
    for test, one in reports.items():
        behind = f", {test}" if len(reports) > 1 else ""
        found |= {f"F0.5{behind}": one.f, f"precision{behind}": one.precision, f"recall{behind}": one.recall}
        if one.over_correction is not None:
            found[f"over-correction{behind}"] = one.over_correction
    return found


def _write(run: Correcting, arms: Sequence[str], measures: Measures) -> None:
    desk, folder = run.desk, run.desk.run
    stages = {name: folder.file(name) for name in _stages(run) if folder.file(name).exists()}
    parts = []
    for test in run.task.tests:
        lines = [_line(arm, run.reports[arm][test]) for arm in arms]
        kinds = [line for arm in arms for line in _kinds(arm, run.reports[arm][test])]
        head = run.reports[arms[0]][test].head
        parts += [
            f"## {test}: edits by {head.scorer}, {head.mode}", markdown_table(lines),
            "By type of edit (M missing, R redundant, S wrong, W disordered):", markdown_table(kinds),
        ]  # fmt: skip
        folder.log(markdown_table(lines))
    if measures and all(measures.values()):
        parts.append(save_figure(_figure(run, arms), folder.file("scores.png")))
        write_text(folder.file("examples.html"), PAGE.format(rows="".join(_examples(run, arms))))
        parts.append("Sentences with their edits in colour: [examples.html](examples.html)")
    parts += ["## Training", save_figure(training_figure(stages), folder.file("training.png"))]
    parts += ["## Records used, and dropped by reason", counts_table(desk.counts)]
    result = _result(arms, measures)
    write_report(folder, desk.title, result, desk.ran, parts)
    folder.log(result)
    folder.log(f"report: {folder.file('report.md')}; model: {folder.file('model')}")


def _stages(run: Correcting) -> list[str]:
    names = ["corrector", "source_first", "draft_first", "alirector", "more", "plain"]
    return [*names, *(f"fcgec-{name}" for name in names)]


def _line(arm: str, one: Report) -> dict[str, str]:
    share = one.over_correction
    return {
        "arm": arm, "P": f"{one.precision:.4f}", "R": f"{one.recall:.4f}", "F0.5": f"{one.f:.4f}",
        "TP / FP / FN": " / ".join(map(str, one.counts)),
        "right sentences changed": "" if share is None else f"{100 * share:.2f} % of {one.error_free}",
    }  # fmt: skip


def _kinds(arm: str, one: Report) -> list[dict[str, str]]:
    return [
        {"arm": arm, "type": kind, "TP / FP / FN": " / ".join(map(str, counts))}
        | dict(zip(("P", "R", "F0.5"), (f"{x:.4f}" for x in f_beta(counts)), strict=True))
        for kind, counts in one.types.items()
    ]


def _figure(run: Correcting, arms: Sequence[str]) -> Figure:
    """Bars: precision, recall, F0.5 and over-correction of every arm, a panel a test file."""
    tests = list(run.task.tests)
    figure, panels = new_figure(1, len(tests), size=(2.5 + 2.2 * len(arms) * len(tests) ** 0.5, 3.6))
    names = ("precision", "recall", "F0.5", "over-correction")
    for axes, test in zip(panels, tests, strict=True):
        for place, (name, colour) in enumerate(zip(names, hue(len(names)), strict=True)):
            found = [run.reports[arm][test] for arm in arms]
            values = [(one.precision, one.recall, one.f, one.over_correction or 0.0)[place] for one in found]
            at = [number + (place - 1.5) * 0.2 for number in range(len(arms))]
            axes.bar(at, values, 0.19, color="#d55e00" if name == "over-correction" else colour, label=name)
        axes.set_xticks(range(len(arms)), arms)
        axes.set_ylim(0, 1)
        tidy(axes, test, legend=False)
        axes.grid(visible=False, axis="x")
    panels[0].legend(fontsize=9.5, frameon=False, ncols=4, labelcolor=INK)
    return figure


def _examples(run: Correcting, arms: Sequence[str]) -> Iterable[str]:
    """Sentences on which the arms differ, the first ones of each test file."""
    for test, sentences in run.task.tests.items():
        yield f"<h2>{html.escape(test)}</h2>"
        shown = 0
        for number, sentence in enumerate(sentences):
            items = {arm: run.reports[arm][test].items[number] for arm in arms}
            if len({item.hypothesis for item in items.values()}) == 1 and len(arms) > 1:
                continue
            shown += 1
            if shown > EXAMPLES:
                break
            references = " / ".join(map(html.escape, sentence.references))
            lines = [("source", html.escape(sentence.source)), ("right", references)]
            lines += [(arm, f"{coloured(item)} <small>{_counted(item)}</small>") for arm, item in items.items()]
            rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{text}</td></tr>" for name, text in lines)
            yield f"<table>{rows}</table><hr>"


def _counted(item: Item) -> str:
    tp, fp, fn = item.counts
    return f"{tp} right, {fp} wrong, {fn} not made"


def coloured(item: Item) -> str:
    """The source with the edits of a hypothesis as HTML: what is taken away in <del>, what is written in <ins>."""
    characters, out, at = list("".join(item.source.split())), list[str](), 0
    for edit in sorted(_apart(item.edits)):
        out.append(html.escape("".join(characters[at : edit.start])))
        gone, new = "".join(characters[edit.start : edit.end]), edit.correction.replace(" ", "")
        out.append(f"<del>{html.escape(gone)}</del>" if gone else "")
        out.append(f"<ins>{html.escape(new)}</ins>" if new else "")
        at = edit.end
    return "".join([*out, html.escape("".join(characters[at:]))])


def _apart(edits: Iterable[Edit]) -> list[Edit]:
    """Edits that do not overlap: of several paths' the first."""
    kept = list[Edit]()
    for edit in edits:
        if edit.type != NOOP.type and all(edit.start >= one.end or edit.end <= one.start for one in kept):
            kept.append(edit)
    return kept


def _result(arms: Sequence[str], measures: Measures) -> str:
    last, first = measures[arms[-1]], measures[arms[0]]
    name = next((name for name in last if name.startswith("F0.5")), None)
    if name is None:
        return f"Trained {', '.join(arms)}; nothing was scored."
    told = f"{arms[-1]} has {name} {last[name]:.4f}, {arms[0]} {first[name]:.4f}"
    over = name.replace("F0.5", "over-correction")
    if over in last and over in first:
        told += f"; they change {100 * last[over]:.1f} and {100 * first[over]:.1f} % of the right sentences"
    return f"{told}."
