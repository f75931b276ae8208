"""What the calibration text loses by each candidate, all candidates of a step in one walk through the layers.

A candidate without a block of layer l has the whole model's states up to layer l. So one state, the base, walks through
the layers; before each layer the candidates of that layer branch off from it, and every state that has branched off
walks on beside it. Nothing before a candidate's block is computed twice, each layer's weights are read once for all
states, and the numbers are those of candidates that are computed alone. Which blocks are gone is known to the host
alone: there is one program for each set of parts that a layer has (three) and the head, however many layers and steps
there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.models.attention import Held
from fusion_jax.models.blocks import Block as BlockModule
from fusion_jax.models.blocks import Rows, layer_inputs, tables_of
from fusion_jax.models.config import ModelConfig, Part, Stack
from fusion_jax.models.decoder import Params, buckets_of, finally_normed, head_kernel, tables_beside
from fusion_jax.models.layers import embedded
from fusion_jax.ops.kernels import Kernel, Visible
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.prune.blocks import PARTS, Block, Layer, layers_of, without
from fusion_jax.sharding import constrain, data_ways, tensor_shards

Array = jax.Array


@dataclass(frozen=True)
class How:
    """How states are computed. rows: of the text at once; states: at once, each of so many rows.

    count: told the parts that each block call computes and for how many states, for tests of what a search costs.
    """

    mesh: Mesh | None = None
    dtype: Any = jnp.float32
    kernel: Kernel = "xla"
    rows: int = 8
    states: int = 4
    count: Callable[[frozenset[Part], int], None] = lambda parts, states: None


class Text(NamedTuple):
    """Calibration rows int32[R,T]. Labels that equal `ignored` are not scored, nor tokens that `scored`, bool[R,T],
    leaves out; None: all are."""

    rows: np.ndarray
    ignored: int | None = None
    scored: np.ndarray | None = None


class Losses(NamedTuple):
    """Mean negative log-probability of each row, float64: [R] of the model without the removed blocks, and [C,R] of the
    candidates, which lack their own blocks besides."""

    base: np.ndarray
    candidates: np.ndarray


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean over the rows of each row's mean loss; [R] or the mean over all."""
    return float(np.exp(losses.mean()))


def score(
    params: Params, config: ModelConfig, text: Text, removed: Collection[Block],
    candidates: Sequence[frozenset[Block]], how: How = How(),
) -> Losses:  # fmt: skip
    """What a model without `removed` loses on the text, and what it loses without each candidate's blocks besides.

    Args:
      candidates: the blocks of one layer each.
    """
    states = 1 + len(candidates)
    found = np.zeros((states, len(text.rows)))
    for start in range(0, len(text.rows), how.rows):
        some = _rows_of(text, start, how.rows)
        walk = _Walk(params, config, frozenset(removed), how, jnp.asarray(some.rows))
        order, losses = walk.all(candidates, _labels(some))
        size = len(text.rows[start : start + how.rows])
        found[order, start : start + size] = losses[:, :size]
    return Losses(found[0], found[1:])


def _rows_of(text: Text, start: int, count: int) -> Text:
    """So many rows from a place on, filled up with the last one."""
    places = np.minimum(np.arange(start, start + count), len(text.rows) - 1)
    return Text(text.rows[places], text.ignored, None if text.scored is None else text.scored[places])


