"""Answers that several models wrote together, as records, and what a report says of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.cool.answers import Answer, Whole, best
from fusion_jax.cool.choose import Choice
from fusion_jax.cool.sources import Source
from fusion_jax.cool.together import Written
from fusion_jax.evals.accuracy import by_skill
from fusion_jax.intervals import paired_difference
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table, save_figure
from fusion_jax.rewards.verifiers import Verifier
from fusion_jax.runs.desk import Desk
from fusion_jax.runs.judging import accuracy_table, figure_rows, paired_table
from fusion_jax.runs.plots import accuracy_figure
from fusion_jax.runs.provenance import points, write_report
from fusion_jax.runs.seeds import Measures

FUSED = ("cool_shortest", "cool", "rerank", "cool_rerank")


def steps_told(written: Written, names: Sequence[str]) -> Record:
    """How an answer came about. segments: committed; won: by whom each was proposed first; alike: whether all agreed;
    passes: forward passes of each model, with those that read others' segments; tokens: of each model, committed;
    unknown: those of them that stand for characters that it cannot read."""
    passes = {name: sum(_forwards(step, number) for step in written.steps) for number, name in enumerate(names)}
    moves = [step for step in written.steps if step.offers]
    return {
        "segments": [step.offers[step.winner].text for step in moves], "stop": written.stop,
        "won": [names[step.offers[step.winner].first] for step in moves],
        "alike": [len(step.offers) == 1 for step in moves], "passes": passes,
        "tokens": dict(zip(names, written.tokens, strict=True)),
        "unknown": dict(zip(names, written.unknown, strict=True)),
    }  # fmt: skip


def _forwards(step: Choice, number: int) -> int:
    proposal = step.proposals[number]
    return (proposal.forwards if proposal is not None else 0) + int(step.packed[number])


def as_record(prompt: Record, answer: Answer, sources: Sequence[Source]) -> Record:
    """What was found for a prompt, without the models' opinions of single segments; infinite scores become null.

    read_otherwise: the models to which the prompt is another text than it is.
    """
    names = [source.name for source in sources]

    def whole(one: Whole) -> Record:
        score = None if math.isinf(one.score) else one.score
        return {"by": one.by, "text": one.text, "ended": one.ended, "score": score}

    told: dict[str, Any] = {**prompt, "candidates": [whole(one) for one in answer.candidates]}
    told["read_otherwise"] = [source.name for source in sources if not all(source.words.keeps([prompt["prompt"]]))]
    if answer.together is not None:
        told["together"] = {"text": answer.together.text} | steps_told(answer.together, names)
    return told


def answers_by(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[str]]:
    """Every arm's answer to each prompt: of each model alone, of all together, and the best of these."""
    found: dict[str, list[str]] = {name: [] for name in (*names, *FUSED[1:])}
    for record in records:
        candidates = [Whole(**one | {"score": _score(one)}) for one in record["candidates"]]
        alone = candidates[: len(names)]
        for name, one in zip(names, alone, strict=True):
            found[name].append(one.text)
        found["rerank"].append(best(alone, None, alone).text)
        found["cool_rerank"].append(best(alone, None, candidates).text)
        found["cool"].append(record["together"]["text"])
    return found


def graded(name: str, prompts: Sequence[Record], responses: Sequence[str], verify: Verifier) -> list[Record]:
    """Answers with whether they are right."""
    return [
        {**prompt, "model": name, "response": text.strip(), "share": share, "right": int(share == 1.0)}
        for prompt, text in zip(prompts, responses, strict=True)
        for share in (verify(text.strip(), prompt["answer"]),)
    ]


def measured(found: Mapping[str, Sequence[Record]], names: Sequence[str]) -> Measures:
    """Accuracy of every arm, and of the fused ones what they gain over the model that answers most."""
    out: Measures = {}
    for name, records in found.items():
        out[name] = {"accuracy": _mean(records, "right"), "mean share right": _mean(records, "share")}
    top = max(names, key=lambda name: out[name]["accuracy"])
    for name in found:
        if name not in names:
            out[name]["over the best source"] = out[name]["accuracy"] - out[top]["accuracy"]
    return out


