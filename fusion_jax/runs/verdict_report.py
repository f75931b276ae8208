"""What verdicts amount to: win rates, ratings or scores with intervals, and how far the judge can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.evals.judging.bradley_terry import Battle, ranked
from fusion_jax.evals.judging.length_control import FOLDS, difficulties, length_controlled
from fusion_jax.evals.judging.preferences import discrete_win_rate, win_rate
from fusion_jax.evals.judging.reliability import agreement, place_bias
from fusion_jax.evals.judging.turns import by_category
from fusion_jax.evals.judging.verdicts import as_preference
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.runs.counts import counts_table
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.seeds import Measures
from fusion_jax.runs.verdicts import Compared, JudgeSettings

Row = dict[str, str]


class Told(NamedTuple):
    """rows: of the table; measures: of each model; notes: sentences about it."""

    rows: list[Row]
    measures: Measures
    notes: list[str]


def by_place(s: JudgeSettings, compared: Compared, records: Sequence[Record], model: str) -> np.ndarray:
    """float[n,2]: the preference for the model's answer to each question where it stands first and second; nan where
    there is no verdict."""
    out = np.full((len(compared.keys), 2), np.nan)
    where = {key: number for number, key in enumerate(compared.keys)}
    for one in records:
        if one["model"] == model and not one["again"] and one["verdict"] is not None:
            first = as_preference(s.style, one["verdict"])
            out[where[one["question_id"]], one["place"]] = first if one["place"] == 0 else 1 - first
    return out


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """float[n]: the mean of each row's numbers, nan where it has none."""
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0).sum(1), known.sum(1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def pairs_told(s: JudgeSettings, compared: Compared, records: Sequence[Record]) -> Told:
    """AlpacaEval 2: preferences, win rates, and what they would be at equal lengths."""
    names = [name for name in compared.models if name != compared.baseline]
    how = {"seed": s.seed, "resamples": s.resamples}
    preferences = {name: mean_of_known(by_place(s, compared, records, name)) for name in names}
    lengths = {
        name: np.asarray([sum(map(len, own[key].said)) for key in compared.keys], float)
        for name, own in compared.models.items()
    }
    gamma, told = _difficulty(compared, preferences, lengths)
    rows, measures, notes = list[Row](), Measures(), [told]
    for name in names:
        known = preferences[name][~np.isnan(preferences[name])]
        if not len(known):
            notes.append(f"{name}: no verdict could be read.")
            continue
        rate, discrete = win_rate(known, **how), discrete_win_rate(known, **how)
        row = {"model": name, "win rate %": rate.told(100, 1), "wins and half the ties %": discrete.told(100, 1)}
        measures[name] = {"win rate": rate.value, "discrete win rate": discrete.value}
        if len(known) >= 2 * FOLDS:
            found = length_controlled(
                preferences[name], lengths[name], lengths[compared.baseline], difficulty=gamma, seed=s.seed,
                resamples=s.resamples,
            )  # fmt: skip
            measures[name]["length-controlled win rate"] = found.rate.value
            row |= {"length-controlled %": found.rate.told(100, 1), "of length": f"{found.coefficients[1]:+.2f}"}
        else:
            row |= {"length-controlled %": f"needs {2 * FOLDS} verdicts", "of length": ""}
        rows.append(row | {"characters": f"{lengths[name].mean():.0f}", "questions": str(len(known))})
    baseline = lengths[compared.baseline].mean()
    notes.append(f"The baseline is {compared.baseline}, whose answers have {baseline:.0f} characters on average.")
    return Told(rows, measures, notes)


def _difficulty(
    compared: Compared, preferences: dict[str, np.ndarray], lengths: dict[str, np.ndarray]
) -> tuple[np.ndarray | None, str]:
    """Each question's difficulty, and where it is from."""
    if compared.difficulty is not None:
        return compared.difficulty, "Difficulties are those of --difficulty."
    if len(preferences) < 2:
        return None, "Difficulty is left out of the regression: one model does not tell it."
    base = lengths[compared.baseline]
    deltas = np.stack([base - lengths[name] for name in preferences])
    found = difficulties(np.stack(list(preferences.values())), deltas)
    return found, "Difficulties were fitted to these models together."


def grades_told(s: JudgeSettings, compared: Compared, records: Sequence[Record]) -> Told:
    """Arena-Hard: five grades in both orders, Bradley-Terry."""
    names = list(compared.models)
    where = {key: number for number, key in enumerate(compared.keys)}
    battles = list[Battle]()
    for one in records:
        if not one["again"] and one["verdict"] is not None:
            pair = (names.index(one["model"]), 0) if one["place"] == 0 else (0, names.index(one["model"]))
            battles.append(Battle(where[one["question_id"]], *pair, int(one["verdict"])))
    if not battles:
        return Told([], {}, ["No verdict could be read."])
    seen = {0} | {b.first for b in battles} | {b.second for b in battles}
    kept = [number for number in range(len(names)) if number in seen]
    renamed = {number: place for place, number in enumerate(kept)}
    moved = [b._replace(first=renamed[b.first], second=renamed[b.second]) for b in battles]
    found = ranked(moved, len(kept), seed=s.seed, resamples=s.resamples)
    order = sorted(range(len(kept)), key=lambda place: -found[place].rating.value)
    rows = [
        {
            "model": names[kept[place]], "win rate against the baseline %": found[place].rate.told(100, 1),
            "rating": found[place].rating.told(1, 0),
            "verdicts": str(sum(place in (b.first, b.second) for b in moved)),
        }
        for place in order
    ]  # fmt: skip
    measures = {
        names[kept[place]]: {"win rate": found[place].rate.value, "rating": found[place].rating.value}
        for place in order
        if place
    }
    return Told(rows, measures, [f"The baseline is {compared.baseline}; 'much better' counts as three wins."])


def scores_told(s: JudgeSettings, compared: Compared, records: Sequence[Record]) -> Told:
    """MT-Bench: mean scores by turn and by category."""
    where = {key: number for number, key in enumerate(compared.keys)}
    categories = [compared.models[compared.baseline][key].category or "all" for key in compared.keys]
    turns = max(len(own[key].turns) for own in compared.models.values() for key in compared.keys)
    rows, measures = list[Row](), Measures()
    for name in compared.models:
        scores = np.full((len(compared.keys), turns), np.nan)
        for one in records:
            if one["model"] == name and not one["again"] and one["verdict"] is not None:
                scores[where[one["question_id"]], one["place"]] = one["verdict"]
        found = by_category(scores, categories, seed=s.seed, resamples=s.resamples)
        for category, values in found.items():
            told = {f"turn {number}": one.told(1, 2) for number, one in enumerate(values[:-1], 1)}
            rows.append({"model": name, "category": category, **told, "all turns": values[-1].told(1, 2)})
        measures[name] = {f"turn {number}": one.value for number, one in enumerate(found["all"][:-1], 1)}
        measures[name]["score"] = found["all"][-1].value
    return Told(rows, measures, [])


def judge_told(s: JudgeSettings, compared: Compared, records: Sequence[Record]) -> list[Row]:
    """How often the judge agrees with itself, and which place it prefers."""
    how = {"seed": s.seed, "resamples": s.resamples}
    first = {(r["model"], r["question_id"], r["place"]): r["verdict"] for r in records if not r["again"]}
    both = [
        (first[r["model"], r["question_id"], r["place"]], r["verdict"])
        for r in records
        if r["again"] and r["verdict"] is not None and first[r["model"], r["question_id"], r["place"]] is not None
    ]
    rows = list[Row]()
    if both:
        values = np.asarray(both, float)
        kinds = np.sign(values - 0.5) if s.style == "alpaca" else values
        found = agreement(kinds[:, 0], kinds[:, 1], **how)
        for what, one in (("agrees with itself", found.share), ("Cohen's kappa of that", found.kappa)):
            rows.append({"of the judge": what, "value": one.told(), "pairs": str(found.pairs)})
    if s.style != "mtbench":
        places = [by_place(s, compared, records, name) for name in compared.models if name != compared.baseline]
        whole = np.concatenate(places)
        if (~np.isnan(whole)).all(1).any():
            bias = place_bias(whole[:, 0], whole[:, 1], **how)
            for what, one in (
                ("same winner in both orders", bias.consistent), ("first place wins both times", bias.first),
                ("second place wins both times", bias.second), ("preference for the first place, less 0.5", bias.lead),
            ):  # fmt: skip
                rows.append({"of the judge": what, "value": one.told(), "pairs": str(bias.pairs)})
    return rows


def result_sentence(s: JudgeSettings, compared: Compared, told: Told) -> str:
    """Who does best, or that nobody beats the baseline."""
    judged = f"Judged by {s.called} on {len(compared.keys)} questions: "
    best = max(told.measures, key=lambda name: next(iter(told.measures[name].values())), default="")
    if not best:
        return f"{judged}no verdict could be read."
    values = ", ".join(f"{what} {value:.3f}" for what, value in told.measures[best].items())
    if s.style == "mtbench":
        return f"{judged}{best} does best of all models ({values})."
    if next(iter(told.measures[best].values())) <= 0.5:
        return f"{judged}no model beats {compared.baseline}; {best} comes nearest ({values})."
    return f"{judged}{best} does best against {compared.baseline} ({values})."


def report(s: JudgeSettings, desk: Desk, compared: Compared, records: Sequence[Record]) -> Measures:
    """report.md and the tables on the screen; what was measured of each model."""
    of_style = {"alpaca": pairs_told, "arena": grades_told, "mtbench": scores_told}
    told = of_style[s.style](s, compared, records)
    of_judge = judge_told(s, compared, records)
    result = result_sentence(s, compared, told)

    def write() -> None:
        table, trust = markdown_table(told.rows), markdown_table(of_judge)
        parts = ["## Verdicts, with 95 % intervals of questions drawn anew", table, " ".join(told.notes)]
        if said := {one["reason"]: one["detail"] for one in records if one.get("detail")}:
            parts += ["Of failures, for instance: " + "; ".join(f"{what}: {detail}" for what, detail in said.items())]
        parts += ["## The judge", trust, "## Records used, and dropped by reason", counts_table(desk.counts)]
        write_report(desk.run, desk.title, result, desk.ran, parts)
        for text in (table, *told.notes, trust, result, f"report: {desk.run.file('report.md')}"):
            desk.run.log(text)

    desk.run.on_first(write)
    return told.measures
