"""Accuracy of greedy answers by skill, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fusion_jax.arguments import records
from fusion_jax.errors import InputError
from fusion_jax.intervals import wilson
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.rewards.verifiers import answer as states_answer
from fusion_jax.sampling.generate import decoding_mesh, generate


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
