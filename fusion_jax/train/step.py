"""One optimizer step: score the rows, ask the objective, add up (sum, weight) over micro-batches, update.

The same function runs on one device, on a mesh, and ahead of time for a pod. It is one program over the whole batch,
whose examples lie over the devices: the compiler adds sums and gradients over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from fusion_jax.data.batches import TokenBatch
from fusion_jax.keeping import kept_programs
from fusion_jax.losses.reductions import Mean, divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.experts import balance
from fusion_jax.models.lora import Lora, joined
from fusion_jax.sharding import constrain, data_ways, local_rows, named
from fusion_jax.train.objective import Given, Memory, Metrics, Objective, Progress
from fusion_jax.train.scores import Scores, score
from fusion_jax.train.state import Pace, Params, TrainState

Array = jax.Array


def _place(batch: TokenBatch, mesh: Mesh | None) -> TokenBatch:
    return jax.tree.map(lambda x: constrain(x, mesh, ("batch",) + (None,) * (x.ndim - 1)), batch)


@kept_programs
def make_score_step(
    config: ModelConfig, compute: Compute, scores: Callable[..., Scores] = score
) -> Callable[[Params, TokenBatch], Array]:
    """Jitted sequence log-probs: (params, micro-batch) -> float[B,G]; how references are computed once.

    scores: the forward pass, that of the objective.
    """

    def step(params: Params, batch: TokenBatch) -> Array:
        return scores(params, config, _place(batch, compute.mesh), compute).sequence

    return compute.jit(step, out_shardings=None if compute.mesh is None else named(compute.mesh, ()))


def scores_of(
    objective: Objective, params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute, given: Given
) -> Scores:
    """The objective's forward pass, with what it is given where there is something."""
    beside = () if given.arrays is None and given.memory is None else (given,)
    return objective.scores(params, config, batch, compute, *beside)


@kept_programs
def make_eval_step(config: ModelConfig, objective: Objective, compute: Compute) -> Callable[..., Metrics]:
    """Jitted objective without gradient: (params, micro-batch, progress, arrays) -> sums with weights, also of `loss`.

    What it keeps between steps is made anew of these weights.
    """

    def evaluate(params: Params, batch: TokenBatch, progress: Progress, arrays: Any = None) -> Metrics:
        batch, memory = _place(batch, compute.mesh), objective.memory
        made = None if memory is None else memory.make(params, config, arrays, compute)
        scores = scores_of(objective, params, config, batch, compute, Given(arrays, made))
        tokens = objective.counts(batch) if objective.counts else None
        loss, metrics = objective.loss(scores, progress._replace(tokens=tokens))
        return {"loss": loss, **metrics, **_balance(scores)}

    return compute.jit(evaluate)


@kept_programs
def make_memory(config: ModelConfig, memory: Memory, compute: Compute) -> Callable[[Params, Any], Any]:
    """Jitted (params, arrays) -> what is kept between steps, as it is before the first one."""
    return compute.jit(lambda params, arrays: memory.make(params, config, arrays, compute))


def _balance(scores: Scores) -> Metrics:
    """How evenly the routers of a model with experts choose (`models.experts.balance`), by micro-batches."""
    if scores.routing is None:
        return {}
    tokens = scores.routing.tokens
    return {"balance": Mean(balance(scores.routing) * tokens, tokens)}