def _mean(records: Sequence[Record], field: str) -> float:
    return sum(record[field] for record in records) / max(len(records), 1)


def against_sources(found: Mapping[str, Sequence[Record]], names: Sequence[str]) -> str:
    """Each fused arm less each model alone, on the same prompts, with 95 % intervals."""
    lines = []
    for arm in [name for name in found if name not in names]:
        line = {"accuracy of": arm}
        for name in names:
            right = ([float(r["right"]) for r in found[one]] for one in (arm, name))
            mean, half = paired_difference(*right)
            line[f"less {name}"] = f"{mean:+.3f} ± {half:.3f}"
        lines.append(line)
    return markdown_table(lines)


def how_told(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Who won how many segments, how often all agreed, and what it cost."""
    together = [record["together"] for record in records]
    won, stops = Counter(name for one in together for name in one["won"]), Counter(one["stop"] for one in together)
    ranked = Counter(_winner(record) for record in records)
    segments = max(sum(won.values()), 1)
    lines = []
    for name in names:
        passes, tokens, unknown = (
            sum(one.get(field, {}).get(name, 0) for one in together) for field in ("passes", "tokens", "unknown")
        )
        lines.append({
            "model": name, "segments won": f"{won[name] / segments:.3f}",
            "answers won (cool_rerank)": str(ranked[name]), "passes": str(passes), "tokens committed": str(tokens),
            "passes a token": f"{passes / max(tokens, 1):.2f}", "unknown tokens": str(unknown),
            "prompts read otherwise": str(sum(name in record.get("read_otherwise", ()) for record in records)),
        })  # fmt: skip
    alike = sum(sum(one["alike"]) for one in together)
    told = [
        f"{segments} segments, {100 * alike / segments:.1f} % of them proposed by all alike",
        f"what they wrote together won {ranked['together']} of {len(records)} answers",
        "answers ended by " + ", ".join(f"{stop} ({count})" for stop, count in sorted(stops.items())),
    ]
    return [markdown_table(lines), "; ".join(told) + "."]


def report(
    desk: Desk, found: Mapping[str, Sequence[Record]], names: Sequence[str], records: Sequence[Record]
) -> Measures:
    """report.md: accuracy of each arm, differences on the same prompts, how the answers came about; the measures.

    Args:
      found: every arm's graded answers. names: of the models alone. records: as `as_record` gives them.
    """
    rows = [row for name, some in found.items() for row in by_skill(name, some)]
    measures = measured(found, names)
    last = list(found)[-1]
    top = max(names, key=lambda name: measures[name]["accuracy"])
    result = (
        f"{last} answers {100 * measures[last]['accuracy']:.1f} % of {len(records)} problems, "
        f"{points(measures[last]['over the best source'])} {top}, the best model alone."
    )
    fused = {name: some for name, some in found.items() if name not in names}

    def write() -> None:
        table = markdown_table(accuracy_table(rows))
        picture = save_figure(accuracy_figure(figure_rows(rows), names), desk.run.file("accuracy.png"))
        parts = ["## Accuracy, with 95 % Wilson intervals", table, picture]
        parts += ["Differences on the same prompts (mean, 95 % interval):", against_sources(found, names)]
        parts += [paired_table(fused), "## How they wrote together", *how_told(records, names)]
        write_report(desk.run, desk.title, result, desk.ran, parts)
        desk.run.log(table)
        desk.run.log(result)
        desk.run.log(f"report: {desk.run.file('report.md')}")

    desk.run.on_first(write)
    return measures


def _score(one: Record) -> float:
    return math.inf if one["score"] is None else float(one["score"])


def _winner(record: Record) -> str:
    return str(min(record["candidates"], key=_score)["by"])
