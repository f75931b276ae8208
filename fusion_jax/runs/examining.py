"""How well a reviser and the rounds of SEFT do: measures, tables, and what calls for attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table
from fusion_jax.rewards.revision import auc, keep_threshold, p_keep
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.evolving import KEPT, REVISED, Judge, number_or_none, usable
from fusion_jax.runs.reading import Asked
from fusion_jax.runs.revising import Pair, Reviser, decide, revise
from fusion_jax.runs.seeds import MOST_TELLING, Measures
from fusion_jax.sampling.generate import SampleSettings

MATCHED = (0.7, 1.4)  # lengths of the bad answer over the good one that count as alike


def examined(reviser: Reviser, pairs: Sequence[Pair], how: SampleSettings, seed: int, judge: Judge) -> list[Record]:
    """What the reviser makes of both answers of held-out pairs, a record each, both revised whatever the label.

    {"pair_id", "high": {...}, "low": {...}} of the good and the bad answer, each {"p_keep", "revised", "why", "tokens",
    "p_keep_revised", "reward", "reward_revised"}. tokens: of the answer and of its revision; a revision that does not
    count is judged as the answer that it leaves. What is not known is None: p_keep of what the reviser cannot read,
    rewards of what cannot be judged.
    """
    out: list[Record] = [{"pair_id": p.name, "flaw": p.known.get("flaw")} for p in pairs]
    for side, drafts in {"high": [p.chosen for p in pairs], "low": [p.rejected for p in pairs]}.items():
        asked = [Asked(p.messages, draft) for p, draft in zip(pairs, drafts)]
        scores = decide(reviser, asked)
        revised = revise(reviser, asked, scores, how, seed)
        after = [draft if r.why else r.text for r, draft in zip(revised, drafts)]
        again = decide(reviser, [Asked(p.messages, text) for p, text in zip(pairs, after)])
        rewards, revised_rewards = (
            judge([{**p.known, "prompt": p.messages[-1]["content"], "response": t} for p, t in zip(pairs, texts)])
            for texts in (drafts, after)
        )
        columns = zip(out, p_keep(scores), revised, p_keep(again), rewards, revised_rewards)
        for record, keep, r, keep_revised, reward, reward_revised in columns:
            record[side] = {
                "p_keep": number_or_none(keep), "revised": r.text, "why": r.why, "tokens": list(r.tokens),
                "p_keep_revised": number_or_none(keep_revised), "reward": reward, "reward_revised": reward_revised,
            }  # fmt: skip
    return out


@dataclass(frozen=True)
class Examination:
    """A reviser's measures on held-out pairs; NaN where nothing could be judged or there is nothing of a kind.

    pairs: that the reviser could read, both answers of each; judged: how many of them have all rewards. Measures of
    rewards leave out what has none. preserve: share of the good answers that the threshold shall keep.
    matched: the AUC where the two answers are alike in length. keep_high, keep_low: shares of good and of bad answers
    that are kept. valid: share of the bad answers' revisions that count; length_ratio: of their tokens to the
    answer's; idempotent: how many of them have a higher p_keep than the answer. wins, wins_high: how often a bad
    answer's revision is rewarded above it, above the good answer (equal ones count half). harm: share of the good
    answers whose revision is rewarded less. rewards: means of bad answers, their revisions, good ones, their revisions.
    """

    pairs: int
    judged: int
    preserve: float
    threshold: float
    auc: float
    matched: float
    keep_high: float
    keep_low: float
    valid: float
    length_ratio: float
    idempotent: float
    wins: float
    wins_high: float
    harm: float
    rewards: tuple[float, float, float, float]


def examination(records: Sequence[Record], preserve: float) -> Examination:
    """The measures of `examined`, at the threshold that preserves such a share of the good answers.

    Pairs that the reviser cannot read are left out; without any, the threshold is 0.5 and nothing is measured.
    """
    records = [r for r in records if r["high"]["p_keep"] is not None and r["low"]["p_keep"] is not None]
    nan = math.nan
    if not records:
        return Examination(0, 0, preserve, 0.5, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, (nan, nan, nan, nan))
    good, bad = _column(records, "high", "p_keep"), _column(records, "low", "p_keep")
    threshold = keep_threshold(good, preserve)
    tokens = np.asarray([[*r["high"]["tokens"], *r["low"]["tokens"]] for r in records], np.float64)
    high, _, low, revised = tokens.T
    alike = (low / high >= MATCHED[0]) & (low / high <= MATCHED[1])
    valid = np.asarray([not r["low"]["why"] for r in records])
    before, after, best, harmed = (
        _column(records, side, name) for side in ("low", "high") for name in ("reward", "reward_revised")
    )
    again = _column(records, "low", "p_keep_revised")
    return Examination(
        pairs=len(records), judged=int(np.sum(~np.isnan(before + after + best + harmed))), preserve=preserve,
        threshold=threshold, auc=auc(good, bad), matched=auc(good[alike], bad[alike]) if alike.any() else math.nan,
        keep_high=_mean(good >= threshold), keep_low=_mean(bad >= threshold), valid=_mean(valid),
        length_ratio=_mean((revised / low)[valid]),
        idempotent=_share((again > bad)[valid], again[valid]),
        wins=_wins(after, before), wins_high=_wins(after, best), harm=_share(harmed < best, harmed + best),
        rewards=(_mean(before), _mean(after), _mean(best), _mean(harmed)),
    )  # fmt: skip


def _column(records: Sequence[Record], side: str, name: str) -> np.ndarray:
    return _known([r[side][name] for r in records])


def _known(values: Sequence[float | None]) -> np.ndarray:
    """float64 of what records hold, None as NaN."""
    return np.asarray([math.nan if v is None else v for v in values], np.float64)


def _mean(values: np.ndarray) -> float:
    """The mean of what is known."""
    known = values[~np.isnan(values)] if len(values) else values
    return float(np.mean(known)) if len(known) else math.nan


def _share(true: np.ndarray, known: np.ndarray) -> float:
    """The share that is true of those of which `known` is no NaN."""
    return _mean(true[~np.isnan(known)])


def _wins(one: np.ndarray, other: np.ndarray) -> float:
    return _share((one > other) + 0.5 * (one == other), one + other)


def measures_table(found: Examination) -> str:
    """The reviser's measures, one a line."""
    low, low_revised, high, high_revised = found.rewards
    lines = {
        "AUC of p_keep, good against bad answers": found.auc,
        "the same, answers alike in length": found.matched,
        "threshold of p_keep": found.threshold,
        "good answers that are kept": found.keep_high,
        "bad answers that are kept": found.keep_low,
        "revisions of bad answers that count": found.valid,
        "their tokens to the answer's": found.length_ratio,
        "their p_keep is higher than the answer's": found.idempotent,
        "their reward is higher than the answer's (equal: half)": found.wins,
        "their reward is higher than the good answer's (equal: half)": found.wins_high,
        "good answers that a revision would harm": found.harm,
        "mean reward of bad answers": low,
        "mean reward of their revisions": low_revised,
        "mean reward of good answers": high,
        "mean reward of their revisions, if they were revised": high_revised,
    }
    known = [{"held-out pairs": what, "value": f"{v:.3f}"} for what, v in lines.items() if not math.isnan(v)]
    if found.pairs:
        known.insert(
            0,
            {"held-out pairs": "pairs that could be read; of these judged", "value": f"{found.pairs}; {found.judged}"},
        )
    return markdown_table(known)


