"""How each request is lowered: by the functions that training, scoring, sampling and merging call, with shapes and
shardings in the place of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.data.batches import Targets, TokenBatch
from fusion_jax.errors import InputError
from fusion_jax.losses.schedules import learning_rate
from fusion_jax.merge.methods import METHODS
from fusion_jax.models.attention import cache_specs
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.decode import DecodeParams, LayerCache
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import abstract_params, check_heads, layer_specs
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS_ACCELERATOR
from fusion_jax.plan.requests import (
    GROUPS,
    Decode,
    Dtype,
    MergeTensor,
    ObjectiveName,
    Prefill,
    Program,
    Request,
    ScoreStep,
    TeacherStep,
    TrainStep,
)
from fusion_jax.sampling import ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sharding import data_ways, make_mesh, named, tensor_shards
from fusion_jax.teachers.reading import make_topk_step
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, state_shardings
from fusion_jax.train.step import make_score_step, make_train_step

Array = jax.Array
_TYPICAL = {"weight": 0.5, "t": 0.5, "density": 0.5, "select_topk": 0.1}  # values do not change what is planned
_STEPS = 1000  # of the schedules; any number compiles to the same program


def lower(request: Request, devices: list[Any]) -> tuple[jax.stages.Lowered, list[Any]]:
    """The program of a request, lowered for `devices` of a topology, and these in the order of its partitions.

    Raises:
      InputError: the mesh, the rows or the heads do not fit the devices.
    """
    program = request.program
    if isinstance(program, MergeTensor):
        mesh = make_mesh(1, len(devices), 1, devices=devices)
        return _lower_merge(program, mesh), list(mesh.devices.flat)
    config = config_from_hf(request.model)
    mesh = make_mesh(*request.mesh, devices=devices)
    check_heads(config, tensor_shards(mesh), mesh.size, "mesh-tensor")
    rows = program.examples if isinstance(program, TrainStep | ScoreStep) else program.rows
    ways = data_ways(mesh)
    if rows % ways and not isinstance(program, Prefill | Decode):
        raise InputError(
            f"{rows} rows do not divide over {ways} chips", field="examples", cure=f"Take a multiple of {ways}"
        )
    return _lower_model(program, config, mesh), list(mesh.devices.flat)


def _lower_model(program: Program, config: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
    match program:
        case TrainStep():
            return _lower_train(program, config, mesh)
        case ScoreStep():
            batch = _batch(mesh, (), program.examples, program.groups, program.prompt, program.tokens)
            compute = _compute(mesh, program.dtype, kernel=program.attention, shared_prompt=program.shared_prompt)
            params = abstract_params(config, jnp.dtype(program.start), mesh)
            return _lowered(make_score_step(config, compute), params, batch)
        case TeacherStep():
            compute = _compute(mesh, "bfloat16", kernel=program.attention)
            step = make_topk_step(config, compute, program.k, config.vocab_size)
            tokens = _array(mesh, (), (program.rows, program.tokens), jnp.int32)
            return _lowered(step, abstract_params(config, jnp.bfloat16, mesh), tokens, tokens)
        case Prefill():
            how = ids.How(config, Sampler(), 1, jnp.dtype(jnp.bfloat16), mesh, "splash")
            tokens = _spread(mesh, ("batch", "tokens"), (program.rows, program.prompt), jnp.int32)
            lengths = _spread(mesh, ("batch",), (program.rows,), jnp.int32)
            params = abstract_params(config, jnp.bfloat16, mesh)
            return ids.prefill(how).lower(params, tokens, lengths)
        case Decode():
            return _lower_decode(program, config, mesh)
    raise TypeError(type(program))


def _compute(mesh: Mesh, dtype: Dtype, **how: Any) -> Compute:
    """As `train.optimise.compute_for` sets it on TPU."""
    return Compute(mesh, jnp.dtype(dtype), logits=CHUNK_ELEMENTS_ACCELERATOR, **how)


def _lowered(step: Callable[..., Any], *arguments: Any) -> jax.stages.Lowered:
    lowered: jax.stages.Lowered = step.lower(*arguments)  # type: ignore[attr-defined]
    return lowered


def _lower_train(p: TrainStep, config: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
    compute = _compute(mesh, p.dtype, kernel=p.attention, remat=p.remat, shared_prompt=p.shared_prompt)
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
    reference = abstract_params(config, jnp.dtype(p.start), mesh) if p.reference == "in-step" else None
    step = make_train_step(config, _objective(p.objective), optimizer, compute, total=_STEPS, rate=rate)
    return _lowered(step, state, batch, reference)


def _objective(name: ObjectiveName) -> Objective:
    match name:
        case "sft":
            return objectives.sft()
        case "dpo":
            return objectives.pair(PairSettings())
        case "wrpo":
            return objectives.wrpo(WrpoSettings())
        case "fusion":
            return objectives.fusion(FusionSettings())


def _array(mesh: Mesh, leading: tuple[int, ...], shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array [*leading, B, ...] with the examples over the data axes, as `train.step.shard_batch` places it."""
    axes = (*(None for _ in leading), "batch", *(None for _ in shape[1:]))
    return jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=named(mesh, axes))


