"""What a run of ProFuser tells of its sources: who won in which mode, how the judges voted, what reached the target."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.rewards.revision import refuses
from fusion_jax.runs.fusing import reach_parts
from fusion_jax.runs.panel import Panel

NEARLY_ALWAYS = 0.95
"""Share of the instructions from which on a mode is plain distillation from one source."""


def wins(labels: Sequence[Record], mode: str) -> Counter[str]:
    """How many instructions each source won in a mode; those that nobody won are left out."""
    return Counter(label[f"{mode}_winner"] for label in labels if label[f"{mode}_winner"] is not None)


def source_lines(
    panel: Panel, labels: Sequence[Record], answers: Mapping[str, Sequence[Record]]
) -> list[dict[str, str]]:
    """A line a source: its wins, how well it knows right answers, and what it writes."""
    won = {mode: wins(labels, mode) for mode in ("train", "infer")}
    lines = []
    for place, name in enumerate(panel.names):
        ces = [label["ce"][place] for label in labels if label["ce"][place] is not None]
        own = answers[name]
        line = {"source": name, "wins by reading": _share(won["train"][name], won["train"].total())}
        line["wins by writing"] = _share(won["infer"][name], won["infer"].total())
        line[f"mean surprise ({'nats a token' if panel.settings.ce_norm == 'token' else 'nats a byte'})"] = _mean(ces)
        line["tokens of its answers"] = _mean([one["n_tok"] for one in own])
        line["finished"] = _share(sum(bool(one["finished"]) for one in own), len(own))
        line["refusals"] = _share(sum(refuses(one["text"]) for one in own), len(own))
        lines.append(line)
    return lines


def voting_lines(
    panel: Panel, labels: Sequence[Record], answers: Mapping[str, Sequence[Record]], judges: Sequence[str]
) -> list[dict[str, str]]:
    """What tells whether two modes and several judges are worth having."""
    both = [one for one in labels if one["train_winner"] is not None and one["infer_winner"] is not None]
    voted = [one for one in labels if one["infer_winner"] is not None]
    unanimous = sum(max(one["votes"]) == sum(one["votes"]) for one in voted)
    same = sum(one["train_winner"] == one["infer_winner"] for one in both)
    lines = [
        {"what": "instructions whose winner is the same in both modes", "value": _share(same, len(both))},
        {"what": "instructions with the same winner by reading, by tokens and by bytes", "value": _by_norm(labels)},
        {"what": "mean gap between the two least surprised sources", "value": _gap(labels)},
        {"what": "unanimous votes", "value": _share(unanimous, len(voted))},
        {"what": "instructions without an answer that may win", "value": str(len(labels) - len(voted))},
        {"what": "votes of a judge that scores several best, given to the first", "value": _ties(voted)},
    ]
    favourites = np.asarray([_favourites(one) for one in voted]).reshape(-1, len(judges))
    for a, b in itertools.combinations(range(len(judges)), 2):
        alike = int((favourites[:, a] == favourites[:, b]).sum())
        lines.append({"what": f"votes of {judges[a]} and {judges[b]} alike", "value": _share(alike, len(voted))})
    some_won = [(answers[name][n], name == one["infer_winner"]) for n, one in enumerate(labels) for name in panel.names
                if one["infer_winner"] is not None]  # fmt: skip
    for who, winning in (("winners", True), ("the others", False)):
        some = [answer for answer, won in some_won if won == winning]
        lines.append({"what": f"tokens of the answers of {who}", "value": _mean([one["n_tok"] for one in some])})
        refused = sum(refuses(one["text"]) for one in some)
        lines.append({"what": f"refusals among the answers of {who}", "value": _share(refused, len(some))})
    for number, judge in enumerate(judges):
        value = _length_correlation(panel, labels, answers, number)
        lines.append({"what": f"correlation of the score of {judge} with length", "value": value})
    return lines


def _favourites(label: Record) -> list[int]:
    scores = np.asarray([[np.nan if x is None else x for x in row] for row in label["scores"]])
    scores = np.where(np.asarray(label["valid"]) & np.isfinite(scores).all(0), scores, -np.inf)
    return scores.argmax(1).tolist()


def _ties(labels: Sequence[Record]) -> str:
    found = []
    for one in labels:
        usable = [[x for x, ok in zip(row, one["valid"], strict=True) if ok and x is not None] for row in one["scores"]]
        found += [row.count(max(row)) > 1 for row in usable if row]
    return _share(sum(found), len(found))


def _by_norm(labels: Sequence[Record]) -> str:
    known = [one["by_norm"] for one in labels if None not in one["by_norm"].values()]
    return _share(sum(len(set(one.values())) == 1 for one in known), len(known))


def _gap(labels: Sequence[Record]) -> str:
    found = [sorted(ce for ce in one["ce"] if ce is not None)[:2] for one in labels]
    return _mean([two[1] - two[0] for two in found if len(two) == 2])


def _length_correlation(
    panel: Panel, labels: Sequence[Record], answers: Mapping[str, Sequence[Record]], judge: int
) -> str:
    """Of a judge's score with an answer's tokens, within instructions."""
    scores, sizes = [], []
    for number, label in enumerate(labels):
        own = np.asarray([np.nan if x is None else x for x in label["scores"][judge]])
        if np.isfinite(own).all() and len(own) > 1:
            scores += (own - own.mean()).tolist()
            tokens = np.asarray([answers[name][number]["n_tok"] for name in panel.names], float)
            sizes += (tokens - tokens.mean()).tolist()
    if len(scores) < 3 or not np.std(scores) or not np.std(sizes):
        return ""
    return f"{np.corrcoef(scores, sizes)[0, 1]:+.2f}"


def warnings_of(labels: Sequence[Record]) -> list[str]:
    """What should make one doubt: a source that wins nearly always."""
    told = []
    for mode, words in (("train", "by reading"), ("infer", "by writing")):
        found = wins(labels, mode)
        for name, count in found.most_common(1):
            if count > NEARLY_ALWAYS * found.total():
                share = f"{100 * count / found.total():.1f} %"
                told.append(f"note: '{name}' wins {share} of the instructions {words}: this mode distils it alone")
    return told


def tables_of(
    panel: Panel, labels: Sequence[Record], answers: Mapping[str, Sequence[Record]], judges: Sequence[str]
) -> list[str]:
    """The report's part about the sources."""
    lines, votes = source_lines(panel, labels, answers), voting_lines(panel, labels, answers, judges)
    reached = reach_parts([(mode, name, reach) for (mode, name), reach in panel.reached.items()], "mode")
    tables = "## Sources", markdown_table(lines), "## Votes", markdown_table(votes)
    return [*tables, *warnings_of(labels), *reached, *panel.work.parts()]


def _share(count: int, total: int) -> str:
    return f"{count / total:.3f}" if total else ""


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if len(values) else ""