def kinds_table(records: Sequence[Record], threshold: float) -> str:
    """By the kind of flaw of the bad answer, where pairs say it: what is kept, and what revising does."""
    lines = []
    for kind in dict.fromkeys(r["flaw"] for r in records if r["flaw"]):
        some = [r for r in records if r["flaw"] == kind]
        line = {"flaw": kind, "pairs": len(some)}
        keep = _column(some, "low", "p_keep")
        line["kept"] = f"{_share(keep >= threshold, keep):.2f}"
        for name, field in (("reward", "reward"), ("reward, revised", "reward_revised")):
            value = _mean(_column(some, "low", field))
            line |= {} if math.isnan(value) else {name: f"{value:.2f}"}
        lines.append(line)
    return markdown_table(lines) if lines else ""


@dataclass(frozen=True)
class Round:
    """What a round did; rewards are means over what has one, NaN where nothing has.

    kept, revised: shares of the prompts that are learnt as drafted, as revised. p_keep: mean over the taken drafts.
    judged: share of the drafts that have a reward.
    reward: mean over all drafts; taken: over the drafts that were taken; best: over the best draft of each prompt;
    learnt: over the pseudo-labels; before_revision, after_revision: over what was revised. length: mean tokens of a
    draft. distinct: different sequences of three words, of all that the drafts have.
    """

    name: str
    prompts: int
    kept: float
    revised: float
    p_keep: float
    judged: float
    reward: float
    taken: float
    best: float
    learnt: float
    before_revision: float
    after_revision: float
    length: float
    distinct: float


