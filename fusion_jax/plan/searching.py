"""The plan of a greedy search for blocks to remove."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax

from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import ParamSpec, check_heads, parameter_specs
from fusion_jax.plan.fits import refuse_encoder
from fusion_jax.plan.flops import parameter_count
from fusion_jax.plan.programs import SearchLayer, SearchLoss
from fusion_jax.plan.requests import Request
from fusion_jax.plan.runs import Ask, Planned, computed_in, model_values, train_mesh
from fusion_jax.sharding import padded_rows
from fusion_jax.train.settings import TrainSettings


def searching(
    model: str, removals: Callable[[ModelConfig], int], rows: int, states: int, tokens: int, ask: Ask, *,
    train: TrainSettings, option: str = "--model", settings: str = "--train",
) -> list[Planned]:  # fmt: skip
    """A greedy search for blocks, on the mesh of `train`: a layer of several candidates and of one, and their losses.

    How often each is called is counted as if no block were gone yet, which is an upper bound.

    Args:
      removals: of the search of a model. rows, states: at once. tokens: of a row. option, settings: as in `scoring`.
    """
    values, name = model_values(model, ask, option)
    config, mesh = config_from_hf(values), train_mesh(ask, train)
    refuse_encoder(config, name)
    check_heads(config, mesh[2], math.prod(mesh), f"{settings}.mesh-tensor", model=name)
    attention, _ = computed_in(train)
    padded, tokens = padded_rows(rows, mesh[0] * mesh[1]), min(tokens, config.max_positions)
    layers, one = config.layers, 2 * padded * tokens * config.width
    every = 1 + 2 * layers
    chunks, batches = math.ceil(every / states), math.ceil(ask.rows / padded)
    body = 2 * sum(math.prod(spec.shape) for stack in config.stacks for spec in _leaves(config, stack))
    waiting, other = (chunks - 1) * states * one, 2 * parameter_count(config) - body
    count = removals(config)
    calls = count * batches
    notes = (
        f"model: {name}",
        f"{count} removals, {padded} rows of {tokens} tokens at once (--plan-rows N of them in all)",
        "counted as if no block were gone yet: an upper bound",
    )  # fmt: skip
    whole = SearchLayer(padded, tokens, states, waiting, other, attention)
    branch = SearchLayer(padded, tokens, 1, chunks * states * one, other, attention)
    walked = sum(math.ceil((1 + 2 * layer) / states) for layer in range(layers))
    loss = SearchLoss(padded, tokens, states, waiting, body)
    programs = {
        f"search: {states} candidates through a layer": (whole, walked),
        "search: two candidates branch off": (branch, layers),
        f"search: what {states} candidates lose": (loss, chunks),
    }
    return [
        Planned(title, Request(ask.slice, values, program, mesh), calls * times, notes)
        for title, (program, times) in programs.items()
    ]


def _leaves(config: ModelConfig, stack: str) -> list[ParamSpec]:
    return jax.tree.leaves(parameter_specs(config)[stack], is_leaf=lambda spec: isinstance(spec, ParamSpec))
