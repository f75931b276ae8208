"""report.md of MK-TOD: what every arm and retriever finds, how sure the differences are, what a response was made of.

Published figures stand beside the arms as they were measured on MultiWOZ with T5-base, so that only orderings compare.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fusion_jax.evals.dialogue.bootstrap import bleu_difference, f1_difference, recall_difference
from fusion_jax.evals.dialogue.clean import prediction_text, reference_text
from fusion_jax.evals.dialogue.entities import entities_in
from fusion_jax.evals.dialogue.recall import naming_turns
from fusion_jax.figures import hue, new_figure, tidy
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.paths import write_text
from fusion_jax.runs.aligning import Board
from fusion_jax.runs.counts import counts_table
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.plots import curves
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.ranking import PRETRAINED
from fusion_jax.runs.seeds import Measures
from fusion_jax.store.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = dict[str, str]
SHOWN = 24
PUBLISHED: dict[str, dict[str, str]] = {
    "full": {"prefix": "50.35 / 16.39 / 92.51", "prompt": "50.69 / 17.56 / 92.74", "ctr": "51.35 / 15.96 / 92.74"},
    "no-mml": {"prefix": "49.56 / 16.07 / 91.39", "prompt": "50.41 / 16.67 / 91.39", "ctr": "50.54 / 14.78 / 91.39"},
    "no-negative": {
        "prefix": "49.46 / 15.94 / 90.24",
        "prompt": "49.85 / 15.99 / 91.15",
        "ctr": "48.32 / 15.79 / 92.29",
    },
    "only-order": {"prefix": "49.88 / 16.20 / 92.27", "prompt": "49.47 / 15.60 / 91.15"},
    "only-confidence": {"prefix": "47.35 / 13.96 / 89.11", "prompt": "50.16 / 16.84 / 91.93"},
    "only-cooccurrence": {"prefix": "49.66 / 15.61 / 91.39", "prompt": "50.38 / 16.20 / 92.35"},
    "prefix": {"": "50.35 / 16.39 / 92.51"},
    "prompt": {"": "50.69 / 17.56 / 92.74"},
    "ctr": {"": "51.35 / 15.96 / 92.74"},
    "chat, none": {"": "30.31 / 6.79"},
    "chat, prefix": {"": "30.69 / 7.01"},
    "chat, chat": {"": "32.04 / 7.31"},
    "BM25": {"": "R@7 75.51"},
    "frequency": {"": "R@7 88.66"},
    PRETRAINED: {"": "R@7 91.39"},
    "oracle": {"": "R@7 100"},
}
"""Entity F1 / BLEU / Recall@7 of T5-base (or a chat model) on MultiWOZ with its large knowledge base, by variant."""


def report(desk: Desk, board: Board, arms: Sequence[str], result: str) -> Measures:
    """Write report.md and examples.html; what was measured of every retriever and arm, the result last."""
    measures = board.measures()
    desk.run.on_first(lambda: _write(desk, board, measures, arms, result))
    ours = measures.pop(result)
    return measures | {result: ours}


def _write(desk: Desk, board: Board, measures: Measures, arms: Sequence[str], result: str) -> None:
    run, variant = desk.run, desk.ran.settings.loss.variant
    table = markdown_table(main_table(measures, variant))
    sentence = _sentence(measures, result)
    figure = save_figure(recall_figure(board), run.file("recall.png"))
    write_text(run.file("examples.html"), examples_page(board, result))
    training = save_figure(training_figure(run, arms), run.file("training.png"))
    parts = [
        "## Systems and retrievers on the test turns", table,
        "Published: entity F1 / BLEU / Recall@7 on MultiWOZ 2.1, T5-base, large knowledge base.", figure,
        f"## {result} less every other, by dialogues drawn with replacement (95 % interval)",
        markdown_table(differences(board, result, desk.seed)),
        "## What responses were made of", markdown_table(examples_table(board, result)),
        "All test turns that name an entity, with colours: [examples.html](examples.html).",
        "## Joint training", training, markdown_table(ends_table(run, arms)),
        "## Records used, and dropped by reason", counts_table(desk.counts),
    ]  # fmt: skip
    write_report(run, desk.title, sentence, desk.ran, parts)
    run.log(table)
    run.log(sentence)
    run.log(f"report: {run.file('report.md')}; model: {run.file('model')}")


def _sentence(measures: Measures, result: str) -> str:
    ours, first = measures[result], measures[PRETRAINED]
    ranks = [name for name in ours if name.startswith("R@")]
    told = ", ".join(f"{name} {ours[name]:.1f} (pre-trained {first[name]:.1f})" for name in ranks if name in first)
    return f"{result}: entity F1 {ours['entity F1']:.1f}, BLEU {ours['BLEU']:.1f}{', ' if told else ''}{told}."


def main_table(measures: Measures, variant: str) -> list[Line]:
    """A line for each retriever and system."""
    names = list(dict.fromkeys(["entity F1", "BLEU", *(name for found in measures.values() for name in found)]))
    lines = []
    for model, found in measures.items():
        beside = PUBLISHED.get(model, {})
        told = {name: f"{found[name]:.2f}" if name in found else "" for name in names}
        lines.append({"model": model} | told | {"published": beside.get(variant, beside.get("", ""))})
    return lines


def differences(board: Board, result: str, seed: int) -> list[Line]:
    """The result less every other system, in entity F1, BLEU and recall, from the same drawn dialogues."""
    lines = []
    for other in [name for name in board.ranked if name != result]:
        line = {"less": other}
        if other in board.scored:
            pair = board.scored[result], board.scored[other]
            for name, found in (
                ("entity F1", f1_difference(*pair, seed=seed)), ("BLEU", bleu_difference(*pair, seed=seed)),
            ):  # fmt: skip
                line[name] = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        for k in board.ranks:
            both = board.recall(result, k), board.recall(other, k)
            if len(set(both[0].dialogues.tolist())) > 1:
                found = recall_difference(*both, seed=seed)
                line[f"R@{k}"] = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        changed = [a[:1] != b[:1] for a, b in zip(board.ranked[result], board.ranked[other])]
        line["turns with another top-1"] = f"{100 * sum(changed) / max(len(changed), 1):.1f} %"
        lines.append(line)
    names = list(dict.fromkeys(name for line in lines for name in line))
    return [{name: line.get(name, "") for name in names} for line in lines]


def recall_figure(board: Board) -> Figure:
    """Recall@K over K of every retriever."""
    figure, (axes,) = new_figure(size=(7, 4))
    ranks = list(range(1, board.top_k + 1))
    for name, colour in zip(board.ranked, hue(len(board.ranked))):
        shares = [share for k in ranks if (share := board.recall(name, k).share) is not None]
        if len(shares) == len(ranks):
            axes.plot(ranks, shares, color=colour, marker="o", markersize=4, label=name)
    axes.set_xticks(ranks)
    tidy(axes, "Turns whose entities hold all values of the response", x="K", y="Recall@K, per cent", legend=True)
    return figure


PANELS = {
    "cross-entropy": "loss/nll", "marginal likelihood": "loss/mml", "validation entity F1": "eval_f1",
    "entropy of the posterior, nats": "posterior_entropy", "score of rank 1": "score_of_rank_1",
    "posterior is highest at another rank": "posterior_at_another_rank",
}  # fmt: skip


def training_figure(run: RunFolder, arms: Sequence[str]) -> Figure:
    """What was logged of the joint trainings."""
    figure, every = new_figure(2, 3, size=(13, 6.4))
    for axes, (title, metric) in zip(every, PANELS.items()):
        for arm, colour in zip(arms, hue(len(arms))):
            found = curves(run.file("arms") / arm, [metric])
            if metric in found:
                steps, values = found[metric]
                axes.plot(steps, values, color=colour, linewidth=1.4, label=arm)
        tidy(axes, title, x="optimizer step", legend=len(axes.lines) > 0)
    return figure


def ends_table(run: RunFolder, arms: Sequence[str]) -> list[Line]:
    """The last logged values of each arm's training."""
    names = [*PANELS.values(), "posterior_of_rank_1", "prior_of_rank_1", "another_top_1_by_now", "loss/ctr"]
    lines = []
    for arm in arms:
        found = curves(run.file("arms") / arm, names)
        lines.append({"arm": arm} | {name: f"{found[name][1][-1]:.4f}" if name in found else "" for name in names})
    return lines


