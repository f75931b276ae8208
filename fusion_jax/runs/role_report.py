"""The report of a SocialBench run: report.json, the same bytes for the same replies, and report.md with its tables."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.evals.socialbench import analysis
from fusion_jax.evals.socialbench.aggregate import DIMENSIONS, Cell, Unparsed, aggregate, average
from fusion_jax.evals.socialbench.published import individual_against_group, recomputed
from fusion_jax.figures import INK, PALE, hue, new_figure, tidy
from fusion_jax.files import write_json
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.runs.counts import counts_table
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.provenance import write_report
from fusion_jax.runs.role_interact import Answered, Bench, RoleSettings
from fusion_jax.runs.seeds import Measures

REPORT = "report.json"
MANY_UNPARSED = 0.05  # share of replies from which on a warning is shown
POLICIES: tuple[Unparsed, ...] = ("drop", "zero")


def report(s: RoleSettings, desk: Desk, bench: Bench, found: Answered) -> Measures:
    """Write both reports; the measures of the run."""
    facts = facts_of(s, bench, found)
    headline = {name: Cell(**one) for name, one in facts["dimensions"][s.unparsed].items()}
    warned = warnings(facts, headline)
    result = result_sentence(s, facts, headline)

    def write() -> None:
        write_json(desk.run.file(REPORT), facts, sort=False)
        table = markdown_table(rows_of(s, facts))
        picture = save_figure(figure(facts, headline), desk.run.file("dimensions.png"))
        parts = ["\n".join(f"- **{one}**" for one in warned)] if warned else []
        parts += [what_was_asked(facts), table, markdown_table(dimension_rows(facts)), picture, *analyses(facts)]
        parts += ["## Replies", counts_table(desk.counts), *published()]
        write_report(desk.run, desk.title, result, desk.ran, parts)
        desk.run.log("\n\n".join([table, *warned, result]))
        desk.run.log(f"report: {desk.run.file('report.md')}; rows: {desk.run.file('rows.jsonl')}")

    desk.run.on_first(write)
    return {s.speaker: measures(facts, headline)}


def facts_of(s: RoleSettings, bench: Bench, found: Answered) -> dict[str, Any]:
    """Everything that is reported, as plain values: the same replies give the same ones."""
    every = found.rows if s.partial else [row.strict for row in found.rows]
    rows = [row for row in every if not row.rotation]
    as_read = [row for row in found.rows if not row.rotation]
    cells = {policy: aggregate((row.scored for row in rows), policy) for policy in POLICIES}
    policy = s.unparsed
    strata = {
        "by language": analysis.by_language(rows, policy), "EP Emo. apart": analysis.by_kind(rows, policy),
        "by options": analysis.by_options(rows, policy), "memory by length": analysis.by_length(rows, policy),
        "by profiles": analysis.by_profiles(rows, policy),
    }  # fmt: skip
    failed = Counter(row.error for row in found.rows if row.error)
    return {
        "benchmark": "SocialBench (RoleInteract)", "model": found.identity, "wording": bench.templates.wording,
        "parser": s.parser, "unparsed": policy, "partial": s.partial, "profile": s.profile, "language": s.language,
        "thinking left out": s.thinking, "seed": s.decoding(False).seed,
        "decoding": {what: _decoding(s, memory) for what, memory in (("choices", False), ("memory", True))},
        "files": {one.name: {"sha256": one.sha256, "records": len(one.items)} for one in bench.files},
        "items": len(rows), "incomplete": bool(failed),
        "avg": {policy: average(own) for policy, own in cells.items()},
        "dimensions": {policy: {name: one._asdict() for name, one in own.items()} for policy, own in cells.items()},
        "intervals": analysis.intervals(rows, policy), "chance": analysis.by_chance(rows),
        "letters": analysis.letters_read(rows), "strata": {name: _plain(one) for name, one in strata.items()},
        "drift": analysis.drift(rows, policy), "situations": _plain({"EP Situ.": analysis.situations(as_read, policy)}),
        "rotations": analysis.rotations(every, policy) if s.rotations > 1 else {},
        "trimmed": analysis.trimmed(rows), "errors": dict(sorted(failed.items())),
        "error details": dict(sorted(found.details.items())),
        "not answerable": [f"{row.file} {row.index}" for row in rows if not row.answerable],
        "cut replies": sum(row.finish == "length" for row in rows),
    }  # fmt: skip


def _decoding(s: RoleSettings, memory: bool) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(s.decoding(memory)).items() if name != "seed"}


def _plain(strata: analysis.Strata) -> dict[str, dict[str, dict[str, Any]]]:
    return {name: {group: one._asdict() for group, one in own.items()} for name, own in strata.items()}


def warnings(facts: Mapping[str, Any], headline: Mapping[str, Cell]) -> list[str]:
    """What a reader has to know before the numbers."""
    found = []
    unparsed = sum(one.unparsed for one in headline.values())
    answered = facts["items"] - sum(one.errors for one in headline.values())
    if answered and unparsed / answered >= MANY_UNPARSED:
        share = 100 * unparsed / answered
        found.append(
            f"WARNING: nothing could be read of {share:.1f} % of the replies; scores that drop them reward refusals"
        )
    if facts["incomplete"]:
        told = ", ".join(f"{reason} {count}" for reason, count in facts["errors"].items())
        said = "; ".join(f"{reason}: {detail}" for reason, detail in facts["error details"].items())
        shown = f"; for instance {said}" if said else ""
        found.append(f"INCOMPLETE: {sum(facts['errors'].values())} prompts have no reply ({told}){shown}")
    if facts["avg"][facts["unparsed"]] is None:
        found.append("Avg is undefined: not all nine dimensions have a score")
    return found


def result_sentence(s: RoleSettings, facts: Mapping[str, Any], headline: Mapping[str, Cell]) -> str:
    """The mean, beside what chance gives."""
    mean, counted = facts["avg"][s.unparsed], facts["avg"]["zero"]
    chance = sum(facts["chance"].values()) / len(DIMENSIONS)
    if mean is None:
        scored = sum(one.score is not None for one in headline.values())
        told = f"{s.speaker} has scores in {scored} of nine dimensions on {facts['items']} records"
        if counted is not None:
            told += f"; with unread replies as 0 its average is {counted:.2f}, where random answers have {chance:.2f}"
        return f"{told}."
    told = (
        f"{s.speaker} has an average of {mean:.2f} on {facts['items']} records, where random answers have {chance:.2f}"
    )
    return f"{told}, in the wording {facts['wording']}."


def what_was_asked(facts: Mapping[str, Any]) -> str:
    """Wording, parser, decoding and data, without which scores cannot be compared."""
    how = {
        what: f"{one['max_tokens']} tokens, temperature {one['temperature']:g}"
        for what, one in facts["decoding"].items()
    }
    told = {
        "model": facts["model"], "wording": facts["wording"], "parser": facts["parser"],
        "replies of which nothing is read": {"drop": "left out of the headline", "zero": "count 0"}[facts["unparsed"]],
        "several right letters": "a part counts" if facts["partial"] else "only all count",
        "profiles": "shown" if facts["profile"] else "left out", "language": facts["language"],
        "<think> spans": "left out before reading" if facts["thinking left out"] else "read as they are",
        **{f"decoding of {what}": one for what, one in how.items()}, "replies cut at the limit": facts["cut replies"],
        **{name: f"{one['records']} records, sha256 {one['sha256'][:16]}" for name, one in facts["files"].items()},
    }  # fmt: skip
    return markdown_table([{"what": what, "value": value} for what, value in told.items()])


def rows_of(s: RoleSettings, facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The row of the leaderboard, for both ways to count replies of which nothing is read."""
    told = {"drop": "left out", "zero": "count 0"}
    found = []
    for policy in sorted(POLICIES, key=lambda policy: policy != s.unparsed):
        cells = facts["dimensions"][policy]
        scores = {name: _number(cells[name]["score"] if name in cells else None) for name in DIMENSIONS}
        mark = " (incomplete)" if facts["incomplete"] else ""
        found.append(
            {"model": s.speaker + mark, "unread replies": told[policy], **scores, "Avg": _number(facts["avg"][policy])}
        )
    return found


