"""Pruned models of any family of decoders: config.json holds that of the whole model and a list of the blocks that are
gone; the files hold the tensors of the others, under the names that they have in the whole model.

The model_type is our own, so that a reader that does not know it refuses the folder instead of drawing the missing
weights at random. That of the whole model stands apart: transformers' classes take an object inside a config.json that
has their model_type for their own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fusion_jax.errors import quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig, Part, Stack

MODEL_TYPE, BASE, BASE_TYPE, REMOVED = "fusion_jax_pruned", "base_config", "base_model_type", "removed_blocks"
KINDS: dict[str, Part] = {"mha": "attention", "mlp": "mlp"}
"""Blocks as the files of BlockPruner call them."""
NAMES = {part: kind for kind, part in KINDS.items()}
Lost = frozenset[tuple[Part, int]]
"""Blocks by their kind and their layer's number in the whole model, from 0."""


class Run(NamedTuple):
    """Layers of one stack of the whole model, one behind the other, that lack the same. name, places: of that stack's
    parameters, and of the layers among them."""

    stack: Stack
    name: str
    places: slice


def runs_without(config: ModelConfig, lost: Collection[tuple[Part, int]]) -> list[Run]:
    """The stacks of a whole model's decoder, cut where the blocks that layers lack change. A layer without any stays as
    an empty one, so that those behind it keep their numbers."""
    out, first = [], 0
    for name, stack in itertools.islice(config.stacks.items(), len(config.decoder)):
        lacks = [frozenset(part for part in NAMES if (part, first + i) in lost) for i in range(stack.layers)]
        for lacking, some in itertools.groupby(range(stack.layers), key=lacks.__getitem__):
            places = list(some)
            run = replace(stack_of(stack, places), lacks=lacking)
            out.append(Run(run, name, slice(places[0], places[-1] + 1)))
        first += stack.layers
    return out


def config_without(config: ModelConfig, lost: Collection[tuple[Part, int]]) -> ModelConfig:
    """The architecture of a whole model without these blocks."""
    return replace(config, decoder=tuple(run.stack for run in runs_without(config, lost)))


def stack_of(stack: Stack, places: Collection[int]) -> Stack:
    """A stack of some of its layers, each with its own window and rotary tables."""

    def of(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(values[place] for place in places) if values else ()

    windows = of(stack.windows)
    return replace(stack, layers=len(places), windows=windows if any(windows) else (), ropes=of(stack.ropes))


def lost_of(config: ModelConfig) -> Lost:
    """The blocks that a model lacks."""
    every = [stack for stack in config.decoder for _ in range(stack.layers)]
    return frozenset((part, number) for number, stack in enumerate(every) for part in stack.lacks)


def whole(config: ModelConfig) -> ModelConfig:
    """A model that lacks nothing: the stacks that `runs_without` has cut are one again."""
    if not lost_of(config):
        return config
    stacks: list[Stack] = []
    for stack in config.decoder:
        if stacks and _alike(stacks[-1]) == _alike(stack):
            stacks[-1] = _joined(stacks[-1], stack)
        else:
            stacks.append(replace(stack, lacks=frozenset()))
    return replace(config, decoder=tuple(stacks))


def _alike(stack: Stack) -> Stack:
    return replace(stack, layers=0, windows=(), ropes=(), lacks=frozenset())


def _joined(first: Stack, second: Stack) -> Stack:
    def of(name: str) -> tuple[int, ...]:
        values = [getattr(stack, name) or (0,) * stack.layers for stack in (first, second)]
        return values[0] + values[1] if getattr(first, name) or getattr(second, name) else ()

    return replace(first, layers=first.layers + second.layers, windows=of("windows"), ropes=of("ropes"))


def base_of(fields: Fields) -> Fields:
    """The whole model's config.json."""
    base, name = fields.object(BASE), fields.text(BASE_TYPE)
    return replace(base, values={**base.values, "model_type": name})


def from_hf(fields: Fields, base: ModelConfig) -> ModelConfig:
    """config.json to the model's parts; base: those of the whole model, which it holds.

    Raises:
      InputError: a model with an encoder; a list that holds something else than blocks of the model.
    """
    if base.encoder or not base.decoder:
        raise fields.wrong(BASE, "has an encoder, of which no blocks are removed", "Give a decoder")
    lost = set()
    for one in fields.items(REMOVED):
        known = isinstance(one, list) and len(one) == 2 and one[0] in list(KINDS) and type(one[1]) is int
        if not known or not 0 <= one[1] < base.layers:
            problem = f"holds {quoted(json.dumps(one))}, which is no block of the model"
            raise fields.wrong(REMOVED, problem, f'Give ["mha" or "mlp", a layer from 0 to {base.layers - 1}]')
        lost.add((KINDS[one[0]], one[1]))
    return config_without(base, lost)


def to_hf(base: Mapping[str, Any], lost: Collection[tuple[Part, int]]) -> dict[str, Any]:
    """The config.json of a whole model as that of the model without some of its blocks."""
    architectures = [f"FusionJaxPruned{name}" for name in base.get("architectures") or ()]
    ids = {name: value for name, value in base.items() if name.endswith("_token_id")}
    rest = {name: value for name, value in base.items() if name != "model_type"}
    own = {"model_type": MODEL_TYPE, "architectures": architectures, REMOVED: blocks_to_hf(lost)}
    return own | {BASE_TYPE: base["model_type"], BASE: rest} | ids


def blocks_to_hf(lost: Collection[tuple[Part, int]]) -> list[list[Any]]:
    """Blocks as config.json lists them, by layer."""
    return [[NAMES[part], layer] for part, layer in sorted(lost, key=lambda block: (block[1], block[0]))]


def of_whole(values: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """config.json, changed where it describes the architecture: of a pruned model in that of the whole one."""
    if values.get("model_type") != MODEL_TYPE:
        return change(values)
    return {**values, BASE: change(values[BASE])}
