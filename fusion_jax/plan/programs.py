"""The programs of a run as requests that a plan can be asked for, and how each is lowered.

A request is plain data (JSON), so that it can travel to the process that compiles. `lower` calls the functions that
training, scoring and sampling call, with shapes and shardings in the place of arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.data.batches import Targets, TokenBatch
from fusion_jax.errors import InputError
from fusion_jax.losses.schedules import learning_rate
from fusion_jax.merge.methods import METHODS
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import abstract_params
from fusion_jax.sharding import make_mesh, named
from fusion_jax.train.objectives import (
    FusionSettings,
    PairSettings,
    WrpoSettings,
    fusion_objective,
    pair_objective,
    sft_objective,
    wrpo_objective,
)
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, state_shardings
from fusion_jax.train.step import Compute, Objective, make_score_step, make_train_step
from fusion_jax.train.teachers import make_topk_step

ObjectiveName = Literal["sft", "dpo", "wrpo", "fusion"]
GROUPS: dict[ObjectiveName, int] = {"sft": 1, "dpo": 2, "wrpo": 3, "fusion": 1}
_STEPS = 1000  # of the schedules; any number compiles to the same program


@dataclass(frozen=True)
class TrainStep:
    """One optimizer step. examples: of a micro-batch, over all chips; prompt: tokens that an example's rows share;
    tokens: of each row behind them; k: entries of a fusion target; reference: "none" for losses that read none."""

    objective: ObjectiveName
    examples: int
    tokens: int
    prompt: int = 0
    micro_batches: int = 1
    reference: Literal["none", "stored", "in-step"] = "none"
    remat: Literal["none", "full", "dots"] = "full"
    shared_prompt: bool = True
    k: int = 10


@dataclass(frozen=True)
class ScoreStep:
    """Reference log-probs of a micro-batch of examples of `groups` rows."""

    examples: int
    tokens: int
    groups: int
    prompt: int = 0
    shared_prompt: bool = True


@dataclass(frozen=True)
class TeacherStep:
    """The k most probable entries of every token of `rows` texts."""

    rows: int
    tokens: int
    k: int = 10


@dataclass(frozen=True)
class MergeTensor:
    """One tensor of several models by a method of `fusion_jax.merge`, split over all chips."""

    method: str
    models: int
    shape: tuple[int, ...]
    parameters: dict[str, float] = dataclasses.field(default_factory=dict)


Program = TrainStep | ScoreStep | TeacherStep | MergeTensor
KINDS: dict[str, type[Program]] = {kind.__name__: kind for kind in (TrainStep, ScoreStep, TeacherStep, MergeTensor)}


@dataclass(frozen=True)
class Request:
    """A program of a model on a slice. model: config.json's values; mesh: sizes of (data, fsdp, tensor)."""

    slice: str
    model: dict[str, Any]
    program: Program
    mesh: tuple[int, int, int] = (1, -1, 1)


def to_json(request: Request) -> dict[str, Any]:
    """A request as plain values."""
    return dataclasses.asdict(request) | {"kind": type(request.program).__name__}


def from_json(values: dict[str, Any]) -> Request:
    """The inverse of `to_json`."""
    program = dict(values["program"])
    if "shape" in program:
        program["shape"] = tuple(program["shape"])
    data, fsdp, tensor = values["mesh"]
    return Request(values["slice"], values["model"], KINDS[values["kind"]](**program), (data, fsdp, tensor))


def lower(request: Request, devices: list[Any]) -> tuple[jax.stages.Lowered, list[Any]]:
    """The program of a request, lowered for `devices` of a topology, and these in the order of its partitions.

    Raises:
      InputError: the mesh or the rows do not fit the devices.
    """
    program = request.program
    if isinstance(program, MergeTensor):
        mesh = make_mesh(1, len(devices), 1, devices=devices)
        return _lower_merge(program, mesh), list(mesh.devices.flat)
    config = config_from_hf(request.model)
    mesh = make_mesh(*request.mesh, devices=devices)
    rows = program.rows if isinstance(program, TeacherStep) else program.examples
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise InputError(
            f"{rows} rows do not divide over {ways} chips", field="examples", cure=f"Take a multiple of {ways}"
        )
    return _lower_model(program, config, mesh), list(mesh.devices.flat)