def rewarded(drafts: Sequence[Record], labels: Sequence[Record], judge: Judge) -> list[Record]:
    """Rewards of a round, judged all at once: {"prompt_id", "candidates", "text", "response"} of each prompt.

    candidates: of its usable drafts; text, response: of the draft that was taken, of what is learnt. None: not known.
    """
    wanted = [
        {record["candidates"][number]["text"]: None for number in usable(record)}
        | {label[field]: None for field in ("text", "response") if label.get(field)}
        for record, label in zip(drafts, labels, strict=True)
    ]
    places = [(i, text) for i, texts in enumerate(wanted) for text in texts]
    found = dict(zip(places, judge([{**labels[i], "response": text} for i, text in places]), strict=True))
    return [
        {
            "prompt_id": record["prompt_id"],
            "candidates": [found[i, record["candidates"][number]["text"]] for number in usable(record)],
            **{field: found.get((i, label.get(field))) for field in ("text", "response")},
        }
        for i, (record, label) in enumerate(zip(drafts, labels))
    ]


def round_of(name: str, drafts: Sequence[Record], labels: Sequence[Record], rewards: Sequence[Record]) -> Round:
    """The measures of a round, with the rewards of `rewarded`."""
    candidates = [record["candidates"][number] for record in drafts for number in usable(record)]
    each = [_known(record["candidates"]) for record in rewards]
    said = [at for at, r in enumerate(labels) if r["response"] is not None]
    revised = [at for at in said if labels[at]["why"] == REVISED]
    before, after = (_known([rewards[at][field] for at in revised]) for field in ("text", "response"))
    both = ~np.isnan(before + after)
    words = [one["text"].split() for one in candidates]
    threes = [tuple(some[i : i + 3]) for some in words for i in range(len(some) - 2)]
    every = np.concatenate([*each, np.zeros(0)])
    return Round(
        name=name, prompts=len(labels), kept=sum(labels[at]["why"] == KEPT for at in said) / max(len(labels), 1),
        revised=len(revised) / max(len(labels), 1), p_keep=_mean(_known([r.get("p_keep") for r in labels])),
        judged=_mean(~np.isnan(every)), reward=_mean(every), taken=_mean(_known([r["text"] for r in rewards])),
        best=_mean(np.asarray([np.nanmax(some) for some in each if not np.isnan(some).all()])),
        learnt=_mean(_known([rewards[at]["response"] for at in said])),
        before_revision=_mean(before[both]), after_revision=_mean(after[both]),
        length=_mean(np.asarray([one["tokens"] for one in candidates])),
        distinct=len(set(threes)) / max(len(threes), 1),
    )  # fmt: skip


def rounds_table(rounds: Sequence[Round]) -> str:
    """A line a round."""
    columns = {
        "kept": "kept", "revised": "revised", "p_keep": "p_keep", "judged": "judged", "reward of drafts": "reward",
        "of those taken": "taken", "of the best": "best", "of what is learnt": "learnt",
        "revised: before": "before_revision", "after": "after_revision", "tokens a draft": "length",
        "distinct-3": "distinct",
    }  # fmt: skip
    lines = []
    for one in rounds:
        values = {column: getattr(one, field) for column, field in columns.items()}
        shown = {
            c: "" if math.isnan(v) else f"{v:.1f}" if c == "tokens a draft" else f"{v:.2f}" for c, v in values.items()
        }
        lines.append({"round": one.name, "prompts": one.prompts, **shown})
    return markdown_table(lines)


