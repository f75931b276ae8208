"""What the calibration text loses by each candidate, all candidates of a step in one walk through the layers.

A candidate without a block of layer l has the whole model's states up to layer l. So one state, the base, walks through
the layers; before each layer the candidates of that layer branch off from it, and every state that has branched off
walks on beside it. Nothing before a candidate's block is computed twice, each layer's weights are read once for all
states, and the numbers are those of candidates that are computed alone. Which blocks are gone is known to the host
alone: the programs are those of the three sets of parts that a layer can have, for one state and for several at once,
and the head, however many layers and steps there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.attention import Held
from fusion_jax.models.blocks import Block as BlockModule
from fusion_jax.models.blocks import Rows, layer_inputs, tables_of
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig, Part, Stack
from fusion_jax.models.decoder import Params, buckets_of, finally_normed, head_kernel, tables_beside
from fusion_jax.models.layers import embedded
from fusion_jax.ops.kernels import Visible
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.prune.blocks import PARTS, Block, Layer, layers_of, without
from fusion_jax.sharding import constrain, data_ways, named, padded_rows, placed, tensor_shards

Array = jax.Array
STATES = ("batch", None, "tokens", None)  # each device has all states of its rows


@dataclass(frozen=True)
class How:
    """How a text goes through the layers.

    rows: of the text at once. states: how many candidates' residual streams go through a layer in one call, each of so
    many rows. count: told the parts and the states of each call, for tests of what a search costs.
    """

    compute: Compute = Compute()
    rows: int = 8
    states: int = 4
    count: Callable[[frozenset[Part], int], None] = lambda parts, states: None


class Text(NamedTuple):
    """Calibration rows int32[R,T], of which `lengths` int[R] tokens exist; None: all.

    Labels that equal `ignored` are not scored, nor tokens that `scored`, bool[R,T], leaves out; None: all are.
    """

    rows: np.ndarray
    ignored: int | None = None
    scored: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def first(self, count: int) -> Text:
        """The first rows."""
        rest = (None if one is None else one[:count] for one in (self.scored, self.lengths))
        return Text(self.rows[:count], self.ignored, *rest)

    def part(self, start: int, count: int) -> tuple[Text, int]:
        """So many rows from a place on, filled up with the last one; and how many of them are the text's own."""
        places = np.minimum(np.arange(start, start + count), len(self.rows) - 1)
        own = min(count, len(self.rows) - start)
        rest = (None if one is None else one[places] for one in (self.scored, self.lengths))
        return Text(self.rows[places], self.ignored, *rest), own


class Losses(NamedTuple):
    """Mean negative log-probability of each row, float64: [R] of the model without the removed blocks, and [C,R] of the
    candidates, which lack their own blocks besides."""

    base: np.ndarray
    candidates: np.ndarray


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of the rows' mean losses, float[R]."""
    return float(np.exp(losses.mean()))


def score(
    params: Params, config: ModelConfig, text: Text, removed: Collection[Block],
    candidates: Sequence[frozenset[Block]], how: How = How(),
) -> Losses:  # fmt: skip
    """What a model without `removed` loses on the text, and what it loses without each candidate's blocks besides.

    Args:
      candidates: the blocks of one layer each.

    Raises:
      InputError: a row of which no label is scored.
    """
    found = np.zeros((1 + len(candidates), len(text.rows)))
    rows = padded_rows(how.rows, data_ways(how.compute.mesh))
    for start in range(0, len(text.rows), rows):
        some, own = text.part(start, rows)
        walk = _Walk(params, config, frozenset(removed), how, placed(some.rows, how.compute.mesh, ("batch", "tokens")))
        order, losses = walk.all(candidates, _labels(some, start, how.compute.mesh))
        found[order, start : start + own] = losses[:, :own]
    return Losses(found[0], found[1:])


def _labels(text: Text, start: int, mesh: Mesh | None) -> tuple[Array, Array]:
    """The token that follows each, and which of them count; both [R,T], the last column counts nothing."""
    labels = np.roll(text.rows, -1, 1)
    ends = text.rows.shape[1] if text.lengths is None else text.lengths[:, None]
    counted = np.broadcast_to(np.arange(labels.shape[1]) < ends - 1, labels.shape).copy()
    if text.ignored is not None:
        counted &= labels != text.ignored
    if text.scored is not None:
        counted &= np.roll(text.scored, -1, 1)
    if not counted.any(1).all():
        row = start + int(np.argmin(counted.any(1))) + 1
        cure = "Leave the row out, or choose another token for padding"
        raise InputError("no token of it is scored", record=row, field="calibration", cure=cure)
    return placed(labels, mesh, ("batch", "tokens")), placed(counted, mesh, ("batch", "tokens"))