def _lower_model(program: TrainStep | ScoreStep | TeacherStep, config: DecoderConfig, mesh: Mesh) -> jax.stages.Lowered:
    match program:
        case TrainStep():
            return _lower_train(program, config, mesh)
        case ScoreStep():
            batch = _batch(mesh, (), program.examples, program.groups, program.prompt, program.tokens)
            compute = Compute(mesh, jnp.dtype(jnp.bfloat16), shared_prompt=program.shared_prompt)
            return _lowered(make_score_step(config, compute), abstract_params(config, jnp.bfloat16, mesh), batch)
        case TeacherStep():
            compute = Compute(mesh, jnp.dtype(jnp.bfloat16))
            step = make_topk_step(config, compute, program.k, config.vocab_size)
            ids = _array(mesh, (), (program.rows, program.tokens), jnp.int32)
            return _lowered(step, abstract_params(config, jnp.bfloat16, mesh), ids, ids)


def _lowered(step: Callable[..., Any], *arguments: Any) -> jax.stages.Lowered:
    lowered: jax.stages.Lowered = step.lower(*arguments)  # type: ignore[attr-defined]
    return lowered


def _lower_train(p: TrainStep, config: DecoderConfig, mesh: Mesh) -> jax.stages.Lowered:
    compute = Compute(mesh, jnp.dtype(jnp.bfloat16), p.remat, p.shared_prompt)
    settings = OptimizerSettings()
    optimizer = make_optimizer(settings, _STEPS)
    rate = learning_rate(
        settings.learning_rate, num_steps=_STEPS, warmup_ratio=settings.warmup_ratio, schedule=settings.schedule
    )
    params = abstract_params(config, jnp.float32, mesh)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), params)
    placed = state_shardings(state, jax.tree.map(lambda p: p.sharding, params), mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
    batch = _batch(mesh, (p.micro_batches,), p.examples, GROUPS[p.objective], p.prompt, p.tokens)
    if p.objective == "fusion":
        batch = batch._replace(targets=_targets(mesh, (p.micro_batches, p.examples), p.tokens, p.k))
    reference = abstract_params(config, jnp.bfloat16, mesh) if p.reference == "in-step" else None
    step = make_train_step(config, _objective(p.objective), optimizer, compute, rate)
    return _lowered(step, state, batch, reference)


def _objective(name: ObjectiveName) -> Objective:
    match name:
        case "sft":
            return sft_objective()
        case "dpo":
            return pair_objective(PairSettings())
        case "wrpo":
            return wrpo_objective(WrpoSettings(), _STEPS)
        case "fusion":
            return fusion_objective(FusionSettings(), _STEPS)


def _array(mesh: Mesh, leading: tuple[int, ...], shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array [*leading, B, ...] with the examples over the data axes, as `train.step.shard_batch` places it."""
    axes = (*(None for _ in leading), "batch", *(None for _ in shape[1:]))
    return jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=named(mesh, axes))


def _batch(
    mesh: Mesh, leading: tuple[int, ...], examples: int, groups: int, prompt: int, tokens: int
) -> TokenBatch:
    def array(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
        return _array(mesh, leading, (examples, *rest), dtype)

    row = (groups, tokens)
    return TokenBatch(
        prompts=array(jnp.int32, prompt), prompt_lengths=array(jnp.int32), tokens=array(jnp.int32, *row),
        labels=array(jnp.int32, *row), positions=array(jnp.int32, *row), segment_ids=None,
        scored=array(jnp.bool_, *row), example_ids=array(jnp.int32), reference=array(jnp.float32, groups),
        weights=array(jnp.float32),
    )  # fmt: skip


def _targets(mesh: Mesh, sizes: tuple[int, int], tokens: int, k: int) -> Targets:
    leading, shape = sizes[:1], (sizes[1], 1, tokens, k)
    return Targets(
        _array(mesh, leading, shape, jnp.int32), _array(mesh, leading, shape, jnp.float32),
        _array(mesh, leading, shape[:1], jnp.float32),
    )  # fmt: skip


def _lower_merge(p: MergeTensor, mesh: Mesh) -> jax.stages.Lowered:
    method = METHODS[p.method]

    def kernel(stack: jax.Array, base: jax.Array | None) -> jax.Array:
        keys = {"keys": jax.random.split(jax.random.key(0), p.models)} if method.random else {}
        return method.function(stack, base, **keys, **p.parameters).tensor.astype(jnp.bfloat16)

    def array(leading: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*(None for _ in leading), "fsdp" if p.shape[0] % mesh.size == 0 else None)
        return jax.ShapeDtypeStruct((*leading, *p.shape), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    base = None if method.base == "none" else array(())
    return jax.jit(kernel, out_shardings=array(()).sharding).lower(array((p.models,)), base)


def parameter_count(config: DecoderConfig) -> int:
    """Numbers of a model."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config)))