def _batch(mesh: Mesh, leading: tuple[int, ...], examples: int, groups: int, prompt: int, tokens: int) -> TokenBatch:
    def array(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
        return _array(mesh, leading, (examples, *rest), dtype)

    row = (groups, tokens)
    return TokenBatch(
        prompts=array(jnp.int32, prompt), prompt_lengths=array(jnp.int32), tokens=array(jnp.int32, *row),
        labels=array(jnp.int32, *row), positions=array(jnp.int32, *row), segment_ids=None,
        groups=array(jnp.uint8, *row), example_ids=array(jnp.int32), reference=array(jnp.float32, groups),
        weights=array(jnp.float32), branch=array(jnp.int32),
    )  # fmt: skip


def _targets(mesh: Mesh, sizes: tuple[int, int], tokens: int, k: int) -> Targets:
    leading, shape = sizes[:1], (sizes[1], 1, tokens, k)
    return Targets(
        _array(mesh, leading, shape, jnp.int32), _array(mesh, leading, shape, jnp.float32),
        _array(mesh, leading, shape[:1], jnp.float32),
    )  # fmt: skip


def _spread(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], dtype: Any) -> Any:
    """An array with these logical axes, whole where the mesh does not divide it."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh, axes, shape))


def _lower_decode(p: Decode, config: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The loop that grows all rows, lowered as sampling calls it."""
    dtype, rows = jnp.dtype(jnp.bfloat16), p.rows * p.samples
    how = ids.How(config, Sampler(p.temperature, p.top_p, p.top_k), p.samples, dtype, mesh)
    params = abstract_params(config, dtype, mesh)
    layers = tuple(
        jax.tree.map(lambda s: _spread(mesh, s.axes, s.shape, dtype), layer_specs(config, stack))
        for stack in config.decoder
        for _ in range(stack.layers)
    )
    ready = DecodeParams(layers, {name: value for name, value in params.items() if name not in config.stacks})
    fixed = ids.Fixed(
        _spread(mesh, ("batch",), (p.rows,), jnp.int32), _spread(mesh, ("batch", None), (rows, 2), jnp.uint32),
        _spread(mesh, (None,), (4,), jnp.int32),
    )  # fmt: skip
    last = _spread(mesh, ("batch", None), (p.rows, config.width), dtype)
    state = jax.eval_shape(ids.start_rows(how, p.capacity), ready, fixed, last)

    def placed(x: Any) -> Any:
        return _spread(mesh, ("batch", *(None,) * (x.ndim - 1)) if x.ndim else (), x.shape, x.dtype)

    def kept(stack: Stack, rows: int, tokens: int) -> Any:
        specs = cache_specs(stack.attention)
        return jax.tree.map(lambda one: _spread(mesh, one.all_axes, one.shape(rows, tokens), dtype), specs)

    every = [stack for stack in config.decoder for _ in range(stack.layers)]
    caches = tuple(LayerCache(kept(stack, rows, p.capacity), kept(stack, rows, 1)) for stack in every)
    state = jax.tree.map(placed, state._replace(caches=()))._replace(caches=caches)
    prompts = tuple(kept(stack, p.rows, p.prompt) for stack in every)
    limit = _spread(mesh, (), (), jnp.int32)
    return ids.continue_rows(how, p.capacity).lower(ready, prompts, fixed, state, limit)


def _lower_merge(p: MergeTensor, mesh: Mesh) -> jax.stages.Lowered:
    method = METHODS[p.method]
    values = {one.name: _TYPICAL.get(one.name, one.default) for one in method.parameters}
    parameters = {
        method.argument(one.name): (values[one.name],) * p.models if one.per_model else values[one.name]
        for one in method.parameters
    }

    def kernel(stack: jax.Array, base: jax.Array | None) -> jax.Array:
        keys = {"keys": jax.random.split(jax.random.key(0), p.models)} if method.random else {}
        return method.function(stack, base, **keys, **parameters).tensor.astype(jnp.bfloat16)

    def array(leading: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*(None for _ in leading), "fsdp" if p.shape[0] % mesh.size == 0 else None)
        return jax.ShapeDtypeStruct((*leading, *p.shape), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    base = None if method.base == "none" else array(())
    return jax.jit(kernel, out_shardings=array(()).sharding).lower(array((p.models,)), base)