@dataclass(frozen=True)
class _Walk:
    """One micro-batch of rows on its way through the layers."""

    params: Params
    config: ModelConfig
    removed: frozenset[Block]
    how: How
    tokens: Array

    def all(self, candidates: Sequence[frozenset[Block]], labels: tuple[Array, Array]) -> tuple[list[int], np.ndarray]:
        """The states that there are at the end, by their numbers (0 the base, then the candidates), and their losses
        float64[states,R]."""
        compute, config = self.how.compute, self.config
        width = min(self.how.states, 1 + len(candidates))
        chunks = [_chunk(_embed(compute)(config, self.params, self.tokens), width, compute.mesh)]
        order = [0]
        for number, layer in enumerate(layers_of(config)):
            alive = frozenset(part for part in PARTS if Block(part, number) not in self.removed)
            base, own = chunks[0][:, 0], []
            for place, blocks in enumerate(candidates, 1):
                if any(block.layer == number for block in blocks):
                    order.append(place)
                    own.append(self.through(layer, alive - {block.part for block in blocks}, base[:, None])[:, 0])
            if alive:
                chunks = [self.through(layer, alive, chunk) for chunk in chunks]
            for place, state in enumerate(own, len(order) - len(own)):
                chunks = _appended(chunks, state, place, width, compute.mesh)
        losses = [loss_step(compute)(config, self.params, chunk, *labels) for chunk in chunks]
        return order, np.concatenate([np.asarray(one, np.float64) for one in losses], 1).T[: len(order)]

    def through(self, layer: Layer, parts: frozenset[Part], states: Array) -> Array:
        """States [R,S,T,D] behind the parts of a layer."""
        if not parts:
            return states
        self.how.count(parts, states.shape[1])
        stack = without(layer.stack, frozenset(PARTS) - parts)
        program = layer_step(self.how.compute)
        return program(self.config, stack, self.params[layer.name], layer.place, self.params, states)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _chunk(state: Array, width: int, mesh: Mesh | None) -> Array:
    """[R,states,T,D], the first of them this state."""
    empty = jnp.zeros((state.shape[0], width, *state.shape[1:]), state.dtype)
    return constrain(empty.at[:, 0].set(state), mesh, STATES)


def _appended(chunks: list[Array], state: Array, place: int, width: int, mesh: Mesh | None) -> list[Array]:
    chunk, slot = divmod(place, width)
    if chunk == len(chunks):
        return [*chunks, _chunk(state, width, mesh)]
    return [*chunks[:chunk], _put(chunks[chunk], state, slot, mesh), *chunks[chunk + 1 :]]


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _put(chunk: Array, state: Array, slot: Array, mesh: Mesh | None) -> Array:
    return constrain(chunk.at[:, slot].set(state), mesh, STATES)


@functools.cache
def _embed(compute: Compute) -> Callable[..., Array]:
    """(config, params, tokens) -> [R,T,D]."""

    def embed(config: ModelConfig, params: Params, tokens: Array) -> Array:
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        x = embedded(params, config, "decoder", tokens, places, None, compute.dtype)
        return constrain(x, compute.mesh, ("batch", "tokens", None))

    return compute.jit(embed, static_argnums=0)


@functools.cache
def layer_step(compute: Compute) -> Callable[..., Array]:
    """(config, stack, its layers' parameters, which of them, all parameters, states [R,S,T,D]) -> states."""

    def layer(config: ModelConfig, stack: Stack, layers: Params, place: Array, params: Params, states: Array) -> Array:
        weights, inputs = jax.tree.map(lambda x: x[place], (layers, layer_inputs(stack)))
        x = constrain(states.reshape(-1, *states.shape[2:]), compute.mesh, ("batch", "tokens", None))
        places = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        rows = Rows(tables_of(config, stack, places), Visible(places), buckets=buckets_of(params, "decoder"))
        block = BlockModule(config, stack, compute.mesh, compute.dtype, compute.kernel)
        y, _ = block.apply({"params": weights}, x, inputs, Held(), rows)
        return constrain(y.reshape(states.shape), compute.mesh, STATES)

    return compute.jit(layer, static_argnums=(0, 1))


@functools.cache
def loss_step(compute: Compute) -> Callable[..., Array]:
    """(config, params, states, labels, which count) -> float[R,S], each row's mean loss; the same on every host."""

    def losses(config: ModelConfig, params: Params, states: Array, labels: Array, counted: Array) -> Array:
        tables = {name: params[name] for name in tables_beside(config, "decoder")}
        hidden = finally_normed(tables, config, "decoder", states, compute.dtype)
        logprobs, _ = linear_logprobs(
            hidden, head_kernel(params, config), jnp.broadcast_to(labels[:, None], states.shape[:3]),
            soft_cap=config.head.soft_cap, vocab_shards=tensor_shards(compute.mesh),
            row_shards=data_ways(compute.mesh), elements=compute.logits,
        )  # fmt: skip
        return -jnp.where(counted[:, None], logprobs, 0.0).sum(-1) / counted.sum(-1)[:, None]

    everywhere = None if compute.mesh is None else named(compute.mesh, (None, None))
    return compute.jit(losses, static_argnums=0, out_shardings=everywhere)


def states_of(
    params: Params, config: ModelConfig, tokens: np.ndarray, how: How = How()
) -> Iterator[tuple[Block, Array, Array]]:
    """Every block of a whole model with the residual stream [R,T,D] of these rows before and behind it, in order."""
    compute = how.compute
    walk = _Walk(params, config, frozenset(), how, placed(tokens, compute.mesh, ("batch", "tokens")))
    x = _embed(compute)(config, params, walk.tokens)
    for number, layer in enumerate(layers_of(config)):
        between, after = (walk.through(layer, frozenset(parts), x[:, None])[:, 0] for parts in (PARTS[:1], PARTS))
        yield Block("attention", number), x, between
        yield Block("mlp", number), between, after
        x = after
