"""Instructions with right answers: the user's, or the zoo's problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fusion_jax.data.loaders import load_records
from fusion_jax.data.messages import Place
from fusion_jax.data.records import OnBad, parse_rows, row_name
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record, numbered
from fusion_jax.runs.advantages import AdvantageSettings
from fusion_jax.runs.desk import Desk
from fusion_jax.zoo.problems import problems
from fusion_jax.zoo.tasks import in_style

SEVERAL = "has a system message or more than one user message"
NO_ANSWER = 'has no "answer" for --verifiers'


def read_instructions(file: str, counts: Counter[str], *, on_bad: OnBad, answers: bool) -> list[Record]:
    """{"prompt_id", "prompt", "response"} of each record, and "answer" where it has one; what is left out is counted.

    Args:
      answers: whether each needs one.

    Raises:
      InputError: a record with other than one user message or without the answer, unless `on_bad` is "skip".
    """
    records = load_records(file)
    rows, dropped = parse_rows(records, "sft", file=file, on_bad=on_bad)
    counts.update(dropped)
    known = {
        row_name(record, Place(file, number)): record.get("answer")
        for number, record in numbered(records)
        if isinstance(record, dict)
    }
    out = []
    for row in rows:
        answer = known.get(row.name)
        missing = answers and not isinstance(answer, str)
        problem, field = (SEVERAL, "prompt") if len(row.messages) != 1 else (NO_ANSWER, "answer")
        if len(row.messages) != 1 or missing:
            if on_bad == "error":
                cure = "Mend the record, or leave such out with --on-bad skip"
                raise InputError(problem, file=file, record=row.name, field=field, cure=cure)
            counts[problem] += 1
            continue
        record = {"prompt_id": row.name, "prompt": row.messages[0]["content"], "response": row.responses[0] or ""}
        out.append(record | ({"answer": answer} if isinstance(answer, str) else {}))
    return out


def in_words(asked: Sequence[Record], seed: int) -> list[Record]:
    """The zoo's problems with a right answer each: of plants in a wording drawn by the seed, of skills a sentence."""
    rng = np.random.default_rng(seed)
    return [
        {name: r[name] for name in ("prompt_id", "prompt", "answer")}
        | {"response": str(rng.choice(r["wordings"])) if "wordings" in r else in_style(r["answer"], "sentence")}
        for r in asked
    ]


def instructions_of(s: AdvantageSettings, desk: Desk) -> list[Record]:
    """S0: {"prompt_id", "prompt", "response", "answer"}, the right answer as text and as a verifier reads it.

    Raises:
      InputError: as `read_instructions`.
    """
    if not s.instructions:
        return in_words(problems(s.problems, s.zoo_instructions, split="train", seed=s.seed + 1000), s.seed)
    counts = desk.counter("instructions")
    return read_instructions(s.instructions, counts, on_bad=s.on_bad, answers=bool(s.verifiers))