def told(seen: Sequence[Record], found: Examination, rounds: Sequence[Round], calls: Sequence[str]) -> list[str]:
    """Parts of a report: the reviser, the rounds, and the alarms `calls`.

    Args:
      seen: of `examined`, from which `found` is. rounds: of all that has any.
    """
    reviser = [measures_table(found), kinds_table(seen, found.threshold)]
    alarmed = "\n".join(f"- {one}" for one in calls) or "None."
    return ["## The reviser", *filter(None, reviser), "## Rounds", rounds_table(rounds), "## Alarms", alarmed]


def course(measures: Measures, names: Sequence[str]) -> list[float]:
    """The mean reward of each of these policies or, where the first has none, its accuracy; NaN where not measured."""
    known = measures.get(names[0], {})
    measure = MOST_TELLING if MOST_TELLING in known else "accuracy"
    return [measures.get(name, {}).get(measure, math.nan) for name in names]


def alarms(found: Examination, rounds: Sequence[Round], rewards: Sequence[float]) -> list[str]:
    """What calls for attention, in sentences.

    Args:
      rounds: of SEFT. rewards: of `course`, the policy before the first round and after each; empty if unknown.
    """
    out = []
    # To keep hardly any bad answer is what a good reviser does, and how many good ones it keeps is calibrated.
    collapsed = {"good": found.keep_high < min(0.05, found.preserve), "bad": found.keep_low > 0.95}
    for what, rate in (("good", found.keep_high), ("bad", found.keep_low)):
        if collapsed[what]:
            out.append(
                f"The reviser keeps {100 * rate:.0f} % of the {what} held-out answers: its labels have collapsed."
            )
    if found.auc - found.matched > 0.1:
        out.append(
            f"The AUC falls from {found.auc:.2f} to {found.matched:.2f} where answers are alike in length: the label "
            "follows length. Take pairs of like lengths."
        )
    if found.auc < 0.6:
        out.append(f"With an AUC of {found.auc:.2f} p_keep hardly tells good answers from bad ones.")
    if found.harm > 0.5:
        out.append(f"A revision would harm {100 * found.harm:.0f} % of the good answers.")
    if found.idempotent < 0.8:
        out.append(f"Only {100 * found.idempotent:.0f} % of the revisions have a higher p_keep than what they revise.")
    for before, after in itertools.pairwise(rounds):
        if after.length > 1.2 * before.length:
            out.append(f"Drafts of {after.name} are {100 * (after.length / before.length - 1):.0f} % longer.")
        if after.distinct < 0.8 * before.distinct:
            out.append(
                f"Drafts of {after.name} vary less: distinct-3 {after.distinct:.2f} after {before.distinct:.2f}."
            )
    for one in rounds:
        if one.after_revision < one.before_revision:
            out.append(f"{one.name}: revisions are rewarded less than the drafts that they replace.")
        if one.taken < one.reward:
            out.append(f"{one.name}: the drafts with the highest p_keep are rewarded less than the others.")
    for one, (before_it, after_it) in zip(rounds, itertools.pairwise(rewards)):
        if after_it < before_it:
            out.append(f"{one.name} answers worse than the policy before it ({after_it:.3f} after {before_it:.3f}).")
    return out


def reported(
    desk: Desk,
    reviser: str,
    stages: Sequence[str],
    seen: Sequence[Record],
    found: Examination,
    ours: Sequence[Round],
    others: Sequence[Round],
) -> Measures:
    """report.md of a run, its alarms also on the screen, and what was measured of every model.

    Args:
      reviser: what its model is called. stages: trainings before the rounds. seen: of `examined`, from which `found`
        is. ours: rounds of the policy, others: of baselines.
    """
    measures, names = desk.measures(), [one.name for one in ours]
    calls = alarms(found, ours, course(measures, ["Target", *names]))
    for one in calls:
        desk.run.log(f"alarm: {one}")
    desk.report(
        [*stages, *names], [reviser], target="Target",
        result=f"The policy went through {len(ours)} rounds; without --test-prompts nothing is judged.",
        parts=told(seen, found, [*others, *ours], calls),
    )  # fmt: skip
    return measures
