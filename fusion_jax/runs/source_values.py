"""What models make of responses that they did not write: log-probs in their own tokens, computed once and kept.

The text is what the models share. Each renders it with its own chat template and encodes it with its own tokenizer;
scored are the response and the end of its turn (InfiFPO, arXiv 2505.13878; section A3 of its specification).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fusion_jax.data.asked import parse_responses
from fusion_jax.data.batches import Data, Example, buckets_for
from fusion_jax.data.examples import TextSettings, make_examples
from fusion_jax.data.loaders import load_records
from fusion_jax.data.records import Row
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.models.int8 import Weights
from fusion_jax.plan.parts import Part, Scoring, Training
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.desk import Desk, Stage
from fusion_jax.runs.policy import Policy
from fusion_jax.runs.sources import SourceSettings
from fusion_jax.train.reference import sequence_logprobs
from fusion_jax.train.settings import compute_for


def check_authors(s: SourceSettings) -> None:
    """Refuse ready responses whose authors are not the sources that score them, where nobody has named these."""
    file, sources, on_bad = s.responses, s.sources, s.on_bad
    if not file or sources != SourceSettings().sources:
        return
    skipped = Counter[str]() if on_bad == "skip" else None
    authors = {record["source_model"] for record in parse_responses(load_records(file), file=file, skipped=skipped)}
    scoring = [model_name(source) for source in sources]
    if not authors <= set(scoring):
        problem = f"are {', '.join(scoring)} by default, the responses are of {', '.join(sorted(authors))}"
        raise InputError(problem, field="--sources", cure="Name the models that score the texts")


DROPPED = "preference prompts"  # where rows that are left out are counted
UNREADABLE = "changed by the model's chat template, or nothing of it left after cutting"
TOO_LONG = "longer than the model reads: other models would score another text"


def read_whole(policy: Policy, rows: Sequence[Row]) -> list[Row]:
    """The rows that the policy reads as a whole, so that every model scores the same text; see `uncut`."""
    return uncut(rows, policy.model, policy.stage("pairs").text, policy.desk.counter(DROPPED))


def scored_by_all(policy: Policy, rows: Sequence[Row], *, length_norm: bool) -> list[Row]:
    """The rows with what every source makes of them, in values/SOURCE.jsonl; see `scored_by` and `with_values`."""
    desk, stage, weights = policy.desk, policy.stage("infifpo"), policy.settings.source_weights
    values = [scored_by(desk, model_name(s), s, rows, stage, weights) for s in policy.settings.sources]
    return with_values(rows, values, length_norm=length_norm, dropped=desk.counter(DROPPED))


def uncut(rows: Sequence[Row], model: Model, text: TextSettings, dropped: Counter[str]) -> list[Row]:
    """The rows that the model reads as a whole, without white space around responses, which some chat templates leave
    out and others keep; the other rows are counted."""
    rows = [replace(row, responses=tuple(r if r is None else r.strip() for r in row.responses)) for row in rows]
    different = [row for row in rows if len(row.responses) == 1 or row.responses[-2] != row.responses[-1]]
    dropped["chosen equals rejected"] += len(rows) - len(different)
    rows = different
    examples, lost = _whole(rows, model, text, text.tokens.max_length)
    dropped.update(lost.values())
    return [rows[example.index] for example in examples]


def _whole(rows: Sequence[Row], model: Model, text: TextSettings, most: int) -> tuple[list[Example], dict[int, str]]:
    """Examples of at most so many tokens, and why the other rows have none."""
    tokens = replace(text.tokens, max_length=most + 1, max_prompt_length=most, truncation="fit")
    examples, _ = make_examples(rows, model.tokenizer, replace(text, tokens=tokens))
    lost = dict.fromkeys(range(len(rows)), UNREADABLE)
    lost |= dict.fromkeys((example.index for example in examples), TOO_LONG)
    whole = [example for example in examples if max(map(len, example.rows)) <= most]
    for example in whole:
        del lost[example.index]
    return whole, lost


def scored_by(
    desk: Desk, name: str, source: str, rows: Sequence[Row], stage: Stage, weights: Weights = "stored"
) -> list[Record]:
    """values/NAME.jsonl: {"row", "logprobs", "tokens"} of every row, one number a response; null, with "dropped" for
    the reason, where the source cannot read the row.

    Args:
      source: the folder. stage: on whose mesh, in whose batches and with whose text settings it is computed.
      weights: how the source's are held.
    """

    def measured() -> list[Record]:
        model = desk.load(source, stage.settings, weights)
        with desk.run.phase("scoring"):
            return _measured(model, name, rows, stage)

    records = desk.records(f"values/{name}.jsonl", measured)
    counts = desk.counter(f"responses scored by {name}")
    counts.update(record["dropped"] for record in records if record["logprobs"] is None)
    counts["rows"] += len(records)
    return records


def _measured(model: Model, name: str, rows: Sequence[Row], stage: Stage) -> list[Record]:
    whole, lost = _whole(rows, model, stage.text, model.config.max_positions)
    found: dict[int, tuple[list[float], list[int]]] = {}
    if whole:
        data, settings = Data(whole, lambda i: rows[i].name), stage.settings
        values = sequence_logprobs(
            model.params, model.config, data, compute_for(settings, option=stage.option),
            batch_size=settings.batch_size // settings.micro_batches, buckets=buckets_for(data.extents),
        )  # fmt: skip
        for example, logprobs in zip(whole, values.tolist(), strict=True):
            if np.isfinite(logprobs).all():
                found[example.index] = logprobs, list(example.scored)
            else:
                lost[example.index] = "log-probs that are not finite"
    return [
        {"row": row.name, "source_model": name, "logprobs": found[i][0], "tokens": found[i][1]}
        if i in found
        else {"row": row.name, "source_model": name, "logprobs": None, "tokens": None, "dropped": lost[i]}
        for i, row in enumerate(rows)
    ]


def with_values(
    rows: Sequence[Row], scored: Sequence[Sequence[Record]], *, length_norm: bool, dropped: Counter[str]
) -> list[Row]:
    """Rows with the sources' log-probs, [G][N], divided by their tokens or not; NaN where a source has none.

    A row that fewer than two of several sources could score is dropped, and counted.

    Args:
      scored: of every source, what `scored_by` gave.
    """
    least = min(2, len(scored))
    out = []
    for row, *records in zip(rows, *scored, strict=True):
        there = [r for r in records if r["logprobs"] is not None]
        if len(there) < least:
            dropped["scored by too few sources"] += 1
            continue
        dropped["note: scored without one of the sources"] += len(there) < len(records)
        out.append(replace(row, values=tuple(zip(*(_values(r, row, length_norm) for r in records)))))
    return out


def _values(record: Record, row: Row, length_norm: bool) -> list[float]:
    if record["logprobs"] is None:
        return [float("nan")] * len(row.responses)
    counts = [max(n, 1) if length_norm else 1 for n in record["tokens"]]
    return [logprob / count for logprob, count in zip(record["logprobs"], counts, strict=True)]


def scoring_parts(s: SourceSettings, last: Training) -> list[Part]:
    """What the sources' scoring takes. last: the training whose rows they score."""
    rows = len(last.objective.slots)
    return [Scoring(f"log-probs by {one}", one, rows, last, weights=s.source_weights) for one in s.sources]
