"""Weighted responses (FuseRL) as rows of examples, and what each source weighs, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fusion_jax.data.records import Row
from fusion_jax.jsonl import Record
from fusion_jax.markdown import markdown_table


def response_rows(records: Sequence[Record], most: int) -> list[Row]:
    """Rows of up to `most` responses, each with its weight, of `rewards.weights.weighted_responses`."""
    return [
        Row(
            record["prompt_id"],
            ({"role": "user", "content": record["prompt"]},),
            (*record["responses"], *[None] * (most - len(record["responses"]))),
            (*((weight,) for weight in record["weights"]), *[(0.0,)] * (most - len(record["responses"]))),
        )
        for record in records
    ]


def heaviest(rows: Sequence[Row]) -> list[Row]:
    """The rows with the response of the largest weight alone, which is the best one."""
    places = [max(range(len(row.values)), key=lambda place: row.values[place]) for row in rows]
    return [Row(row.name, row.messages, (row.responses[place],)) for row, place in zip(rows, places)]


def source_rows(records: Sequence[Record], sources: Sequence[str], each: int) -> list[Row]:
    """Rows of `each` responses of every source with (weight, advantage), of `rewards.weights.weighted_sources`; absent
    ones have weight 0."""
    rows = []
    for record in records:
        entries = {entry["source_model"]: entry for entry in record["sources"]}
        responses, values = list[str | None](), list[tuple[float, float]]()
        for source in sources:
            entry = entries.get(source, {"responses": [None] * each, "weight": 0.0})
            responses += entry["responses"]
            values += [(entry["weight"], advantage) for advantage in entry.get("advantages", [0.0] * each)]
        messages = ({"role": "user", "content": record["prompt"]},)
        rows.append(Row(record["prompt_id"], messages, tuple(responses), tuple(values)))
    return rows


def shares(taught: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """How much each source weighs in both stages, for the report."""
    weights: dict[str, Counter[str]] = {"FuseSFT": Counter(), "FusePO": Counter()}
    for record in taught:
        for name, weight in zip(record["source_models"], record["weights"], strict=True):
            weights["FuseSFT"][name] += weight / len(taught)
    for record in records:
        for entry in record["sources"]:
            weights["FusePO"][entry["source_model"]] += entry["weight"] / len(records)
    names = sorted(weights["FuseSFT"] | weights["FusePO"])
    table = [{"source": n, **{stage: f"{found[n]:.3f}" for stage, found in weights.items()}} for n in names]
    return ["## Mean weight of each source", markdown_table(table)] if table else []
