"""Who is best on each instruction: the labels of both modes (stage S4 of ProFuser, arXiv 2408.04998)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from fusion_jax.jsonl import Record
from fusion_jax.runs.advantages import CeNorm
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.panel import Panel
from fusion_jax.teachers.advantage import by_reading, by_writing, min_ce, surprise_of, vote
from fusion_jax.teachers.documents import Reading


def labels_of(
    panel: Panel, instructions: Sequence[Record], readings: Mapping[str, Reading],
    answers: Mapping[str, Sequence[Record]],
) -> list[Record]:  # fmt: skip
    """{"prompt_id", "train_winner", "ce", "infer_winner", "votes", "scores", "valid"} of each instruction; winners are
    names, None where no source can win. by_norm: who wins by reading with either divisor."""
    s, names = panel.settings, panel.names
    scores = panel.judged(instructions, answers)

    def made() -> list[Record]:
        rng, out = np.random.default_rng(s.seed), []
        nats = [[(float(row.metric[0]), float(row.metric[1])) for row in one.rows] for one in readings.values()]
        norms: dict[CeNorm, np.ndarray] = {norm: surprises(nats, instructions, norm) for norm in get_args(CeNorm)}
        ces = norms[s.ce_norm]
        for number, instruction in enumerate(instructions):
            own = [answers[name][number] for name in names]
            valid, judged = _valid(own, s.longest), scores[:, :, number]
            reader = by_reading(ces[number].tolist(), s.by_reading, rng)
            writer = by_writing(judged, valid, s.by_writing, rng)
            out.append({
                "prompt_id": instruction["prompt_id"], "ce": _plain(ces[number]), "valid": valid,
                "by_norm": {norm: _named(min_ce(found[number].tolist()), names) for norm, found in norms.items()},
                "train_winner": _named(reader, names), "infer_winner": _named(writer, names),
                "votes": vote(judged, valid).votes.tolist(), "scores": [_plain(row) for row in judged],
            })  # fmt: skip
        return out

    made_from = [f"scores/{model_name(judge)}.jsonl" for judge in (*s.judges, *s.verifiers)]
    return panel.desk.records("advantage.jsonl", made, made_from=made_from)


def surprises(
    nats: Sequence[Sequence[tuple[float, float]]], instructions: Sequence[Record], norm: CeNorm
) -> np.ndarray:
    """float64[N,K], nats a token or a byte of each right answer under each source; nan where that is not finite.

    Args:
      nats: of each source, -log p of every right answer and the tokens that it is of.
    """
    sizes = [len(one["response"].encode()) for one in instructions]
    return np.asarray([
        [surprise_of(*one, size if norm == "byte" else None) for one, size in zip(some, sizes, strict=True)]
        for some in nats
    ]).T  # fmt: skip


def _named(place: int | None, names: Sequence[str]) -> str | None:
    return None if place is None else names[place]


def _valid(answers: Sequence[Record], longest: float) -> list[bool]:
    """Whether each answer may win: it is not empty, came to its end, and is not much longer than the others."""
    found = [bool(one["text"]) and bool(one["finished"]) for one in answers]
    if longest and any(found):
        most = longest * float(np.median([one["n_tok"] for one, ok in zip(answers, found, strict=True) if ok]))
        found = [ok and one["n_tok"] <= most for one, ok in zip(answers, found, strict=True)]
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
