"""A pruned model in forms that others serve: as a Hugging Face folder of the family's own architecture.

Layers that lost both blocks go, and the rest is numbered anew; in a layer that lost one block the output projection of
that block is zero, so that it adds nothing. The logits are those of the model without the blocks, except where a norm
with a bias stands behind a block, which is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig, Part, Stack
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model
from fusion_jax.prune.blocks import PARTS, Block, layers_of

OUTPUTS: dict[Part, tuple[str, ...]] = {"attention": ("o",), "mlp": ("down", "shared_down")}
"""The last linear layers of a block, by the names of their parameters."""


def served(model: Model, removed: Collection[Block]) -> Model:
    """The model without these blocks as one of its own architecture; see above.

    Raises:
      InputError: every layer would go; a block that this model does not have; a norm with a bias behind the blocks.
    """
    config, layers = model.config, layers_of(model.config)
    _check(config, removed, len(layers))
    gone = {number for number in range(len(layers)) if all(Block(part, number) in removed for part in PARTS)}
    params, left, first = dict(model.params), [], 0
    for name, stack in config.stacks.items():
        kept = [place for place in range(stack.layers) if first + place not in gone]
        silent = {part: jnp.asarray([Block(part, first + place) in removed for place in kept]) for part in PARTS}
        own, first = params.pop(name), first + stack.layers
        if kept:
            left.append((_shortened(stack, kept), _silenced(_taken(own, jnp.asarray(kept)), silent)))
    config = dataclasses.replace(config, decoder=tuple(stack for stack, _ in left))
    params |= zip(config.stacks, (own for _, own in left), strict=True)
    return dataclasses.replace(model, config=config, params=params)


def _check(config: ModelConfig, removed: Collection[Block], layers: int) -> None:
    for block in removed:
        if block.part not in PARTS or not 0 <= block.layer < layers:
            problem = f"the model has no {block.part} of layer {block.layer}"
            raise InputError(problem, field="blocks", cure=f"Layers go from 0 to {layers - 1}")
    if all(Block(part, number) in removed for part in PARTS for number in range(layers)):
        raise InputError("no layer would be left", field="blocks", cure="Remove fewer blocks")
    biased = [s for s in config.decoder if s.norm.bias and s.residual in ("after", "sandwich", "post")]
    if biased and removed:
        problem = "has a norm with a bias behind its blocks, which adds to the residual stream without them"
        raise InputError(problem, field="model_type", cure="Export another family")


def _taken(layers: Params, kept: jax.Array) -> Params:
    return jax.tree.map(lambda x: x[kept], layers)


def _shortened(stack: Stack, kept: list[int]) -> Stack:
    def of(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(values[place] for place in kept) if values else ()

    windows = of(stack.windows)
    return dataclasses.replace(
        stack, layers=len(kept), windows=windows if any(windows) else (), ropes=of(stack.ropes)
    )  # fmt: skip


def _silenced(layers: Params, silent: dict[Part, jax.Array]) -> Params:
    """Output projections of the layers that lost their block set to zero, biases with them."""

    def zeroed(leaf: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(-1, *(1,) * (leaf.ndim - 1)), 0, leaf)

    out: dict[str, Any] = dict(layers)
    for part, names in OUTPUTS.items():
        for name in set(names) & out.keys():
            out[name] = jax.tree.map(lambda leaf, part=part: zeroed(leaf, silent[part]), out[name])
    return out
