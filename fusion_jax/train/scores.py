"""The forward pass of training: a micro-batch to the log-probabilities, or rewards, that an objective is made of.

The prompt of an example is computed once for all its rows. No array of shape [B, T, V] exists: `ops.linear_logprobs`
walks the vocabulary in chunks, for the rows behind the prompt only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.data.batches import Targets, TokenBatch
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, encode, forward, head_kernel
from fusion_jax.models.experts import Routing
from fusion_jax.models.layers import Noise
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.sharding import constrain, data_ways, tensor_shards

Array = jax.Array
ROW_STEP = 0x3C6EF372  # tells the noise of an example's rows apart


class Scores(NamedTuple):
    """What an objective sees of a micro-batch.

    logprobs, mask: float[B,G,T] of the tokens behind the prompt ([R,G,T] of packed rows), zero where not scored (a
    reward model's are scores); sequence: float[B,G] their sums; lengths: float[B,G] how many; reference: float[B,G]
    sums under the reference; weights: float[B], 0 for an example that only fills the batch. groups, branch, values: the
    batch's, see `data.batches`. labels: int[B,G,T], the tokens that are predicted.
    targets: the batch's, with target_logprobs float[B,G,T,K] of their ids.
    divergence, taught: float[B,G,T] and bool[B,G,T], how far the model is from teachers that the forward pass brings,
      and where they say something.
    routing: of a model with experts, what its routers did with the tokens that something scored depends on.
    found: what else a method's own forward pass gives its loss.
    """

    logprobs: Array
    mask: Array
    sequence: Array
    lengths: Array
    reference: Array
    weights: Array
    targets: Targets | None = None
    target_logprobs: Array | None = None
    groups: Array | None = None
    branch: Array | None = None
    values: Array | None = None
    routing: Routing | None = None
    labels: Array | None = None
    divergence: Array | None = None
    taught: Array | None = None
    found: Any = None


def score(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute) -> Scores:
    """Log-probabilities of the scored tokens of every row of a micro-batch."""
    (hidden, routing), targets = hidden_states(params, config, batch, compute), batch.targets
    labels = batch.labels
    if targets is not None:
        labels = jnp.concatenate([labels[..., None], targets.ids], -1)
    logprobs, _ = linear_logprobs(
        hidden, head_kernel(params, config), labels,
        soft_cap=config.head.soft_cap, vocab_shards=tensor_shards(compute.mesh), row_shards=data_ways(compute.mesh),
        elements=compute.logits,
    )  # fmt: skip
    of_targets = logprobs[..., 1:] if targets is not None else None
    return scores_from(logprobs[..., 0] if targets is not None else logprobs, batch, routing, of_targets)


def reward(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute) -> Scores:
    """Scores of a head with one label where a row is scored, which is its last token (`rewards.reward_data`)."""
    (hidden, routing), kernel = hidden_states(params, config, batch, compute), params["score"]["kernel"][0]
    values = jnp.einsum("rgtd,d->rgt", hidden.astype(kernel.dtype), kernel, precision="highest")
    return scores_from(values, batch, routing)


def scores_from(
    values: Array, batch: TokenBatch, routing: Routing | None, of_targets: Array | None = None
) -> Scores:
    """What an objective sees of values [R,G,T], one for each token."""
    values = jnp.where(batch.scored, values, 0.0)
    mask = batch.scored.astype(values.dtype)
    return Scores(
        logprobs=values,
        mask=mask * _token_weights(batch),
        sequence=_example_sums(values, batch),
        lengths=_example_sums(mask, batch),
        reference=batch.reference,
        weights=batch.weights,
        targets=batch.targets,
        target_logprobs=of_targets,
        groups=batch.groups,
        branch=batch.branch,
        values=batch.values,
        routing=routing,
        labels=batch.labels,
    )


def group_tokens(batch: TokenBatch, groups: int) -> Array:
    """float[groups], how many tokens of each group the examples of a micro-batch have (`Example.groups`, from 1)."""
    each = batch.groups[..., None] == jnp.arange(1, groups + 1)
    return (each * _token_weights(batch)[..., None]).sum((0, 1, 2))


def compared_tokens(batch: TokenBatch, branches: int) -> Array:
    """float[2 branches]: of the examples of each branch, the scored tokens, and those of them that have a target."""
    assert batch.targets is not None  # such rows are not packed
    scored = batch.scored * batch.weights[:, None, None]
    kinds = jnp.stack([scored.sum((1, 2)), (scored * (batch.targets.probs > 0).any(-1)).sum((1, 2))], -1)
    return (kinds[:, None] * (batch.branch[:, None] == jnp.arange(branches))[..., None]).sum(0).reshape(-1)


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


def noise_of(batch: TokenBatch, compute: Compute, groups: int = 1) -> Noise | None:
    """What a training pass over each example, or over `groups` rows of each, is dropped by; None where nothing is."""
    if batch.noise is None:
        return None
    keys = batch.noise[:, None] ^ (jnp.arange(groups, dtype=jnp.int32) * ROW_STEP)
    return Noise(keys.reshape(-1), compute.dropout, compute.source_dropout, compute.normal_noise)


def hidden_states(
    params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute
) -> tuple[Array, Routing | None]:
    """Hidden states [B,G,T,D] of the rows behind their prompts, [R,G,T,D] of packed rows, and `Scores.routing`."""
    if config.encoder:
        return _decoded(params, config, batch, compute), None
    examples, groups, width = batch.tokens.shape
    size = batch.prompts.shape[1]
    prompts, lengths = batch.prompts, batch.prompt_lengths
    # Texts on both sides of such a length cannot share what is computed of a prompt.
    shared = compute.shared_prompt and all(size + width <= switch for switch in config.positions.switches)
    if size and not shared:
        prompts, lengths = jnp.repeat(prompts, groups, 0), jnp.repeat(lengths, groups)
    rows = examples if size and shared else examples * groups

    def whole(prompt: Array, rest: Array) -> Array:
        rest = rest.reshape(rows, -1)
        joined = jnp.concatenate([prompt, rest], 1) if size else rest
        return constrain(joined, compute.mesh, ("batch", None))

    places = jnp.minimum(jnp.arange(size, dtype=jnp.int32), jnp.maximum(lengths - 1, 0)[:, None])
    positions = jnp.minimum(whole(places, batch.positions), config.max_positions - 1)  # beyond them is padding
    counted = None
    if config.experts is not None:
        used = _used(batch)
        prompted = used.any((1, 2)) if shared else used.any(2).reshape(-1)
        counted = whole((jnp.arange(size) < lengths[:, None]) & prompted[:, None], used)
    found = forward(
        params, config, whole(prompts, batch.tokens), positions=positions,
        segment_ids=None if batch.segment_ids is None else batch.segment_ids.reshape(rows, -1),
        branches=(size, examples * groups // rows) if size else None, prompt_lengths=lengths if size else None,
        counted=counted, noise=noise_of(batch, compute, rows // examples), mesh=compute.mesh, dtype=compute.dtype,
        remat=compute.remat, kernel=compute.kernel,
    )  # fmt: skip
    hidden, routing = found if config.experts is not None else (found, None)
    return hidden[:, size:].reshape(examples, groups, width, -1), routing


def _used(batch: TokenBatch) -> Array:
    """bool[B,G,T], the tokens behind the prompts that exist, up to the last one that is scored."""
    if batch.segment_ids is not None:
        return batch.segment_ids > 0
    scored = batch.scored & (batch.weights > 0)[:, None, None]
    if batch.targets is not None:
        scored |= (batch.targets.probs > 0).any(-1) & (batch.weights > 0)[:, None, None]
    return jax.lax.cummax(scored.astype(jnp.int32), 2, reverse=True) > 0


def _decoded(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute) -> Array:
    """Hidden states [B,G,T,D] of a decoder's rows over what the encoder made of their prompts, once each.

    An example's rows are the encoder's tokens, which they share, the decoder's first token and what follows.
    """
    examples, groups, width = batch.tokens.shape
    how = {"mesh": compute.mesh, "dtype": compute.dtype, "remat": compute.remat, "kernel": compute.kernel}
    encoded = encode(params, config, batch.prompts, batch.prompt_lengths, noise=noise_of(batch, compute), **how)
    tokens = constrain(batch.tokens.reshape(examples * groups, width), compute.mesh, ("batch", None))
    places = jnp.arange(width, dtype=jnp.int32)[None]  # the same for all rows: a bias by distance is computed once
    noise = noise_of(batch, compute, groups)
    hidden = forward(params, config, tokens, positions=places, encoded=encoded, noise=noise, **how)
    return hidden.reshape(examples, groups, width, -1)
