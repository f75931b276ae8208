"""Pairs of answers about invented plants: right and flawed in the same words, from which a reviser learns, and in
any words, from which a reward model learns.

Flaws are typical ones of drafts: a wrong value, values that are swapped between two properties, a hedge before a value,
properties that are left out. Only the first cannot be seen without knowing the plant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion_jax.jsonl import Record
from fusion_jax.zoo.plants import STYLES, VALUES, worded

FLAWS = ("wrong", "swapped", "hedged", "left out")
HEDGES = ("maybe", "perhaps", "possibly")
MARKS = {"sentence": (", ", "."), "label": ("; ", ""), "worked": (", ", "!"), "own": (", ", "")}
"""What stands between the properties and at the end, in each style."""


def pairs(prompts: Sequence[Record], *, seed: int) -> list[Record]:
    """{"prompt_id", "prompt", "answer", "chosen", "rejected", "flaw"} for prompts of `plants.prompts`."""
    rng = np.random.default_rng(seed)
    out = []
    for record in prompts:
        true = properties(record["answer"])
        style, flaw = list(STYLES)[rng.integers(len(STYLES))], FLAWS[rng.integers(len(FLAWS))]
        known = {name: record[name] for name in ("prompt_id", "prompt", "answer")}
        answers = {"chosen": worded(true, style), "rejected": flawed(true, style, flaw, rng)}
        out.append({**known, **answers, "flaw": flaw})
    return out


def graded(prompts: Sequence[Record], *, seed: int) -> list[Record]:
    """A right answer to each prompt against one with one to four wrong values, in wordings drawn apart."""
    rng = np.random.default_rng(seed)
    out = []
    for record in prompts:
        true = properties(record["answer"])
        partly = _partly(true, int(rng.integers(0, len(true))), rng)
        answers = {"chosen": worded(true, _any_style(rng)), "rejected": worded(partly, _any_style(rng))}
        out.append({"prompt_id": record["prompt_id"], "prompt": record["prompt"], **answers})
    return out


def _any_style(rng: np.random.Generator) -> str:
    return list(STYLES)[rng.integers(len(STYLES))]


def _partly(true: Mapping[str, str], right: int, rng: np.random.Generator) -> dict[str, str]:
    """The properties, of which so many are true."""
    kept = {list(true)[i] for i in rng.permutation(len(true))[:right]}
    return {field: value if field in kept else _other(field, value, rng) for field, value in true.items()}


def _other(field: str, value: str, rng: np.random.Generator) -> str:
    others = [other for other in VALUES[field] if other != value]
    return others[rng.integers(len(others))]


def properties(answer: str) -> dict[str, str]:
    """The properties that an answer "color: red, leaf: ..." of `plants.prompts` lists."""
    return dict(part.split(": ") for part in answer.split(", "))


def flawed(true: Mapping[str, str], style: str, flaw: str, rng: np.random.Generator) -> str:
    """An answer with a flaw in one to three of its properties; two are swapped."""
    said, fields = dict(true), list(VALUES)
    hit = [fields[i] for i in rng.permutation(len(fields))[: rng.integers(1, len(fields))]]
    if flaw == "wrong":
        said |= {field: _other(field, true[field], rng) for field in hit}
    elif flaw == "swapped":
        one, other = (fields[i] for i in rng.permutation(len(fields))[:2])
        said[one], said[other] = true[other], true[one]
    elif flaw == "hedged":
        for field in hit:
            said[field] = f"{HEDGES[rng.integers(len(HEDGES))]} {true[field]}"
    return without(said, style, hit) if flaw == "left out" else worded(said, style)


def without(said: Mapping[str, str], style: str, fields: Sequence[str]) -> str:
    """An answer that leaves properties out."""
    between, end = MARKS[style]
    parts = STYLES[style].removesuffix(end).split(between)
    kept = [part for part in parts if not any("{" + field + "}" in part for field in fields)]
    return between.join(kept).format(**said) + end


def style_of(answer: str) -> str:
    """The style in which an answer is worded, by its first word; "own" where none is known."""
    first = {STYLES[style].split()[0]: style for style in STYLES}
    return first.get(answer.split(" ")[0], "own")


def against(own: str, answer: str) -> dict[str, str]:
    """What makes a pair of a model's own answer: the right one, in the style of it, is preferred."""
    return {"chosen": worded(properties(answer), style_of(own)), "rejected": own, "flaw": "own"}