def _labels(text: Text) -> tuple[Array, Array]:
    """The token that follows each, and which of them count; both [R,T], the last column counts nothing."""
    labels = np.roll(text.rows, -1, 1)
    counted = np.broadcast_to(np.arange(labels.shape[1]) < labels.shape[1] - 1, labels.shape).copy()
    if text.ignored is not None:
        counted &= labels != text.ignored
    if text.scored is not None:
        counted &= np.roll(text.scored, -1, 1)
    return jnp.asarray(labels), jnp.asarray(counted)


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
        how = _static(self.how)
        chunks = [self._chunk(_embedded(how, self.config, self.params, self.tokens))]
        order = [0]
        for number, layer in enumerate(layers_of(self.config)):
            alive = frozenset(part for part in PARTS if Block(part, number) not in self.removed)
            base, own = chunks[0][0], []
            for place, blocks in enumerate(candidates, 1):
                if any(block.layer == number for block in blocks):
                    order.append(place)
                    own.append(self._through(layer, alive - {block.part for block in blocks}, base[None])[0])
            if alive:
                chunks = [self._through(layer, alive, chunk) for chunk in chunks]
            for place, state in enumerate(own, len(order) - len(own)):
                chunks = self._appended(chunks, state, place)
        losses = [_losses(how, self.config, self.params, chunk, *labels) for chunk in chunks]
        return order, np.concatenate([np.asarray(one, np.float64) for one in losses])[: len(order)]

    def _chunk(self, state: Array) -> Array:
        """[states,R,T,D], the first of them this state."""
        return jnp.zeros((self.how.states, *state.shape), state.dtype).at[0].set(state)

    def _appended(self, chunks: list[Array], state: Array, place: int) -> list[Array]:
        chunk, slot = divmod(place, self.how.states)
        if chunk == len(chunks):
            return [*chunks, self._chunk(state)]
        return [*chunks[:chunk], _put(chunks[chunk], state, slot), *chunks[chunk + 1 :]]

    def _through(self, layer: Layer, parts: frozenset[Part], states: Array) -> Array:
        """States [S,R,T,D] behind the parts of a layer."""
        if not parts:
            return states
        self.how.count(parts, len(states))
        stack = without(layer.stack, frozenset(PARTS) - parts)
        return _layer(_static(self.how), self.config, stack, self.params[layer.name], layer.place, self.params, states)


class _Static(NamedTuple):
    """What is compiled in."""

    mesh: Mesh | None
    dtype: Any
    kernel: Kernel


def _static(how: How) -> _Static:
    return _Static(how.mesh, jnp.dtype(how.dtype), how.kernel)


_compiled = functools.partial(jax.jit, static_argnums=(0, 1))


@_compiled
def _embedded(how: _Static, config: ModelConfig, params: Params, tokens: Array) -> Array:
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x = embedded(params, config, "decoder", tokens, places, None, how.dtype)
    return constrain(x, how.mesh, ("batch", "tokens", None))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _layer(
    how: _Static, config: ModelConfig, stack: Stack, layers: Params, index: Array, params: Params, states: Array
) -> Array:
    weights, inputs = jax.tree.map(lambda x: x[index], (layers, layer_inputs(stack)))
    x = states.reshape(-1, *states.shape[2:])
    x = constrain(x, how.mesh, ("batch", "tokens", None))
    places = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    rows = Rows(tables_of(config, stack, places), Visible(places), buckets=buckets_of(params, "decoder"))
    block = BlockModule(config, stack, how.mesh, how.dtype, how.kernel)
    y, _ = block.apply({"params": weights}, x, inputs, Held(), rows)
    return y.reshape(states.shape)


@_compiled
def _losses(how: _Static, config: ModelConfig, params: Params, states: Array, labels: Array, counted: Array) -> Array:
    """float[S,R], each row's mean loss over the labels that count."""
    tables = {name: params[name] for name in tables_beside(config, "decoder")}
    hidden = finally_normed(tables, config, "decoder", states, how.dtype)
    logprobs, _ = linear_logprobs(
        hidden, head_kernel(params, config), jnp.broadcast_to(labels, states.shape[:3]), soft_cap=config.head.soft_cap,
        vocab_shards=tensor_shards(how.mesh), row_shards=data_ways(how.mesh),
    )  # fmt: skip
    return -jnp.where(counted, logprobs, 0.0).sum(-1) / counted.sum(-1)


@functools.partial(jax.jit, donate_argnums=0)
def _put(chunk: Array, state: Array, slot: int) -> Array:
    return chunk.at[slot].set(state)


def states_of(
    params: Params, config: ModelConfig, tokens: np.ndarray, how: How = How()
) -> Iterator[tuple[Block, Array, Array]]:
    """Every block of a whole model with the residual stream [R,T,D] before and behind it, in order."""
    walk = _Walk(params, config, frozenset(), how, jnp.asarray(tokens))
    x = _embedded(_static(how), config, params, walk.tokens)
    for number, layer in enumerate(layers_of(config)):
        between, after = (walk._through(layer, frozenset(parts), x[None])[0] for parts in (PARTS[:1], PARTS))
        yield Block("attention", number), x, between
        yield Block("mlp", number), between, after
        x = after
