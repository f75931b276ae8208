"""What `gpu.py` times of this package: the functions that its experiments call, with the numbers that they choose for
the device."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import gpu_shape
from experiments.benchmarks.gpu_shape import Shape
from fusion_jax.data.batches import Example, Targets, TokenBatch, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params
from fusion_jax.plan.programs import Decode, Prefill, ScoreStep, TrainStep
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.slices import compute_dtype
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.settings import TrainSettings, compute_for
from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
from fusion_jax.train.step import make_score_step, make_train_step

Row = dict[str, Any]
OBJECTIVES: dict[str, Objective] = {
    "sft": objectives.sft(),
    "wrpo": objectives.wrpo(WrpoSettings(beta=gpu_shape.BETA, alpha=gpu_shape.ALPHA, dynamic=False)),
    "distillation": objectives.fusion(FusionSettings(weight=gpu_shape.WEIGHT)),
}


def jobs(small: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """Every job by its name. Without `small` a GPU is needed."""
    if not small and jax.default_backend() not in ("gpu", "cuda"):
        raise RuntimeError(f"jax computes on {jax.default_backend()} here: install jax[cuda13], or give --small")
    shape = gpu_shape.SMALL if small else gpu_shape.FULL
    return {
        **{name: partial(trained, name, shape) for name in OBJECTIVES},
        "scoring": partial(scored, shape),
        "decoding": partial(decoded, shape),
    }


def work(job: str, shape: Shape) -> Row:
    """Tokens and FLOPs of a step or call, as `fusion_jax.plan` counts them. Needs no device."""
    config = config_from_hf(shape.model)
    match job:
        case "sft" | "distillation":
            step = TrainStep("sft" if job == "sft" else "fusion", shape.rows, shape.tokens)
            return {"tokens": step.tokens_computed(), "flops": step.flops(config)}
        case "wrpo":
            step = TrainStep("wrpo", shape.quads, shape.half, prompt=shape.half)
            return {"tokens": step.tokens_computed(), "flops": step.flops(config)}
        case "scoring":
            score = ScoreStep(shape.quads, shape.half, 3, prompt=shape.half)
            return {"tokens": score.tokens_computed(), "flops": score.flops(config)}
        case "decoding":
            read, grow = Prefill(shape.prompts, shape.prompt), Decode(shape.prompts, shape.prompt, shape.new)
            return {"tokens": grow.tokens_computed(), "flops": read.flops(config) + grow.flops(config)}
    raise ValueError(job)


def batch_of(job: str, shape: Shape) -> TokenBatch:
    """The batch of a step, as host arrays."""
    if job in ("wrpo", "scoring"):
        known = gpu_shape.reference(shape)
        examples = [
            Example(tuple(map(tuple, rows.tolist())), (shape.half + 1,) * 3, i, reference=tuple(known[i].tolist()))
            for i, rows in enumerate(gpu_shape.quads(shape))
        ]
    else:
        ids, probs = gpu_shape.targets(shape)
        one = np.float32(1.0)
        examples = [
            Example(
                (tuple(row.tolist()),), (1,), i,
                targets=Targets(ids[i], probs[i], one) if job == "distillation" else None,
            )
            for i, row in enumerate(gpu_shape.texts(shape))
        ]  # fmt: skip
    return collate(examples, buckets_of(examples))


def compute(rows: int) -> Compute:
    """As a training stage chooses it for one of these devices, with everything kept for the backward pass."""
    settings = TrainSettings(batch_size=rows, micro_batches=1, remat="none")
    return compute_for(settings, jax.local_devices()[:1])


def weights(config: ModelConfig, dtype: Any) -> Params:
    """Random weights, made on the device in one program."""
    made: Params = jax.jit(lambda: init_params(config, jax.random.key(0), dtype))()
    return made


def training(job: str, config: ModelConfig, shape: Shape, params: Params) -> Callable[[], float]:
    """A function that does one optimizer step and gives its loss."""
    batch = batch_of(job, shape)
    optimizer = make_optimizer(OptimizerSettings())
    step = make_train_step(config, OBJECTIVES[job], optimizer, compute(len(batch.weights)))
    state = init_state(params, optimizer)
    batches = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)

    def once() -> float:
        nonlocal state
        state, metrics = step(state, batches, Pace(100, gpu_shape.RATE), None)
        return float(jax.block_until_ready(metrics)["loss"])

    return once


def trained(job: str, shape: Shape) -> Iterator[Row]:
    config = config_from_hf(shape.model)
    once = training(job, config, shape, weights(config, jnp.float32))
    yield gpu_shape.timed(once, shape.steps) | work(job, shape) | where()


def scored(shape: Shape) -> Iterator[Row]:
    config = config_from_hf(shape.model)
    params, batch = weights(config, compute_dtype()), jax.tree.map(jnp.asarray, batch_of("scoring", shape))
    step = make_score_step(config, compute(shape.quads))

    def once() -> float:
        return float(jax.block_until_ready(step(params, batch))[0, 0])

    yield gpu_shape.timed(once, shape.steps) | work("scoring", shape) | where()


def decoded(shape: Shape) -> Iterator[Row]:
    """Whole calls of `generate_ids`, prompts included."""
    config = config_from_hf(shape.model)
    once = decoding(config, shape, weights(config, compute_dtype()))
    yield gpu_shape.timed(once, shape.steps) | work("decoding", shape) | where()


def decoding(config: ModelConfig, shape: Shape, params: Params) -> Callable[[], float]:
    """A function that continues all prompts and gives the log-prob of the first continuation."""
    ids = gpu_shape.prompts(shape).tolist()

    def once() -> float:
        rows = generate_ids(
            params, config, ids, max_new_tokens=shape.new, batch_size=shape.prompts, dtype=jnp.dtype(compute_dtype())
        )
        assert all(len(one.ids) == shape.new for row in rows for one in row)
        return rows[0][0].logprob

    return once


def where() -> Row:
    """The device, the versions, and the most memory that this process has taken of it."""
    device = jax.local_devices()[0]
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")  # an allocator need not count it
    if device.platform == "cpu":
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "by": "fusion_jax", "device": device.device_kind, "versions": f"jax {jax.__version__}", "peak_bytes": used,
    }  # fmt: skip
