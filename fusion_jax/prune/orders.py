"""Orders in which blocks could go without the search, and what held-out text makes of an order."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fusion_jax.models.folder import Model
from fusion_jax.prune.blocks import PARTS, Block, Blocks, candidates, layers_of, ratio
from fusion_jax.prune.influence import Influence, influence
from fusion_jax.prune.scoring import How, Text, perplexity, score
from fusion_jax.prune.search import Scorer, one_shot, search

ORDERS: Mapping[str, str] = {
    "random": "blocks, drawn by the seed",
    "magnitude": "blocks by |f(x)| / |x + f(x)|, the smallest first",
    "block-influence": "blocks by 1 - cos(x, x + f(x))",
    "influence": "whole layers by that number (ShortGPT, arXiv 2403.03853)",
    "angles": "whole layers by the angle between input and output, each alone (of runs of layers in arXiv 2403.17887)",
    "one-shot": "blocks by the whole model's perplexity without each",
    "layers": "whole layers by the greedy search (SLEB, arXiv 2402.09025)",
}
"""What a search of blocks is compared with. Scores of layers remove both blocks of a layer at once."""
SLACK = 1e-9  # of ratios, which are compared


def baseline(model: Model, text: Text, scorer: Scorer, how: How, seed: int) -> Callable[[str], Iterator[Blocks]]:
    """{name of `ORDERS`} -> what each of its removals takes besides, in order, computed as it is asked for."""
    config, count = model.config, len(layers_of(model.config))
    every = [next(iter(blocks)) for blocks in candidates(config, ())]
    measured = functools.cache(lambda: influence(model.params, config, text, how))

    def of(name: str) -> Iterator[Blocks]:
        match name:
            case "layers":
                return (step.chosen for step in search(scorer, config, count, "layer"))
            case "one-shot":
                return (step.chosen for step in one_shot(scorer, config, len(every)))
            case "random":
                return _single(random.Random(seed).sample(every, len(every)))
            case _:
                return _by(name, measured(), every)

    return of


def _by(name: str, found: Influence, every: Sequence[Block]) -> Iterator[Blocks]:
    blocks = {"magnitude": found.magnitude, "block-influence": found.blocks}
    if name in blocks:
        return _single(sorted(every, key=blocks[name].__getitem__))
    layers = {"influence": found.layers, "angles": found.angles}[name]
    order = sorted(range(len(layers)), key=layers.__getitem__)
    return (frozenset(Block(part, layer) for part in PARTS) for layer in order)


def _single(order: Iterable[Block]) -> Iterator[Blocks]:
    return (frozenset({block}) for block in order)


class Point(NamedTuple):
    """An order after some of its removals. perplexity: of held-out text; None without any."""

    blocks: Blocks
    ratio: float
    perplexity: float | None


def curve(model: Model, text: Text | None, order: Iterable[Blocks], how: How, most: float) -> Iterator[Point]:
    """Before and behind each removal of an order, up to the first that takes this share of the parameters or more, the
    last layer left out."""
    gone, layers = frozenset[Block](), len(layers_of(model.config))
    for blocks in itertools.chain([gone], order):
        gone |= blocks
        if len(gone) == len(PARTS) * layers:
            return
        share, value = ratio(model.config, gone), None
        if text is not None:
            value = perplexity(score(model.params, model.config, text, gone, (), how).base)
        yield Point(gone, share, value)
        if share >= most - SLACK:
            return
