"""One optimizer step: score the rows, ask the objective, add up (sum, weight) over micro-batches, update.

The same function runs on one device, on a mesh, and ahead of time for a pod. The prompt of an example is computed
once for all its rows. No array of shape [B, T, V] exists: `ops.linear_logprobs` walks the vocabulary in chunks, for
the rows behind the prompt only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from fusion_jax.data.batches import Targets, TokenBatch
from fusion_jax.losses.reductions import Count, Mean, divide
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import forward, head_kernel
from fusion_jax.ops.kernels import Kernel
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS, linear_logprobs
from fusion_jax.ops.remat import Remat
from fusion_jax.sharding import constrain, data_ways, local_rows, named, tensor_shards
from fusion_jax.train.state import Params, TrainState

Array = jax.Array


class Scores(NamedTuple):
    """What an objective sees of a micro-batch.

    logprobs, mask: float[B,G,T] of the tokens behind the prompt ([R,G,T] of packed rows), zero where not scored;
    sequence: float[B,G] their sums; lengths: float[B,G] how many; reference: float[B,G] sums under the reference;
    weights: float[B], 0 for an example that only fills the batch. targets: the batch's, with target_logprobs
    float[B,G,T,K] of their ids.
    """

    logprobs: Array
    mask: Array
    sequence: Array
    lengths: Array
    reference: Array
    weights: Array
    targets: Targets | None = None
    target_logprobs: Array | None = None


Metrics = dict[str, Mean | Count]
Objective = Callable[[Scores, Array], tuple[Mean, Metrics]]
"""(scores, optimizer step) -> (loss, metrics), all as (sum, weight) or as counts, which micro-batches add."""


@dataclass(frozen=True)
class Compute:
    """How a forward pass is carried out: mesh, dtype of the matmuls, what the backward pass keeps, attention's kernel.

    shared_prompt: the rows of an example attend to one copy of their prompt, else each computes its own; exact both
    ways.
    logits: how many a device holds at once. options: of the compiler.
    """

    mesh: Mesh | None = None
    dtype: Any = jnp.float32
    remat: Remat = "none"
    shared_prompt: bool = True
    kernel: Kernel = "xla"
    logits: int = CHUNK_ELEMENTS
    options: tuple[tuple[str, str], ...] = ()

    def jit(self, step: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        """`jax.jit` with the compiler's options of these devices."""
        return jax.jit(step, compiler_options=dict(self.options) or None, **how)


def score(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute) -> Scores:
    """Log-probabilities of the scored tokens of every row of a micro-batch."""
    hidden, targets = _hidden(params, config, batch, compute), batch.targets
    labels = batch.labels
    if targets is not None:
        labels = jnp.concatenate([labels[..., None], targets.ids], -1)
    logprobs, _ = linear_logprobs(
        hidden, head_kernel(params, config), labels,
        soft_cap=config.head.soft_cap, vocab_shards=tensor_shards(compute.mesh), row_shards=data_ways(compute.mesh),
        elements=compute.logits,
    )  # fmt: skip
    of_targets = logprobs[..., 1:] if targets is not None else None
    logprobs = jnp.where(batch.scored, logprobs[..., 0] if targets is not None else logprobs, 0.0)
    mask = batch.scored.astype(logprobs.dtype)
    return Scores(
        logprobs=logprobs,
        mask=mask * _token_weights(batch),
        sequence=_example_sums(logprobs, batch),
        lengths=_example_sums(mask, batch),
        reference=batch.reference,
        weights=batch.weights,
        targets=targets,
        target_logprobs=of_targets,
    )


def _segments(batch: TokenBatch) -> Array:
    """float[R,G,T,M], 1 where a token of a packed row belongs to a segment."""
    assert batch.slots is not None and batch.segment_ids is not None
    return jax.nn.one_hot(batch.segment_ids - 1, batch.slots.shape[1])


def _example_sums(values: Array, batch: TokenBatch) -> Array:
    """Sums [B,G] over the tokens of every example's rows, of values [R,G,T]."""
    if batch.slots is None:
        return values.sum(-1)
    sums = jnp.einsum("rgt,rgtm->rmg", values, _segments(batch).astype(values.dtype), precision="highest")
    empty = jnp.zeros((batch.weights.shape[0] + 1, values.shape[1]), values.dtype)
    return empty.at[batch.slots].add(sums)[:-1]  # slot -1, of no example, is the last


def _token_weights(batch: TokenBatch) -> Array:
    """Weights of the tokens' examples, [R,G,T] or what broadcasts to it."""
    if batch.slots is None:
        return batch.weights[:, None, None]
    return jnp.einsum("rgtm,rm->rgt", _segments(batch), jnp.where(batch.slots < 0, 0, batch.weights[batch.slots]))