def dimension_rows(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each dimension with its interval, what chance gives, and how many items there are of each sort."""
    found = []
    for name, one in facts["dimensions"][facts["unparsed"]].items():
        low, high = facts["intervals"].get(name, (None, None))
        cut = facts["trimmed"].get(name, {"items": 0})["items"]
        total = facts["dimensions"]["zero"][name]["counted"] + one["errors"]
        found.append({
            "dimension": name, "score": _number(one["score"]), "95 % interval": _interval(low, high),
            "chance": _number(facts["chance"][name]), "counted": one["counted"], "unparsed": one["unparsed"],
            "errors": one["errors"], "trimmed": f"{cut} of {total}",
        })  # fmt: skip
    return found


def analyses(facts: Mapping[str, Any]) -> list[str]:
    """Tables of what else the rows show; those without rows are left out."""
    parts = [
        "Intervals: 1,000 resamples of the items, of which a single one leaves none. Where memory is trimmed, what is "
        "to be remembered may be gone.",
        "## Letters", "Of choices, the letter that was read first beside the right one.",
        markdown_table([{"letter": letter, **counts} for letter, counts in facts["letters"].items()]),
    ]  # fmt: skip
    for name, strata in facts["strata"].items():
        if strata:
            parts += [f"## {name[0].upper()}{name[1:]}", _strata_table(strata)]
    parts += ["## The pull of a group", *_drift(facts["drift"])]
    if any(facts["situations"].values()):
        parts += ["## Several right letters", _strata_table(facts["situations"])]
    if facts["rotations"]:
        parts += ["## Options in other places", markdown_table([
            {"dimension": name, "mean": _number(one["mean"]), "worst": _number(one["worst"])}
            for name, one in facts["rotations"].items()
        ])]  # fmt: skip
    if facts["not answerable"]:
        parts += ["## Labels that are no option", "Kept, as in published scores: " + ", ".join(facts["not answerable"])]
    return parts


def _strata_table(strata: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    return markdown_table([
        {"dimension": name, "items": group, "score": _number(one["score"])}
        | {what: one[what] for what in ("counted", "unparsed", "errors")}
        for name, own in strata.items()
        for group, one in own.items()
    ])  # fmt: skip


def _drift(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """How preferences change with the size of the group."""
    told = "Each size of a group less the smallest one, in points, with 95 % intervals."
    if not found:
        return [f"{told} No preference was asked about in groups of two sizes."]
    return [told, markdown_table([
        {
            "preference": one["preference"], "groups": f"{one['size']} - {one['less']}",
            "difference": f"{one['difference']:+.2f}, {_interval(one['low'], one['high'], '+.2f')}",
        } for one in found
    ])]  # fmt: skip


def published() -> list[str]:
    """The published table, its mean computed again as a check of the aggregation."""
    told = (
        "Published means (arXiv 2403.13679), re-computed as above. Over these models the rank correlation of "
        f"individual with group scores is {individual_against_group():.2f}: the one does not imply the other."
    )
    return ["## The published table", told, markdown_table(recomputed())]


def measures(facts: Mapping[str, Any], headline: Mapping[str, Cell]) -> dict[str, float]:
    """The mean, the nine dimensions, and what sweeps compare."""
    found = {} if facts["avg"][facts["unparsed"]] is None else {"Avg": facts["avg"][facts["unparsed"]]}
    found |= {name: one.score for name, one in headline.items() if one.score is not None}
    for strata in (*facts["strata"].values(), facts["situations"]):
        for name, own in strata.items():
            found |= {f"{name}, {group}": one["score"] for group, one in own.items() if one["score"] is not None}
    for name, one in facts["rotations"].items():
        found |= {f"{name}, mean of rotations": one["mean"], f"{name}, worst rotation": one["worst"]}
    lost = sum(one.unparsed for one in headline.values())
    return found | {"unparsed share": lost / max(facts["items"], 1)}


def figure(facts: Mapping[str, Any], headline: Mapping[str, Cell]) -> Any:
    """The dimensions with their intervals, beside what chance gives."""
    drawn, (axes,) = new_figure(size=(8.0, 3.4))
    for place, (name, one) in enumerate(headline.items()):
        if one.score is None:
            continue
        axes.bar(place, one.score, color=hue(1)[0], width=0.6)
        if name in facts["intervals"]:
            axes.plot([place, place], facts["intervals"][name], color=INK, linewidth=1.2)
        axes.plot([place - 0.4, place + 0.4], [facts["chance"][name]] * 2, color=PALE, linewidth=3)
    axes.set_xticks(range(len(headline)), list(headline))
    axes.set_ylim(0, 105)
    tidy(axes, "Score with 95 % interval; grey: random answers", y="percent")
    return drawn


def _interval(low: float | None, high: float | None, form: str = ".2f") -> str:
    return "of one item" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