def examples_table(board: Board, arm: str) -> list[Line]:
    """The first test turns that name an entity: the context's end, entities with scores, both responses."""
    knowledge, lines = board.data.knowledge, []
    for number in naming_turns(board.data.test, board.dataset)[:6]:
        turn, one = board.data.test[number], board.said[arm][number]
        found = ", ".join(f"{knowledge.names[i]} {s:.2f}" for i, s in zip(one.entities, one.scores))
        lines.append({
            "context": turn.context[-90:], "entities": found, "response": prediction_text(one.text),
            "reference": reference_text(turn.response),
        })  # fmt: skip
    return lines


STYLE = (
    "body{font:15px sans-serif;max-width:62em;margin:2em auto;color:#333}article{border-top:1px solid #d9d9d9;"
    "padding:1em 0}.bar{background:#cfe3f3;display:inline-block;height:.8em;vertical-align:middle}.right{background:"
    "#bfe3d3}.wrong{background:#f3cdb5}.missed{border-bottom:2px solid #d55e00}td{padding:.1em .8em .1em 0}"
)


def examples_page(board: Board, arm: str) -> str:
    """Turns that name an entity: retrieved entities with bars of their scores, the response with its right (green) and
    spurious (orange) values, the reference with the missed ones underlined."""
    turns, parts = board.data.test, list[str]()
    for number in naming_turns(turns, board.dataset)[:SHOWN]:
        turn, one = turns[number], board.said[arm][number]
        said, wanted = prediction_text(one.text), reference_text(turn.response)
        ours, theirs = (entities_in(text, board.data.entities, board.dataset) for text in (said, wanted))
        rows = "".join(_entity_row(board, place, s, turn.gold) for place, s in zip(one.entities, one.scores))
        marked = {value: "right" if value in theirs else "wrong" for value in ours}
        missed = {value: "missed" for value in theirs if value not in ours}
        parts.append(
            f"<article><p>{html.escape(turn.context)}</p><table>{rows}</table>"
            f"<p><b>{html.escape(arm)}:</b> {_coloured(said, marked)}</p>"
            f"<p><b>reference:</b> {_coloured(wanted, missed)}</p></article>"
        )
    head = f'<!doctype html><meta charset="utf-8"><title>Responses of {html.escape(arm)}</title><style>{STYLE}</style>'
    return f"{head}<h1>Retrieved entities and responses of {html.escape(arm)}</h1>{''.join(parts)}\n"


def _entity_row(board: Board, place: int, score: float, gold: Sequence[str]) -> str:
    entity = board.data.knowledge.entities[place]
    values = ", ".join(entity.values())
    held = sum(value in gold for value in entity.values())
    bar = f'<span class="bar" style="width:{max(score, 0) * 8:.2f}em"></span> {score:.2f}'
    return f"<tr><td>{bar}</td><td>{html.escape(values)}</td><td>{held} of {len(gold)} values</td></tr>"


def _coloured(text: str, classes: Mapping[str, str]) -> str:
    """A text with the values marked, longer ones first."""
    marks = list[tuple[int, int, str]]()
    for value, kind in sorted(classes.items(), key=lambda one: -len(one[0])):
        start = text.find(value)
        if start >= 0 and not any(a < start + len(value) and start < b for a, b, _ in marks):
            marks.append((start, start + len(value), kind))
    out, last = list[str](), 0
    for start, end, kind in sorted(marks):
        out += [html.escape(text[last:start]), f'<span class="{kind}">{html.escape(text[start:end])}</span>']
        last = end
    return "".join([*out, html.escape(text[last:])])
