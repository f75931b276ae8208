"""The blocks of a model: the attention and the feed-forward of each layer, each with its own norms.

A block that is removed leaves the residual stream as it is. Positions, masks, rotary tables and everything that depends
on a layer's number stay those of the whole model; the embedding, the final norm and the head are no blocks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig, Part, Stack
from fusion_jax.models.families import tensors
from fusion_jax.models.parameters import layer_specs, numbers_of, parameter_specs

Unit = Literal["mix", "mha", "mlp", "layer"]
"""What a search may remove: either kind of block, attention alone, feed-forwards alone, or whole layers."""
PARTS: tuple[Part, Part] = ("attention", "mlp")
PARTS_OF: dict[Unit, tuple[Part, ...]] = {"mix": PARTS, "mha": ("attention",), "mlp": ("mlp",), "layer": PARTS}


class Block(NamedTuple):
    """One block: its kind, and its layer's number in the whole model, from 0."""

    part: Part
    layer: int


Blocks = frozenset[Block]


class Layer(NamedTuple):
    """A layer of the decoder. name: of its stack's parameters; place: among the layers of that stack."""

    stack: Stack
    name: str
    place: int


def layers_of(config: ModelConfig) -> list[Layer]:
    """Every layer of the decoder, in order.

    Raises:
      InputError: a model with an encoder, or one that lacks blocks already: its layers have no blocks that are known.
    """
    if config.encoder or not config.decoder:
        problem = f"the blocks of {config.model_type}, which has an encoder, are not defined"
        raise InputError(problem, field="model_type", cure="Give a decoder")
    if any(stack.lacks for stack in config.decoder):
        raise InputError("lacks blocks already", field="model_type", cure="Give the whole model")
    return [Layer(*one) for one in tensors.layers_of(config)]


def candidates(config: ModelConfig, removed: Collection[Block], unit: Unit = "mix") -> list[frozenset[Block]]:
    """What one step of a search may remove, in the order in which the first of equals wins: attention of all layers,
    then feed-forwards of all layers; whole layers where they are the unit."""
    count = len(layers_of(config))
    if unit == "layer":
        whole = [frozenset(Block(part, layer) for part in PARTS) for layer in range(count)]
        return [blocks for blocks in whole if not blocks & set(removed)]
    every = [Block(part, layer) for part in PARTS_OF[unit] for layer in range(count)]
    return [frozenset({block}) for block in every if block not in removed]


def without(stack: Stack, parts: Collection[Part]) -> Stack:
    """A stack whose layers lack these parts."""
    return replace(stack, lacks=stack.lacks | frozenset(parts))


def parameters_of(config: ModelConfig, removed: Collection[Block] = ()) -> int:
    """Numbers of a model without these blocks, whose norms go with them; the embedding and a tied head count once."""
    whole = numbers_of(parameter_specs(config))
    for number, layer in enumerate(layers_of(config)):
        parts = [block.part for block in removed if block.layer == number]
        if parts:
            dense, left = (layer_specs(config, stack) for stack in (layer.stack, without(layer.stack, parts)))
            whole -= numbers_of(dense) - numbers_of(left)
    return whole


def ratio(config: ModelConfig, removed: Collection[Block]) -> float:
    """The share of a model's parameters that these blocks hold."""
    return 1.0 - parameters_of(config, removed) / parameters_of(config)
