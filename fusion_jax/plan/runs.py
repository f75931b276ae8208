"""From the settings of an experiment to the programs that it would run on a slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusion_jax.data.batches import bucket_list
from fusion_jax.data.order import num_steps
from fusion_jax.errors import InputError
from fusion_jax.models.config import rewarding
from fusion_jax.models.families import config_from_hf, config_to_hf
from fusion_jax.models.int8 import Weights
from fusion_jax.models.lora import check_lora
from fusion_jax.models.parameters import check_heads
from fusion_jax.ops.kernels import Kernel
from fusion_jax.plan.fits import refuse_encoder
from fusion_jax.plan.flops import parameter_count
from fusion_jax.plan.models import PUBLIC, config_named
from fusion_jax.plan.programs import (
    OBJECTIVES,
    BeamDecode,
    Decode,
    Dtype,
    MergeTensor,
    ObjectiveName,
    Prefill,
    Program,
    ScoreStep,
    Start,
    TeacherStep,
    TrainStep,
)
from fusion_jax.plan.programs.program import BYTES
from fusion_jax.plan.requests import Request
from fusion_jax.sampling.generate import SampleSettings
from fusion_jax.sampling.ids import decoding_ways
from fusion_jax.sampling.sizes import capacities_of, kept_width, read_together, read_width
from fusion_jax.sharding import mesh_sizes, padded_rows
from fusion_jax.slices import slice_of
from fusion_jax.train.objective import Objective
from fusion_jax.train.settings import TrainSettings
from fusion_jax.zoo import model_path

_PROMPT = 1024
Sizes = tuple[int, int, int]  # of data, fsdp and tensor

_HELD: dict[Weights, str] = {"stored": "", "int8": ", its layers' matrices in int8"}
_PACKED = {
    "official": ("packed blocks have the settings' greatest length, as planned",),
    "reset": ("planned without the segment ids of packed documents: attention leaves out nothing across them",),
}


@dataclass(frozen=True)
class Ask:
    """What the user wants planned. slice: cloud name; rows: records of the whole run, 0: not said; prompt: tokens of a
    prompt, 0: as each program assumes; full: wait for the whole compile; preset: of the experiment."""

    slice: str
    rows: int = 0
    prompt: int = 0
    full: bool = False
    preset: str = ""


@dataclass(frozen=True)
class Planned:
    """A program of a run. times: how often the run calls it, 0: not known; notes: what was assumed."""

    title: str
    request: Request
    times: int = 0
    notes: tuple[str, ...] = ()


def public_of(model: str, ask: Ask) -> str:
    """The public model that a preset is called after, where it still has a miniature; "" where that is planned."""
    named = [name for name in PUBLIC if ask.preset.startswith(name)]
    return max(named, key=len, default="") if model.startswith("zoo:") else ""


def model_values(name: str, ask: Ask, option: str) -> tuple[dict[str, Any], str]:
    """config.json of a model given for an option, and its name; where a preset still has a miniature, the public model
    that the preset is called after."""
    chosen = public_of(name, ask) or name
    return config_named(chosen if chosen in PUBLIC else model_path(chosen, option), option), chosen


def training(
    title: str,
    model: str,
    objective: Objective,
    train: TrainSettings,
    max_length: int,
    ask: Ask,
    *,
    option: str = "--target",
    settings: str = "--train",
    length: str = "--text.tokens.max-length",
    k: int = 10,
    packing: Literal["none", "official", "reset"] = "none",
    start: Start = "bfloat16",
    teachers: Sequence[tuple[str, str, Weights]] = (),
) -> list[Planned]:
    """The optimizer step and, where references are stored, the scoring step before it.

    Args:
      teachers: that stay in memory and are asked between the steps: model, option that names it, how it is held.
      settings: the option that `train` has. length: the option that sets `max_length`. start: dtype of the weights that
        training starts from: a folder's, or float32 behind a stage that trained.

    Raises:
      InputError: the mesh does not fit the slice; the batch or the heads do not divide over the chips; rows longer than
        the model's positions; an unknown slice or model.
    """
    values, name = model_values(model, ask, option)
    if objective.head == "reward":
        values = config_to_hf(rewarding(config_from_hf(values)))
    config, mesh = config_from_hf(values), train_mesh(ask, train)
    refuse_encoder(config, name)
    check_heads(config, mesh[2], math.prod(mesh), f"{settings}.mesh-tensor", model=name)
    if objective.targets:
        max_length = min(max_length, config.max_positions)
    elif max_length - 1 > config.max_positions:
        raise InputError(
            f"rows of {max_length} tokens are more than the model's {config.max_positions} positions", file=name,
            field=length, cure=f"Set it to {config.max_positions} or less",
        )  # fmt: skip
    if train.lora is not None:
        check_lora(config, train.lora, f"{settings}.lora")
    micro, notes = micro_batches(train, mesh, settings)
    examples = train.batch_size // micro
    prompt, tokens = row_lengths(max_length, 0 if train.pack_tokens else ask.prompt)
    notes = (f"model: {name}", _widths(prompt, tokens, len(objective.slots)), *notes, *_PACKED.get(packing, ()))
    if train.pack_tokens:
        notes += (f"planned with a row a response: rows of {train.pack_tokens} tokens hold several, fewer in all",)
    if teachers:
        notes += ("live teachers lie beside it and read each batch before the step, whose time does not count that",)
    kind: Literal["none", "stored", "in-step"] = train.reference if objective.reference else "none"
    attention, dtype = computed_in(train)
    shared = train.shared_prompt and prompt > 0
    named = planned_as(objective)
    step = TrainStep(
        named, examples, tokens, prompt, micro, kind, train.remat, shared, k, attention, dtype, start,
        len(objective.slots) if named == "several" else 0, train.lora, _held_by(teachers, ask), train.dropout,
        train.source_dropout,
    )  # fmt: skip
    steps = num_steps(ask.rows, train.batch_size, train.epochs) if ask.rows else 0
    out = [Planned(title, Request(ask.slice, values, step, mesh), steps, notes)]
    if kind == "stored":
        score = ScoreStep(examples, tokens, len(objective.slots), prompt, shared, attention, dtype, start)
        out.append(Planned(
            f"{title}: reference log-probs, once", Request(ask.slice, values, score, mesh),
            math.ceil(ask.rows / examples), notes,
        ))  # fmt: skip
    return out


def _held_by(teachers: Sequence[tuple[str, str, Weights]], ask: Ask) -> int:
    """Bytes of the weights of all of these."""
    configs = [(config_from_hf(model_values(model, ask, option)[0]), held) for model, option, held in teachers]
    return sum(BYTES[held] * parameter_count(config) for config, held in configs)


def scoring(
    title: str, model: str, rows: int, train: TrainSettings, max_length: int, ask: Ask, *, option: str, settings: str,
    weights: Weights = "stored",
) -> list[Planned]:  # fmt: skip
    """Log-probs of texts under a model that did not write them, once, on the mesh and in the batches of a stage.

    Args:
      rows: texts of an example. option: that names the model; settings: that `train` has. weights: of the layers.

    Raises:
      InputError: as `training`.
    """
    values, name = model_values(model, ask, option)
    config, mesh = config_from_hf(values), train_mesh(ask, train)
    refuse_encoder(config, name)
    check_heads(config, mesh[2], math.prod(mesh), f"{settings}.mesh-tensor", model=name)
    micro, notes = micro_batches(train, mesh, settings)
    examples, prompt, tokens = train.batch_size // micro, *row_lengths(max_length, ask.prompt)
    attention, dtype = computed_in(train)
    shared = train.shared_prompt and prompt > 0
    step = ScoreStep(examples, tokens, rows, prompt, shared, attention, dtype, "bfloat16", weights)
    notes = (f"model: {name}{_HELD[weights]}", _widths(prompt, tokens, rows), *notes)
    return [Planned(title, Request(ask.slice, values, step, mesh), math.ceil(ask.rows / examples), notes)]


def _mesh(ask: Ask, sizes: Sizes) -> Sizes:
    """The sizes of (data, fsdp, tensor) on the slice, none of them -1."""
    return mesh_sizes(slice_of(ask.slice).chips, *sizes)


def train_mesh(ask: Ask, train: TrainSettings) -> Sizes:
    """The mesh of a stage on the slice."""
    if train.mesh_spare:
        cure = "Leave it out: live teachers are then planned on the same chips"
        raise InputError("no plan is made of chips that are left to teachers", field="--train.mesh-spare", cure=cure)
    return _mesh(ask, (train.mesh_data, train.mesh_fsdp, train.mesh_tensor))


def computed_in(train: TrainSettings) -> tuple[Kernel, Dtype]:
    """The attention kernel and the dtype of a stage on TPU."""
    return (
        "splash" if train.attention == "auto" else train.attention,
        "bfloat16" if train.compute_dtype == "auto" else train.compute_dtype,
    )


def micro_batches(train: TrainSettings, mesh: Sizes, settings: str) -> tuple[int, tuple[str, ...]]:
    """Micro-batches whose examples divide over the chips: those of the settings, or the nearest number that does."""
    ways = mesh[0] * mesh[1]
    fitting = [
        n for n in range(1, train.batch_size + 1) if not train.batch_size % n and not train.batch_size // n % ways
    ]
    if not fitting:
        raise InputError(
            f"a batch of {train.batch_size} examples does not divide over {ways} chips", field=f"{settings}.batch-size",
            cure=f"Take a multiple of {ways}, or give {settings}.mesh-tensor some of the chips",
        )  # fmt: skip
    micro = min(fitting, key=lambda n: abs(n - train.micro_batches))
    if micro == train.micro_batches:
        return micro, ()
    return micro, (
        f"planned with {micro} micro-batches: the {train.micro_batches} of the settings do not divide "
        f"{train.batch_size} examples over {ways} chips; run with micro-batches {micro}",
    )


def row_lengths(max_length: int, prompt: int) -> tuple[int, int]:
    """Padded tokens of the shared prompt and of the rest of a row, as batches of such rows would have them."""
    if not 0 <= prompt < max_length:
        raise InputError(f"{prompt} is out of range", field="--plan-prompt", cure=f"Give less than {max_length}")
    return bucket_list(prompt)[-1] if prompt else 0, bucket_list(max_length - 1 - prompt)[-1]


def planned_as(objective: Objective) -> ObjectiveName:
    """The known objective of as many rows by which another is planned: what a loss computes from their log-probs is
    little beside the model.
    """
    for name, known in OBJECTIVES.items():
        alike = (len(objective.slots), objective.targets, objective.head)
        if (len(known.slots), known.targets, known.head) == alike:
            return name
    return "several"


def _widths(prompt: int, tokens: int, count: int) -> str:
    rows = f"{count} rows of {tokens}" if count > 1 else f"a row of {tokens}"
    if prompt:
        return f"every example: a prompt of {prompt} tokens and {rows}"
    shared = "; no prompt shared (--plan-prompt N)" if count > 1 else ""
    return f"every example: {rows} tokens, the settings' longest{shared}: an upper bound"


def teacher(
    title: str,
    model: str,
    rows: int,
    tokens: int,
    k: int,
    ask: Ask,
    *,
    mesh: Sizes = (1, -1, 1),
    option: str = "--model",
    train: TrainSettings | None = None,
    settings: str = "--train",
    weights: Weights = "stored",
) -> list[Planned]:
    """A teacher that reads texts and keeps k entries a token, on a mesh of its own or on that of `train`, which the
    option `settings` has. weights: of its layers."""
    values, name = model_values(model, ask, option)
    config, mesh = config_from_hf(values), _mesh(ask, mesh) if train is None else train_mesh(ask, train)
    refuse_encoder(config, name)
    check_heads(config, mesh[2], math.prod(mesh), "--mesh" if train is None else f"{settings}.mesh-tensor", model=name)
    ways, tokens = mesh[0] * mesh[1], min(tokens, config.max_positions)
    padded = padded_rows(rows, ways)
    notes = [f"model: {name}{_HELD[weights]}", f"every text: {tokens} tokens, the settings' longest"]
    if padded != rows:
        notes.append(f"planned with {padded} texts at once: {rows} do not divide over {ways} chips")
    step = TeacherStep(padded, bucket_list(tokens)[-1], k, weights=weights)
    return [Planned(title, Request(ask.slice, values, step, mesh), math.ceil(ask.rows / padded), tuple(notes))]


def generation(
    title: str, model: str, sample: SampleSettings, ask: Ask, *, prompt: int = _PROMPT, option: str = "--target",
    settings: str = "--sample.mesh-tensor", kept: Literal["", Start] = "", weights: Weights = "stored",
) -> list[Planned]:  # fmt: skip
    """Reading a batch of prompts, and growing all their samples to the most tokens; settings: the option that sets
    `mesh_tensor`; kept, weights: see `programs.Prefill`. A beam search grows hypotheses in the place of samples."""
    values, name = model_values(model, ask, option)
    config = config_from_hf(values)
    if not config.decoder:
        raise InputError(f"is {config.model_type}, an encoder, which writes nothing", file=name, cure="Give a decoder")
    longest = min(ask.prompt or prompt, config.max_positions - sample.max_new_tokens)
    if longest < 1:
        raise InputError(
            f"{sample.max_new_tokens} new tokens leave no room for a prompt", field="max_new_tokens",
            cure=f"The model has {config.max_positions} positions",
        )  # fmt: skip
    mesh = _mesh(ask, (-1, 1, decoding_ways(config, slice_of(ask.slice).chips, sample.mesh_tensor, settings)))
    width, size = read_width(longest), padded_rows(sample.batch_size, mesh[0] * mesh[1])
    group = read_together(width, size, mesh[0] * mesh[1])
    *_, capacity = capacities_of(sample.max_new_tokens)
    batches = math.ceil(ask.rows / size)
    grown: Program = Decode(size, kept_width(longest), capacity, sample.num_samples, sample.sampler, kept, weights)
    if sample.search is not None:
        grown = BeamDecode(size, kept_width(longest), capacity, sample.beams, kept=kept, weights=weights)
    notes = (f"model: {name}{_HELD[weights]}", f"every prompt: {width} tokens (--plan-prompt N)")
    each = "sample" if sample.search is None else "hypothesis"
    grows = f"every {each} grows to {capacity} tokens, its cache as large from the start: an upper bound"
    return [
        Planned(
            f"{title}: {group} prompts read",
            Request(ask.slice, values, Prefill(group, width, kept, weights=weights), mesh),
            math.ceil(batches * size / group), notes,
        ),
        Planned(f"{title}: a batch grown", Request(ask.slice, values, grown, mesh), batches, (*notes, grows)),
    ]  # fmt: skip


def merging(method: str, models: int, model: str, ask: Ask) -> list[Planned]:
    """The largest tensor of a merge, the embedding; the others follow it one at a time."""
    values, name = model_values(model, ask, "recipe")
    config = config_from_hf(values)
    shape = (config.vocab_size, config.width)
    notes = (f"models: {models} of {name}, bfloat16", f"the largest tensor, {shape}; the others come one at a time")
    tensor = MergeTensor(method, models, shape)
    return [Planned(f"{method}: the largest tensor", Request(ask.slice, values, tensor), 0, notes)]