def _hidden(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute) -> Array:
    """Hidden states [B,G,T,D] of the rows behind their prompts; [R,G,T,D] of packed rows."""
    examples, groups, width = batch.tokens.shape
    size = batch.prompts.shape[1]
    prompts, lengths = batch.prompts, batch.prompt_lengths
    if size and not compute.shared_prompt:
        prompts, lengths = jnp.repeat(prompts, groups, 0), jnp.repeat(lengths, groups)
    rows = examples if size and compute.shared_prompt else examples * groups

    def whole(prompt: Array, rest: Array) -> Array:
        rest = rest.reshape(rows, -1)
        joined = jnp.concatenate([prompt, rest], 1) if size else rest
        return constrain(joined, compute.mesh, ("batch", None))

    places = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), prompts.shape)
    positions = jnp.minimum(whole(places, batch.positions), config.max_positions - 1)  # beyond them is padding
    hidden = forward(
        params, config, whole(prompts, batch.tokens), positions=positions,
        segment_ids=None if batch.segment_ids is None else batch.segment_ids.reshape(rows, -1),
        branches=(size, examples * groups // rows) if size else None, prompt_lengths=lengths if size else None,
        mesh=compute.mesh, dtype=compute.dtype, remat=compute.remat, kernel=compute.kernel,
    )  # fmt: skip
    return hidden[:, size:].reshape(examples, groups, width, -1)


def _place(batch: TokenBatch, mesh: Mesh | None) -> TokenBatch:
    return jax.tree.map(lambda x: constrain(x, mesh, ("batch",) + (None,) * (x.ndim - 1)), batch)


def make_score_step(config: ModelConfig, compute: Compute) -> Callable[[Params, TokenBatch], Array]:
    """Jitted sequence log-probs: (params, micro-batch) -> float[B,G]; how references are computed once."""

    def step(params: Params, batch: TokenBatch) -> Array:
        return score(params, config, _place(batch, compute.mesh), compute).sequence

    return compute.jit(step, out_shardings=None if compute.mesh is None else named(compute.mesh, ()))


def make_eval_step(
    config: ModelConfig, objective: Objective, compute: Compute
) -> Callable[[Params, TokenBatch, Array], Metrics]:
    """Jitted objective without gradient: (params, micro-batch, step) -> sums with weights, `loss` among them."""

    def evaluate(params: Params, batch: TokenBatch, step: Array) -> Metrics:
        loss, metrics = objective(score(params, config, _place(batch, compute.mesh), compute), step)
        return {"loss": loss, **metrics}

    return compute.jit(evaluate)


def make_train_step(
    config: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    compute: Compute,
    rate: optax.Schedule | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The jitted step (state, batches, reference_params=None) -> (state, metrics); the state is donated.

    Args:
      batches: a `TokenBatch` with a leading axis A of micro-batches; gradients are those of the whole step's mean.
      reference_params: given, reference log-probs are computed in the step instead of read from the batch.
      rate: the learning-rate schedule, reported as `lr`.

    metrics: scalars, each divided once at the end; `bad` bool[A,B] marks examples whose log-probs are not finite.
    A step whose loss or gradient is not finite changes nothing but sets `state.halted`.
    """

    def micro(
        params: Params, batch: TokenBatch, step: Array, reference: Params | None
    ) -> tuple[Array, tuple[Metrics, Array]]:
        scores = score(params, config, batch, compute)
        if reference is not None:
            frozen = score(lax.stop_gradient(reference), config, batch, compute).sequence
            scores = scores._replace(reference=lax.stop_gradient(frozen))
        loss, metrics = objective(scores, step)
        bad = constrain(~jnp.isfinite(scores.sequence).all(-1), compute.mesh, (None,))  # every host reads it
        return loss.total, ({"loss": loss, **metrics}, bad)

    def train_step(
        state: TrainState, batches: TokenBatch, reference: Params | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        gradient = jax.grad(micro, has_aux=True)

        def body(grads: Params, batch: TokenBatch) -> tuple[Params, tuple[Metrics, Array]]:
            new, aux = gradient(state.params, _place(batch, compute.mesh), state.step, reference)
            return jax.tree.map(jnp.add, grads, new), aux

        if batches.tokens.shape[0] == 1:
            grads, aux = gradient(
                state.params, _place(jax.tree.map(lambda x: x[0], batches), compute.mesh), state.step, reference
            )
            means, bad = jax.tree.map(lambda x: x[None], aux)
        else:
            grads, (means, bad) = lax.scan(body, jax.tree.map(jnp.zeros_like, state.params), batches)
        means = jax.tree.map(lambda x: x.sum(0), means)
        grads = jax.tree.map(lambda g: g / jnp.maximum(means["loss"].weight, 1e-30), grads)
        metrics = {name: divide(mean) for name, mean in means.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        if rate is not None:
            metrics["lr"] = rate(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        keep = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & ~state.halted
        proposed = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old), proposed, (state.params, state.opt_state)
        )
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
