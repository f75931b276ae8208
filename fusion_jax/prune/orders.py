"""Orders in which blocks could go without a search, and what held-out text makes of an order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.prune.blocks import PARTS, Block, Blocks, candidates, layers_of, ratio
from fusion_jax.prune.influence import influence
from fusion_jax.prune.scoring import How, Text, perplexity, score
from fusion_jax.prune.search import Scorer, one_shot, search

Order = Sequence[Blocks]


def baselines(model: Model, text: Text, scorer: Scorer, how: How, seed: int) -> dict[str, Order]:
    """What a search of blocks is compared with. Scores that are of layers remove both blocks of a layer at once.

    whole layers: the greedy search with layers as the unit (SLEB, arXiv 2402.09025). one shot: blocks by the whole
    model's perplexity without each. layer influence: arXiv 2403.03853; layer angles: the cosine's angle, of each layer
    alone (of runs of layers in arXiv 2403.17887); relative magnitude: |f(x)| / |x + f(x)|; chance: by the seed.
    """
    config, layers = model.config, range(len(layers_of(model.config)))
    every = [next(iter(blocks)) for blocks in candidates(config, ())]
    found = influence(model.params, config, text, how)
    shuffled = random.Random(seed).sample(every, len(every))
    return {
        "whole layers": [step.chosen for step in search(scorer, config, len(layers), "layer")],
        "one shot": [step.chosen for step in one_shot(scorer, config, len(every))],
        "layer influence": _whole(sorted(layers, key=found.layers.__getitem__)),
        "layer angles": _whole(sorted(layers, key=found.angles.__getitem__)),
        "relative magnitude": [frozenset({block}) for block in sorted(every, key=found.magnitude.__getitem__)],
        "chance": [frozenset({block}) for block in shuffled],
    }


def _whole(order: Sequence[int]) -> Order:
    return [frozenset(Block(part, layer) for part in PARTS) for layer in order]


def curves(model: Model, text: Text, orders: Mapping[str, Order], how: How, most: float) -> Iterator[Record]:
    """{"order", "blocks", "ratio", "perplexity"} before and behind each removal of each order, up to a share of the
    parameters."""
    for name, order in orders.items():
        gone = frozenset[Block]()
        for number, blocks in enumerate((gone, *order)):
            gone |= blocks
            share = ratio(model.config, gone)
            if share > most + 1e-9:
                break
            losses = score(model.params, model.config, text, gone, (), how)
            yield {"order": name, "blocks": number, "ratio": share, "perplexity": perplexity(losses.base)}
