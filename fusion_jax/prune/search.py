"""The greedy search: step by step the block whose absence costs least (BlockPruner, arXiv 2406.10594, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families.pruned import NAMES as OFFICIAL
from fusion_jax.prune.blocks import Block, Blocks, Unit, candidates, layers_of
from fusion_jax.prune.scoring import Losses, perplexity

Scorer = Callable[[Blocks, Sequence[Blocks]], Losses]
"""(removed, candidates) -> what the text loses, as `scoring.score` gives it."""
NEAR = 1e-6


@dataclass(frozen=True)
class Step:
    """One removal. chosen: its blocks, none where no candidate was left or had a finite score; perplexity: without them
    and those of the steps before.

    scores: the perplexity without each candidate, in the order in which the first of equals wins.
    """

    chosen: Blocks
    perplexity: float
    scores: tuple[tuple[Blocks, float], ...] = ()


def removed_by(steps: Sequence[Step]) -> Blocks:
    """The blocks that steps have removed."""
    return frozenset[Block]().union(*(step.chosen for step in steps))


def search(
    score: Scorer, config: ModelConfig, count: int, unit: Unit = "mix", done: Sequence[Step] = ()
) -> Iterator[Step]:
    """The steps behind those that are `done`, up to `count` in all.

    Each removes the candidate with the lowest perplexity, the first of equals; scores that are not finite never win.
    Where nothing is left to remove the set stays, as in the official program.

    Raises:
      InputError: fewer than one step.
    """
    if count < 1:
        raise InputError(f"{count} blocks are to be removed", field="blocks", cure="Give 1 or more")
    removed, last = removed_by(done), done[-1].perplexity if done else math.nan
    for _ in range(len(done), count):
        offered = candidates(config, removed, unit)
        losses = score(removed, offered) if offered else None
        scores = [] if losses is None else [perplexity(each) for each in losses.candidates]
        finite = [place for place, value in enumerate(scores) if math.isfinite(value)]
        best = _first_of_near(score, removed, offered, scores, finite)
        chosen = frozenset[Block]() if best is None else offered[best]
        last = last if best is None else scores[best]
        removed |= chosen
        yield Step(chosen, last, tuple(zip(offered, scores, strict=True)))


def _first_of_near(
    score: Scorer, removed: Blocks, offered: Sequence[Blocks], scores: list[float], finite: Sequence[int]
) -> int | None:
    """The candidate with the lowest score. Those within rounding of it, which depends on what is computed together, are
    scored once more, each alone, and the first of equals wins; their `scores` are then these."""
    lowest = min((scores[place] for place in finite), default=math.inf)
    near = [place for place in finite if scores[place] <= lowest * (1 + NEAR)]
    if len(near) > 1:
        for place in near:
            scores[place] = perplexity(score(removed | offered[place], ()).base)
    return min(near, key=scores.__getitem__, default=None)


def one_shot(score: Scorer, config: ModelConfig, count: int) -> Iterator[Step]:
    """Without a search: blocks in the order of the whole model's perplexity without each."""
    offered = candidates(config, ())
    scores = [perplexity(each) for each in score(frozenset(), offered).candidates]
    order = sorted(range(len(offered)), key=scores.__getitem__)[:count]
    removed = frozenset[Block]()
    for place in order:
        removed |= offered[place]
        yield Step(offered[place], perplexity(score(removed, ()).base))


def to_official(steps: Sequence[Step]) -> dict[str, list[list[Any]]]:
    """The official file: after each step, "1" to "K", all removed blocks as ["mha" or "mlp", layer] by layer."""
    return {
        str(number): [[OFFICIAL[b.part], b.layer] for b in sorted(removed_by(steps[:number]), key=lambda b: b.layer)]
        for number in range(1, len(steps) + 1)
    }


def to_record(step: Step) -> dict[str, Any]:
    """A step as plain JSON values; a perplexity that is not finite is None."""
    scores = [{"blocks": _plain(blocks), "perplexity": finite(value)} for blocks, value in step.scores]
    return {"chosen": _plain(step.chosen), "perplexity": finite(step.perplexity), "scores": scores}


def from_record(record: Mapping[str, Any]) -> Step:
    """What `to_record` made plain; what was not finite is not a number."""

    def value(one: Mapping[str, Any]) -> float:
        return math.nan if one["perplexity"] is None else float(one["perplexity"])

    scores = tuple((_blocks(one["blocks"]), value(one)) for one in record["scores"])
    return Step(_blocks(record["chosen"]), value(record), scores)


def finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


def _plain(blocks: Blocks) -> list[list[Any]]:
    return [[block.part, block.layer] for block in sorted(blocks)]


def _blocks(values: Sequence[Sequence[Any]]) -> Blocks:
    return frozenset(Block(part, layer) for part, layer in values)


def from_official(values: Mapping[str, Any], config: ModelConfig, file: str | None = None) -> list[Blocks]:
    """What each step of an official file removes besides, in order.

    Raises:
      InputError: a step that is missing or holds something else than blocks of this model, or lacks a block of the step
        before; names the step.
    """
    parts, layers = {name: part for part, name in OFFICIAL.items()}, len(layers_of(config))
    before, out = frozenset[Block](), []
    for number in range(1, len(values) + 1):
        listed = values.get(str(number))
        if not isinstance(listed, list):
            raise InputError("is missing", file=file, field=str(number), cure="Give the steps 1, 2, ... in turn")
        found = set()
        for one in listed:
            known = isinstance(one, list) and len(one) == 2 and one[0] in parts and isinstance(one[1], int)
            if not known or not 0 <= one[1] < layers:
                problem = f'holds {one!r}, not ["mha" or "mlp", a layer from 0 to {layers - 1}]'
                raise InputError(problem, file=file, field=str(number), cure="Give the file of a search of this model")
            found.add(Block(parts[one[0]], one[1]))
        if not before <= found:
            problem = "lacks a block that the step before has removed"
            raise InputError(problem, file=file, field=str(number), cure="Steps only add blocks")
        out.append(frozenset(found) - before)
        before = frozenset(found)
    return out
