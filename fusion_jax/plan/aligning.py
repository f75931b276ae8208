"""The plan of a generator and its retriever, trained together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

from fusion_jax.data.order import num_steps
from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import check_heads
from fusion_jax.plan.models import PUBLIC, config_named
from fusion_jax.plan.programs import AlignStep
from fusion_jax.plan.requests import Request
from fusion_jax.plan.runs import Ask, Planned, computed_in, micro_batches, train_mesh
from fusion_jax.train.mktod import MktodSettings
from fusion_jax.train.settings import TrainSettings


def aligning(
    title: str, generator: str, retriever: str, projection: int, loss: MktodSettings, train: TrainSettings,
    lengths: Mapping[str, int], ask: Ask, *, settings: str,
) -> list[Planned]:  # fmt: skip
    """The optimizer step of a generator and its retriever. Without folders they are the public models that the preset
    is called after, and a BERT-base.

    Args:
      lengths: fields of `AlignStep`. projection: of a retriever that has none yet.

    Raises:
      InputError: the mesh does not fit the slice; the batch or the heads do not divide over the chips; no model.
    """
    if not generator and ask.preset not in PUBLIC:
        cure = "Give a T5 folder, or a preset like t5-large"
        raise InputError("is missing: the miniature is not planned", field="--generator", cure=cure)
    values, reader = config_named(generator or ask.preset, "--generator"), config_named(retriever or "bert-base")
    reader = {"projection_dim": projection} | reader
    mesh = train_mesh(ask, train)
    for config in (config_from_hf(values), config_from_hf(reader)):
        check_heads(config, mesh[2], math.prod(mesh), f"{settings}.mesh-tensor")
    micro, notes = micro_batches(train, mesh, settings)
    attention, dtype = computed_in(train)
    step = AlignStep(
        reader, asdict(loss), train.batch_size // micro, **lengths, micro_batches=micro, dropout=train.dropout,
        remat=train.remat, attention=attention, dtype=dtype, start="float32",
    )  # fmt: skip
    notes = (f"models: {generator or ask.preset} and {retriever or 'bert-base'}", *notes)
    notes += (f"{step.passages} passages of {step.context + step.entity} tokens; {step.entities} entities",)
    notes += ("the index is planned within the step; answering the validation turns is not planned",)
    steps = num_steps(ask.rows, train.batch_size, train.epochs) if ask.rows else 0
    return [Planned(title, Request(ask.slice, values, step, mesh), steps, notes)]
