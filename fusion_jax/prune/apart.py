"""A pruned model as it trains: its blocks are gone, so that no training brings them back. What was trained of it goes
back to its place in the whole model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model
from fusion_jax.models.lora import has_adapters, merged
from fusion_jax.models.parameters import layer_specs
from fusion_jax.prune.blocks import PARTS, Block, layers_of, without
from fusion_jax.prune.export import shortened, taken


class _Run(NamedTuple):
    """Layers of one stack that follow each other and lack the same. name: of the stack; places: theirs there."""

    stack: Stack
    name: str
    places: Sequence[int]


def _runs(config: ModelConfig, removed: Collection[Block]) -> list[_Run]:
    kept = []
    for number, layer in enumerate(layers_of(config)):
        lacks = frozenset(part for part in PARTS if Block(part, number) in removed)
        if len(lacks) < len(PARTS):
            kept.append((layer, lacks))
    runs = []
    for (name, lacks), group in itertools.groupby(kept, key=lambda one: (one[0].name, one[1])):
        layers = [layer for layer, _ in group]
        places = [layer.place for layer in layers]
        runs.append(_Run(without(shortened(layers[0].stack, places), lacks), name, places))
    return runs


def pruned_config(config: ModelConfig, removed: Collection[Block]) -> ModelConfig:
    """The architecture without these blocks: a stack for each run of layers that lack the same."""
    return dataclasses.replace(config, decoder=tuple(run.stack for run in _runs(config, removed)))


def apart(model: Model, removed: Collection[Block]) -> Model:
    """The model without these blocks, whose parameters it does not have."""
    config, params = pruned_config(model.config, removed), dict(model.params)
    every = {name: params.pop(name) for name in model.config.stacks}
    for name, run in zip(config.stacks, _runs(model.config, removed), strict=True):
        own = {key: every[run.name][key] for key in layer_specs(model.config, run.stack)}
        params[name] = taken(own, jnp.asarray(run.places))
    return dataclasses.replace(model, config=config, params=params, folder="")


def put_back(trained: Model, whole: Model, removed: Collection[Block]) -> Model:
    """The whole model with the parameters of `apart(whole, removed)` as they were trained, adapters merged."""
    new = merged(trained.params) if has_adapters(trained.params) else trained.params
    params: Params = {name: new.get(name, value) for name, value in whole.params.items()}
    for name in whole.config.stacks:
        params[name] = whole.params[name]
    for name, run in zip(trained.config.stacks, _runs(whole.config, removed), strict=True):
        places = jnp.asarray(run.places)
        own = {key: params[run.name][key] for key in new[name]}
        params[run.name] = params[run.name] | jax.tree.map(lambda x, y: _placed(x, y, places), own, dict(new[name]))  # noqa: B023
    return dataclasses.replace(whole, params=params, folder="")


def _placed(layers: jax.Array, some: jax.Array, places: jax.Array) -> jax.Array:
    return layers.astype(some.dtype).at[places].set(some)
