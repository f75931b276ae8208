"""report.md of KCA: how the base model does in the exam beside guessing, and what every strategy makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_jax.figures import hue, new_figure, tidy
from fusion_jax.kca.partition import Passed
from fusion_jax.kca.records import KNOWN, Instance
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.runs.calibrating import STANDARD, Answer, Calibrating
from fusion_jax.runs.counts import counts_table
from fusion_jax.runs.fact_world import groups_of, outcome_of
from fusion_jax.runs.plots import training_figure
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.seeds import Measures
from fusion_jax.zoo.facts import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = (
    "Published (16 cells of four base models and four test sets): the hallucination rate is lower than the standard "
    "one's in 16 with discard, in 13 with open-book, and in 16 with refusal, there over answered questions alone; "
    "refusal is the least helpful in 16."
)


def report(
    run: Calibrating, exams: Mapping[str, Passed], train: Sequence[Instance], world: World | None,
    agreed: Mapping[str, float] = {},
) -> Measures:  # fmt: skip
    """Write report.md; what was measured of every arm and of the exam. agreed: of second exams, by set."""
    measures: Measures = {"exam": exam_measures(exams, train, world)}
    measures["exam"] |= {f"same class again, {name}": share for name, share in agreed.items() if not math.isnan(share)}
    for arm in run.answers:
        measures[arm] = arm_measures(run, arm) | (world_measures(run, arm, world) if world else {})
    run.desk.run.on_first(lambda: _write(run, exams, measures, world))
    return measures


def exam_measures(exams: Mapping[str, Passed], train: Sequence[Instance], world: World | None) -> dict[str, float]:
    """Shares that pass, and the chance of passing by guessing; of the world by whether the model has read of them."""
    found = exams["train"]
    out = {"passed": found.rate, "by guessing": found.chance}
    if world:
        groups = groups_of(world, "train")
        for group in ("seen", "unseen"):
            mine = [one.label == KNOWN for one in train if one.label and groups[one.source.instruction] == group]
            out[f"passed, {group}"] = float(np.mean(mine)) if mine else math.nan
    return {name: value for name, value in out.items() if not math.isnan(value)}


def arm_measures(run: Calibrating, arm: str) -> dict[str, float]:
    """(a) to (d) on each test set, and the mean helpfulness."""
    names, out = list(run.sets), dict[str, float]()
    for name in names:
        own, before = run.accounts(name)[arm], "" if len(names) == 1 else f"{name}: "
        shares = {
            "hallucinated, of all": own.of_all, "of the answered": own.answered, "refused": own.refused,
            "standard on the same": own.other_on_answered,
        }  # fmt: skip
        out |= {f"{before}{what}": rate.share for what, rate in shares.items() if rate.of}
        helpful = [one.helpfulness for one in run.answers[arm][name] if one.helpfulness is not None]
        out |= {f"{before}helpfulness": float(np.mean(helpful))} if helpful else {}
    return out


def world_measures(run: Calibrating, arm: str, world: World) -> dict[str, float]:
    """Right, wrong, refused and withheld answers over all questions about people whom the base model has read of, and
    about the others."""
    groups, out = groups_of(world, "test"), dict[str, float]()
    answers = [one for found in run.answers[arm].values() for one in found]
    for group in ("seen", "unseen", "no facts"):
        mine = [one for one in answers if groups[one.instance.source.instruction] == group]
        if not mine:
            continue
        said = ["refused" if one.refused else _outcome(world, one) for one in mine]
        kinds = ("right",) if group == "no facts" else ("right", "wrong", "withheld", "refused")
        out |= {f"{kind}, {group}": said.count(kind) / len(said) for kind in kinds}
    return out


def _outcome(world: World, one: Answer) -> str:
    return outcome_of(world, one.instance.source.instruction, one.text)


def _write(run: Calibrating, exams: Mapping[str, Passed], measures: Measures, world: World | None) -> None:
    desk, shown = run.desk, list[str]()
    shown += ["## The base model's exam", markdown_table([found.row(name) for name, found in exams.items()])]
    shown.append(_exam_sentence(exams))
    again = {name: share for name, share in measures["exam"].items() if name.startswith("same class again")}
    shown += [f"{name}: {100 * share:.1f} % of those examined twice." for name, share in again.items()]
    shown += ["Answers by letter (how often it was right, and how often it was chosen):"]
    shown.append(markdown_table([_letters(name, found) for name, found in exams.items() if found.questions]))
    for name in run.sets if run.answers else ():
        shown += [f"## Answers to {name}, percent with 95 % Wilson intervals", *_tables(run, name)]
    if world:
        table = [{"model": arm, **_percent(world_measures(run, arm, world))} for arm in run.answers]
        shown += ["## What the answers are, percent of all questions", markdown_table(table)]
        shown.append(save_figure(outcome_figure(run, world), desk.run.file("answers.png")))
        shown.append(PUBLISHED)
    near = [one for found in run.answers.values() for some in found.values() for one in some if one.refusal == "near"]
    if near:
        shown += ["Answers that nearly refuse, counted as answers:", markdown_table([_near(one) for one in near[:10]])]
    folders = {arm: desk.run.file(f"arms/{arm}") for arm in run.answers if desk.run.file(f"arms/{arm}").exists()}
    shown += ["## Training", save_figure(training_figure(folders), desk.run.file("training.png"))]
    shown += ["## Records used, and dropped by reason", counts_table(desk.counts)]
    result = _result(run, exams, measures)
    write_report(desk.run, desk.title, result, desk.ran, shown)
    desk.run.log(result)
    desk.run.log(f"report: {desk.run.file('report.md')}; model: {desk.run.file('model')}")


def _tables(run: Calibrating, name: str) -> list[str]:
    """All questions and the answered alone, side by side."""
    shown = [markdown_table([own.row(arm) for arm, own in run.accounts(name).items()])]
    overlap = run.overlap(name) if run.settings.rouge else {}
    lines = []
    for arm, answers in run.answers.items():
        helpful = [one.helpfulness for one in answers[name] if one.helpfulness is not None]
        line = {"helpfulness": f"{np.mean(helpful):.2f} ({len(helpful)})"} if helpful else {}
        line |= {what: f"{value:.2f}" for what, value in overlap.get(arm, {}).items()}
        lines.append({"model": arm, **line})
    return shown + ([markdown_table(lines)] if any(len(line) > 1 for line in lines) else [])


def _exam_sentence(exams: Mapping[str, Passed]) -> str:
    told = []
    for name, found in exams.items():
        if found.examined:
            verdict = "more than guessing explains" if found.above_chance else "no more than guessing explains"
            by_valid = ", ".join(f"{passed} of {count} with {n}" for n, (count, passed) in found.by_valid.items())
            told.append(f"{name}: {verdict} (passed: {by_valid} valid questions).")
    return " ".join(told)


def _letters(name: str, found: Passed) -> dict[str, Any]:
    return {"set": name} | {letter: f"{right} / {chosen}" for letter, (right, chosen) in found.letters.items()}


def _near(one: Answer) -> dict[str, str]:
    return {"question": one.instance.source.instruction[:120], "answer": one.text[:160]}


def _percent(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{100 * value:.1f}" for name, value in values.items()}


def outcome_figure(run: Calibrating, world: World) -> Figure:
    """Shares of right, wrong, withheld and refused answers of every arm, to questions about people whom the base model
    has read of, and about the others."""
    figure, panels = new_figure(1, 2, size=(9.2, 3.4))
    kinds = ("right", "withheld", "refused", "wrong")
    for axes, group in zip(panels, ("seen", "unseen"), strict=True):
        arms, left = list(run.answers), np.zeros(len(run.answers))
        found = [world_measures(run, arm, world) for arm in arms]
        for kind, colour in zip(kinds, hue(len(kinds)), strict=True):
            values = np.asarray([one.get(f"{kind}, {group}", 0.0) for one in found])
            axes.barh(arms, values, left=left, color=colour, label=kind)
            left = left + values
        tidy(axes, f"people {group} in pretraining", x="share of all questions", legend=True)
    return figure


def _result(run: Calibrating, exams: Mapping[str, Passed], measures: Measures) -> str:
    found = exams["train"]
    told = (
        f"{100 * found.rate:.1f} % of the examined training instances pass, {100 * found.chance:.1f} % by guessing."
        if found.examined
        else "Nobody sat an exam."
    )
    what = "hallucinated, of all"
    rates = {arm: values[what] for arm, values in measures.items() if what in values}
    if rates:
        listed = ", ".join(f"{arm} {100 * rate:.1f}" for arm, rate in rates.items())
        told += f" Hallucinated answers, percent of all questions: {listed}."
    return told if rates or STANDARD in run.answers else f"{told} No judge was given."
