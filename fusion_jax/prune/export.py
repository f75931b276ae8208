"""A pruned model in forms that are served.

hf: a Hugging Face folder of the family's own architecture, for every program that reads it. Layers that lost both
  blocks go, and the rest is numbered anew; in a layer that lost one block the output projection of that block is zero,
  so that it adds nothing. The logits are those of the model without the blocks, except where a norm with a bias stands
  behind a block, which is refused. config.json lists the blocks, by the layers of the model that they were taken from.
native: of any family of decoders, with the tensors of the other blocks alone, for `fusion_jax.load`; see
  `models.families.pruned`. Other programs refuse it.
nemotron-nas: of a model with Llama's body, with blocks that are not there, for vLLM and others; see `prune.nemotron`.
nemotron-nas-filled: the same with zeros where one of its readers would compute something else without a block.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError
from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig, Part, Stack
from fusion_jax.models.decoder import Params
from fusion_jax.models.families import config_to_hf, pruned
from fusion_jax.models.folder import Model, config_values
from fusion_jax.models.int8 import refuse_int8
from fusion_jax.models.lora import has_adapters, merged
from fusion_jax.models.parameters import layer_specs
from fusion_jax.prune.blocks import PARTS, Block, layers_of
from fusion_jax.prune.nemotron import from_llama, misread

Form = Literal["hf", "native", "nemotron-nas", "nemotron-nas-filled"]
OUTPUTS: dict[Part, tuple[str, ...]] = {"attention": ("o",), "mlp": ("down", "shared_down")}
"""The last linear layers of a block, by the names of their parameters."""
LOG = logging.getLogger(__name__)


def served(model: Model, removed: Collection[Block], form: Form = "hf") -> Model:
    """The model without these blocks, to be saved in a form; see above.

    Args:
      model: a whole one, or one that lacks blocks, as `load` reads the native form; those are gone besides. Adapters
        beside its kernels are merged.

    Raises:
      InputError: every layer would go; a block that this model does not have; hf: a norm with a bias behind the blocks;
        nemotron-nas: a model that this form has no words for, or a feed-forward whose width it cannot tell; weights in
        int8.
    """
    refuse_int8(model.params, "exported")
    if has_adapters(model.params):
        model = dataclasses.replace(model, params=merged(model.params), adapter=None)
    lost = pruned.lost_of(model.config) | frozenset(removed)
    model = _whole(model)
    check_served(model.config, [Block(*block) for block in lost], form)
    if form == "hf":
        return _silent(model, lost)
    lacking = without_blocks(model, lost)
    return lacking if form == "native" else _nemotron(lacking, form == "nemotron-nas-filled")


def check_served(config: ModelConfig, removed: Collection[Block], form: Form = "hf") -> None:
    """Refuse blocks that `served` cannot take from a whole model, with its errors."""
    layers = len(layers_of(config))
    for block in removed:
        if block.part not in PARTS or not 0 <= block.layer < layers:
            problem = f"the model has no {block.part} of layer {block.layer}"
            raise InputError(problem, field="blocks", cure=f"Layers go from 0 to {layers - 1}")
    if all(Block(part, number) in removed for part in PARTS for number in range(layers)):
        raise InputError("no layer would be left", field="blocks", cure="Remove fewer blocks")
    biased = [s for s in config.decoder if s.norm.bias and s.residual in ("after", "sandwich", "post")]
    if biased and removed and form == "hf":
        problem = "has a norm with a bias behind its blocks, which adds to the residual stream without them"
        raise InputError(problem, field="model_type", cure="Export another family, or the native form")


def without_blocks(model: Model, lost: Collection[tuple[Part, int]]) -> Model:
    """A whole model without these blocks, whose parameters it does not have: to be trained, decoded and saved."""
    runs, params = pruned.runs_without(model.config, lost), dict(model.params)
    every = {run.name: model.params[run.name] for run in runs}
    config = dataclasses.replace(model.config, decoder=tuple(run.stack for run in runs))
    for name in every:
        del params[name]
    for name, run in zip(config.stacks, runs, strict=True):
        own = {key: every[run.name][key] for key in layer_specs(config, run.stack)}
        params[name] = jax.tree.map(lambda x, run=run: x[run.places], own)
    values = pruned.to_hf(config_values(model), lost)
    return dataclasses.replace(model, config=config, params=params, hf_config=values, folder="")


def _whole(model: Model) -> Model:
    """A model that lacks blocks with zeros in their place."""
    config = pruned.whole(model.config)
    if config == model.config:
        return model
    values = model.hf_config
    if values.get("model_type") == pruned.MODEL_TYPE:
        values = dict(pruned.base_of(Fields(values)).values)
    params = _regrouped(model, config, _layers_apart(model))
    return dataclasses.replace(model, config=config, params=params, hf_config=values)


def _layers_apart(model: Model) -> list[Params]:
    """The parameters of every layer of the decoder, each as those of a stack of one."""
    return [
        jax.tree.map(lambda x, i=i: x[i : i + 1], model.params[name])
        for name, stack in zip(model.config.stacks, model.config.decoder, strict=False)
        for i in range(stack.layers)
    ]


def _regrouped(model: Model, config: ModelConfig, layers: list[Params]) -> Params:
    """All parameters, with those of layers as the stacks of another configuration, zeros where they are not there."""
    dtype = model.params["embed"]["embedding"].dtype
    params = {name: value for name, value in model.params.items() if name not in model.config.stacks}
    for name, stack in config.stacks.items():
        own, layers = layers[: stack.layers], layers[stack.layers :]
        specs = layer_specs(config, stack)
        filled = [_filled(specs, one, dtype) for one in own]
        params[name] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *filled)
    return params


def _filled(specs: Any, layer: Params, dtype: Any) -> Params:
    """The parameters of one layer as its specs have them, zeros where it has none."""
    out: Params = {}
    for name, spec in specs.items():
        if isinstance(spec, dict):
            out[name] = _filled(spec, layer.get(name, {}), dtype)
        else:
            out[name] = layer[name] if name in layer else jnp.zeros((1, *spec.shape), dtype)
    return out


def _nemotron(model: Model, filled: bool) -> Model:
    """A model that may lack blocks in the form of Nemotron-NAS."""
    config = from_llama(model.config, filled)
    for reader, numbers in misread(config).items():
        if numbers:
            listed = ", ".join(map(str, numbers))
            LOG.warning("%s misreads layers %s without a block; nemotron-nas-filled has zeros there", reader, listed)
    stacks = [stack for stack in model.config.decoder for _ in range(stack.layers)]
    layers = [one for one, stack in zip(_layers_apart(model), stacks, strict=True) if not stack.empty]
    ids = {name: value for name, value in model.hf_config.items() if name.endswith("_token_id")}
    values = config_to_hf(config) | ids
    return dataclasses.replace(
        model, config=config, params=_regrouped(model, config, layers), hf_config=values, folder=""
    )


def _silent(model: Model, lost: Collection[tuple[Part, int]]) -> Model:
    """A model of its own architecture whose lost blocks add nothing, without the layers that lost both."""
    config, first = model.config, 0
    params, left = dict(model.params), list[tuple[Stack, Params]]()
    for name, stack in config.stacks.items():
        places = [place for place in range(stack.layers) if not all((part, first + place) in lost for part in PARTS)]
        silent = {part: jnp.asarray([(part, first + place) in lost for place in places]) for part in PARTS}
        own, first = params.pop(name), first + stack.layers
        if places:
            kept = jax.tree.map(lambda x, kept=jnp.asarray(places): x[kept], own)
            left.append((pruned.stack_of(stack, places), _silenced(kept, silent)))
    config = dataclasses.replace(config, decoder=tuple(stack for stack, _ in left))
    params |= zip(config.stacks, (own for _, own in left), strict=True)
    small = dataclasses.replace(model, config=config, params=params, folder="")
    listed = {pruned.REMOVED: pruned.blocks_to_hf(lost)} if lost else {}
    return dataclasses.replace(small, hf_config=config_values(small) | listed)


def _silenced(layers: Params, silent: dict[Part, jax.Array]) -> Params:
    """Output projections of the layers that lost their block set to zero, biases with them."""

    def zeroed(leaf: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(-1, *(1,) * (leaf.ndim - 1)), 0, leaf)

    out: dict[str, Any] = dict(layers)
    for part, names in OUTPUTS.items():
        for name in set(names) & out.keys():
            out[name] = jax.tree.map(lambda leaf, part=part: zeroed(leaf, silent[part]), out[name])
    return out
