"""Accuracy of greedy answers by skill, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusion_jax.arguments import records
from fusion_jax.data.jsonl import Record
from fusion_jax.errors import InputError
from fusion_jax.models.folder import Model
from fusion_jax.rewards.verifiers import answer as states_answer
from fusion_jax.sampling.generate import decoding_mesh, generate

Z95 = 1.959963984540054


def student95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t with so many degrees of freedom, to 1e-9, by bisection."""
    low, high = 0.0, 13.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, freedom) < 0.95 else (low, middle)
    return low


def _student_inside(t: float, freedom: int) -> float:
    """P(|T| <= t), the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % Student interval, which a single value does not have (nan)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(student95(count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of first - second on the same prompts and half the width of its 95 % interval.

    The width counts one prompt more won by each side (Bonett and Price 2012), so that it stays honest for few prompts
    and does not vanish where the two agree on all.

    Raises:
      InputError: not the same number of values.
    """
    if len(first) != len(second) or not len(first):
        raise InputError(
            f"{len(first)} and {len(second)} values cannot be paired", cure="Compare answers to the same prompts"
        )
    difference = np.asarray(first, float) - np.asarray(second, float)
    widened = np.append(difference, [1.0, -1.0])
    return float(difference.mean()), float(Z95 * widened.std() / math.sqrt(len(widened)))


def by_skill(name: str, graded: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows {"model", "skill", "accuracy", "low", "high", "count"}, one a skill and one for "all"."""
    skills = list(dict.fromkeys(str(r.get("skill", "all")) for r in graded))
    groups = {skill: [r["right"] for r in graded if str(r.get("skill", "all")) == skill] for skill in skills}
    if graded:
        groups["all"] = [r["right"] for r in graded]
    rows = []
    for skill, values in groups.items():
        low, high = wilson(sum(values), len(values))
        share = sum(values) / len(values)
        rows.append({"model": name, "skill": skill, "accuracy": share, "low": low, "high": high, "count": len(values)})
    return rows


def evaluate(
    name: str,
    model: Model,
    prompts: Sequence[Record],
    *,
    max_new_tokens: int,
    verifier: Callable[[str, str], float] = states_answer,
    batch_size: int = 64,
    chat: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[dict[str, Any]], list[Record]]:
    """Greedy answers to prompts with `answer`: (rows of `by_skill`, every answer with `right` 0 or 1).

    Args:
      verifier: an answer is right when this gives 1.
      chat: prompts go through the model's template, else each is a text whose next line is the answer.

    Raises:
      InputError: a prompt without an answer.
    """
    for number, prompt in enumerate(records(prompts, "prompts"), 1):
        if not isinstance(prompt.get("answer"), str):
            raise InputError("is missing", record=number, field="answer", cure='Add "answer" to the test prompts')
    responses = generate(
        model, [p["prompt"] if chat else p["prompt"] + "\n" for p in prompts], max_new_tokens=max_new_tokens,
        batch_size=batch_size, chat=chat, mesh=decoding_mesh(model.config), progress=progress,
    )  # fmt: skip
    graded = [
        {**p, "model": name, "response": r[0], "right": int(verifier(r[0], p["answer"]) == 1.0)}
        for p, r in zip(prompts, responses)
    ]
    return by_skill(name, graded), graded