@kept_programs
def make_train_step(
    config: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    compute: Compute,
    *,
    router_weight: float = 0.0,
    lora: Lora | None = None,
    in_step: bool | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The jitted step (state, batches, pace, start=None, arrays=None) -> (state, metrics); the state is donated.

    Equal arguments give the same function, which is traced and compiled once: runs that differ in their number of steps
    or in their learning rate share it.

    Args:
      batches: a `TokenBatch` with a leading axis A of micro-batches; gradients are those of the sum
        over the whole step, divided once by its weight, which depends on no parameter.
      start: the weights that training starts from, for what follows. arrays: `Given.arrays`.
      in_step: whether reference log-probs are computed in the step, with `start`, instead of read from the batch; None:
        where `start` is given.
      lora: the state's parameters are adapters, which are added to `start`; nothing else has a gradient.
      router_weight: of a model with experts, times the balance of each micro-batch added to its mean loss.

    metrics: scalars, each divided once at the end; `bad` bool[A,B] marks examples whose log-probs are not finite.
    A step whose loss or gradient is not finite changes nothing but sets `state.halted`.
    """

    def micro(
        params: Params, batch: TokenBatch, progress: Progress, start: Params | None, given: Given
    ) -> tuple[Array, tuple[Metrics, Array]]:
        reference = start if in_step or in_step is None else None
        if lora is not None:
            assert start is not None
            params = joined(lax.stop_gradient(start), params, lora.scale)
        given = lax.stop_gradient(given)
        scores = scores_of(objective, params, config, batch, compute, given)
        if reference is not None:
            still = batch._replace(noise=None)
            frozen = scores_of(objective, lax.stop_gradient(reference), config, still, compute, given).sequence
            scores = scores._replace(reference=lax.stop_gradient(frozen))
        with jax.named_scope("loss"):
            loss, metrics = objective.loss(scores, progress)
            if scores.routing is not None:
                metrics = metrics | _balance(scores)
                added = router_weight * balance(scores.routing) * lax.stop_gradient(loss.weight)
                loss = loss._replace(total=loss.total + added) if router_weight else loss
        bad = constrain(~jnp.isfinite(scores.sequence).all(-1), compute.mesh, (None,))  # every host reads it
        return loss.total, ({"loss": loss, **metrics}, bad)

    def train_step(
        state: TrainState, batches: TokenBatch, pace: Pace, start: Params | None = None, arrays: Any = None
    ) -> tuple[TrainState, dict[str, Array]]:
        gradient, tokens = jax.grad(micro, has_aux=True), None
        opt_state, memory = state.opt_state, objective.memory
        remembered = None
        if memory is not None:
            opt_state, remembered = opt_state
            remembered = lax.cond(
                state.step % memory.every == 0,
                lambda params, old: memory.make(params, config, arrays, compute), lambda params, old: old,
                state.params, remembered,
            )  # fmt: skip
        given = Given(arrays, remembered)
        if objective.counts:
            tokens = jax.vmap(objective.counts)(batches).sum(0)
        progress = Progress(state.step, pace.total, tokens)

        def body(grads: Params, batch: TokenBatch) -> tuple[Params, tuple[Metrics, Array]]:
            new, aux = gradient(state.params, _place(batch, compute.mesh), progress, start, given)
            return jax.tree.map(jnp.add, grads, new), aux

        if batches.tokens.shape[0] == 1:
            grads, aux = gradient(
                state.params, _place(jax.tree.map(lambda x: x[0], batches), compute.mesh), progress, start, given
            )
            means, bad = jax.tree.map(lambda x: x[None], aux)
        else:
            grads, (means, bad) = lax.scan(body, jax.tree.map(jnp.zeros_like, state.params), batches)
        means = jax.tree.map(lambda x: x.sum(0), means)
        grads = jax.tree.map(lambda g: g / jnp.maximum(means["loss"].weight, 1e-30), grads)
        metrics = {name: divide(mean) for name, mean in means.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["lr"] = pace.rate
        updates, moments = optax.with_extra_args_support(optimizer).update(grads, opt_state, state.params, pace=pace)
        keep = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & ~state.halted
        proposed = (optax.apply_updates(state.params, updates), moments)
        params, moments = jax.tree.map(lambda new, old: jnp.where(keep, new, old), proposed, (state.params, opt_state))
        opt_state = moments if memory is None else (moments, remembered)
        new_state = TrainState(state.step + keep, ~keep, params, opt_state)
        return new_state, {**metrics, "bad": bad}

    return compute.jit(train_step, donate_argnums=0)


def shard_batch(batch: TokenBatch, mesh: Mesh | None) -> TokenBatch:
    """Host arrays [A,B,...] or [B,...] onto the devices, examples over the data axes; each host gives its own rows,
    those of `sharding.local_rows`.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    axis = batch.weights.ndim - 1
    ways = data_ways(mesh)
    shards = len(local_rows(ways, mesh))

    def place(x: np.ndarray) -> Array:
        size = x.shape[axis] // shards
        mine = local_rows(size * ways, mesh)

        def part(index: Any) -> np.ndarray:
            start = int(np.searchsorted(mine, index[axis].start or 0))
            return x[(*index[:axis], slice(start, start + size), *index[axis + 1 :])]

        axes = (None,) * axis + ("batch",) + (None,) * (x.ndim - 1 - axis)
        shape = (*x.shape[:axis], size * ways, *x.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, named(mesh, axes), part)

    return jax.tree.map(place, batch)
