"""Tokens that are written one by one behind texts which were read: greedy or sampled, several continuations of each.

What a row writes lies in a block of few tokens and, where more is asked for, behind it in a cache that a full block is
moved to: only the block is written at every token. A token depends on what is before it and on the row's own random key
and count of tokens, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.models.decode import Behind, DecodeParams, Kept, next_logits, nothing_kept, read_on
from fusion_jax.sampling.prompts import How, Read, Ready, compiled_for
from fusion_jax.sampling.samplers import GREEDY, Sampler, choose, penalised
from fusion_jax.sampling.session import Session, Taken, on_host, roomier, tokens_kept, written
from fusion_jax.sharding import constrain

Array = jax.Array


class Writing(NamedTuple):
    """How drafts are written, compiled in. samples: rows of each text. tokens: the most that a row may write. block:
    tokens between two moves to the cache. traced: whether the states and log-probabilities of all tokens are kept."""

    tokens: int
    sampler: Sampler = GREEDY
    samples: int = 1
    block: int = 16
    traced: bool = False


class Rules(NamedTuple):
    """What may be written and what ends it, for R rows. keys: uint32[R,2], random; stop_ids: int[k]; limit: tokens of a
    row, at most `Writing.tokens`.

    allowed: bool[V], tokens that may be chosen; None: all. pauses: bool[V], tokens that end a row for now where they
    are not its first; None: none.
    """

    keys: Array
    stop_ids: Array
    limit: Array | np.int32
    allowed: Array | None = None
    pauses: Array | None = None


class Trace(NamedTuple):
    """after: [R,N,D], the hidden state behind each token; logprobs: float32[R,N], of each token and of the stop token
    behind the last, under the model's own softmax."""

    after: Array
    logprobs: Array


class Draft(NamedTuple):
    """R rows as they grow; row r continues text r // samples.

    ids: int[R,N], counts: int[R] tokens of which are written, all but the last read again. ended: bool[R], by a stop
    token, which stands behind them; paused: for now, or because `limit` is reached. logprobs: float32[R], sums over all
    tokens and the stop token. block, cache: per layer, arrays [R,...,block,last] and [R,...,room,last].
    seen: bool[R,V], tokens of each row and its text, where the sampler asks for them.
    """

    ids: Array
    counts: Array
    ended: Array
    paused: Array
    logprobs: Array
    block: tuple[Kept, ...]
    cache: tuple[Kept, ...] | None = None
    trace: Trace | None = None
    seen: Array | None = None

    @property
    def open(self) -> Array:
        """bool[R], rows that go on."""
        return ~(self.ended | self.paused)


@compiled_for
def empty_draft(how: How, writing: Writing, texts: int, room: int) -> Draft:
    """A draft of as many texts of which nothing is written nor will be; room: tokens of the cache, 0 for none."""
    config, rows = how.config, texts * writing.samples
    zeros = constrain(jnp.zeros(rows, jnp.int32), how.mesh, ("batch",))
    ids = constrain(jnp.zeros((rows, writing.tokens), jnp.int32), how.mesh, ("batch", None))
    trace = None
    if writing.traced:
        after = jnp.zeros((rows, writing.tokens, config.width), how.dtype)
        trace = Trace(after, jnp.zeros((rows, writing.tokens + 1), jnp.float32))
    return Draft(
        ids, zeros, zeros > 0, zeros == 0, zeros.astype(jnp.float32),
        nothing_kept(config, rows, writing.block, how.dtype, how.mesh),
        nothing_kept(config, rows, room, how.dtype, how.mesh) if room else None, trace,
        jnp.zeros((rows, config.vocab_size), bool) if writing.sampler.penalises else None,
    )  # fmt: skip


@compiled_for
def with_room(how: How, room: int, draft: Draft) -> Draft:
    """The draft with room for so many tokens in its cache, which open rows do not exceed."""
    return draft._replace(cache=jax.tree.map(partial(roomier, tokens=room), draft.cache))


@partial(compiled_for, donate="draft")
def begin(
    how: How, writing: Writing, params: DecodeParams, texts: Read, rules: Rules, draft: Draft, some: Array,
    seen: Array | None = None, forced: Array | None = None,
) -> Draft:  # fmt: skip
    """The first token of the rows of some of the C texts, bool[C], chosen from the texts' last hidden states.

    Args:
      seen: bool[C,V], tokens of each text. forced: int[R], what the first token is; -1: what is chosen.
    """
    new, paused = jnp.repeat(some, writing.samples), draft.paused
    draft = draft._replace(
        counts=jnp.where(new, 0, draft.counts), ended=draft.ended & ~new, paused=~new,
        logprobs=jnp.where(new, 0.0, draft.logprobs),
    )
    if seen is not None and draft.seen is not None:
        draft = draft._replace(seen=jnp.where(new[:, None], jnp.repeat(seen, writing.samples, 0), draft.seen))
    logits = constrain(next_logits(texts.last, params.rest, how.config), how.mesh, ("batch", "vocab"))
    draft = _choose_next(writing, rules, draft, jnp.repeat(logits, writing.samples, 0), forced)
    return draft._replace(paused=jnp.where(new, draft.paused, paused))


@partial(compiled_for, donate="draft")
def go_on(
    how: How, writing: Writing, params: DecodeParams, texts: Read, rules: Rules, draft: Draft, blocks: Array,
    vacant: Array,
) -> Draft:  # fmt: skip
    """More tokens of every open row: until all are closed, or the cache is full, or so many blocks are, or, at the end
    of a block, all rows of `vacant` texts are closed.

    With a cache the open rows stand at the same place of their blocks: texts begin when others have filled theirs.
    """
    draft = draft._replace(paused=draft.paused | (draft.counts >= rules.limit))
    room = writing.block if draft.cache is None else tokens_kept(draft.cache)

    def goes_on(draft: Draft) -> Array:
        fits = jnp.where(draft.open, _in_cache(writing, draft), 0).max() + writing.block <= room
        closed = ~draft.open.reshape(-1, writing.samples).any(1)
        return draft.open.any() & fits & (closed.sum() < vacant)

    def more(state: tuple[Array, Array, Draft]) -> Array:  # a plan reads from the constant how often loops run at most
        return state[1] & (state[0] < jnp.minimum(blocks, room // writing.block))

    def fill(state: tuple[Array, Array, Draft]) -> tuple[Array, Array, Draft]:
        number, _, draft = state
        start = _in_cache(writing, draft)
        size = jnp.where(draft.open, writing.block - (_read_before(draft) - start), 0).max()
        step = partial(_step, how, writing, params, texts, rules)

        def unfilled(now: tuple[Array, Draft]) -> Array:
            return (now[0] < jnp.minimum(size, writing.block)) & now[1].open.any()

        _, draft = lax.while_loop(unfilled, lambda now: (now[0] + 1, step(now[1])), (jnp.int32(0), draft))
        draft = draft if draft.cache is None else draft._replace(cache=_moved(draft, start))
        return number + 1, goes_on(draft), draft

    return lax.while_loop(more, fill, (jnp.int32(0), goes_on(draft), draft))[2]


def _read_before(draft: Draft) -> Array:
    """int[R], how many tokens of each row were read before its last one."""
    return jnp.maximum(draft.counts - 1, 0)


def _in_cache(writing: Writing, draft: Draft) -> Array:
    """int[R], how many of them lie in the cache."""
    return _read_before(draft) // writing.block * writing.block


def _moved(draft: Draft, start: Array) -> tuple[Kept, ...]:
    """The cache with the blocks written from the places `start`, int[R], on."""

    def put(cache: Array, block: Array, at: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(cache, block, at, cache.ndim - 2)

    return jax.tree.map(lambda cache, block: jax.vmap(put)(cache, block, start), draft.cache, draft.block)


def _step(how: How, writing: Writing, params: DecodeParams, texts: Read, rules: Rules, draft: Draft) -> Draft:
    """The last token of every row read, and the next one chosen."""
    rows, before = jnp.arange(draft.ids.shape[0]), _read_before(draft)
    in_cache, starts = _in_cache(writing, draft), jnp.repeat(texts.lengths, writing.samples)
    entries, size = texts.lengths.shape[0], tokens_kept(texts.kept)
    behind = [Behind(texts.kept, jnp.broadcast_to(jnp.arange(size), (entries, size)), texts.lengths)]
    if draft.cache is not None:
        behind.append(Behind(draft.cache, starts[:, None] + jnp.arange(tokens_kept(draft.cache)), in_cache))
    behind.append(Behind(draft.block, (starts + in_cache)[:, None] + jnp.arange(writing.block), before - in_cache))
    hidden, new = read_on(
        params, how.config, draft.ids[rows, before][:, None], (starts + before)[:, None], tuple(behind),
        encoder=texts.encoder, mesh=how.mesh, dtype=how.dtype,
    )  # fmt: skip
    here = jnp.arange(writing.block) == (before - in_cache)[:, None]

    def put(block: Array, token: Array) -> Array:
        return jnp.where(here.reshape(-1, *(1,) * (block.ndim - 3), writing.block, 1), token, block)

    draft = draft._replace(block=jax.tree.map(put, draft.block, new))
    if draft.trace is not None:
        place = (jnp.arange(writing.tokens) == before[:, None]) & draft.open[:, None]
        after = jnp.where(place[..., None], hidden, draft.trace.after)
        draft = draft._replace(trace=draft.trace._replace(after=after))
    logits = constrain(next_logits(hidden[:, 0], params.rest, how.config), how.mesh, ("batch", "vocab"))
    return _choose_next(writing, rules, draft, logits)


def _choose_next(writing: Writing, rules: Rules, draft: Draft, logits: Array, forced: Array | None = None) -> Draft:
    """One more token of every open row, from logits [R,V]."""
    keys = jax.vmap(jax.random.fold_in)(rules.keys, draft.counts)
    open_, sampler = draft.open, writing.sampler
    offered = logits if draft.seen is None else penalised(logits, draft.seen, sampler.repetition_penalty)
    offered = offered if rules.allowed is None else jnp.where(rules.allowed, offered, -jnp.inf)
    token = choose(offered, keys, sampler)
    token = token if forced is None else jnp.where(forced >= 0, forced, token)
    logprobs = jnp.take_along_axis(logits, token[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, -1)
    stopped = open_ & (token[:, None] == rules.stop_ids).any(-1)
    taken = open_ & ~stopped
    counts = draft.counts + taken
    paused = open_ & (counts >= rules.limit)
    if rules.pauses is not None:
        paused |= taken & (counts > 1) & rules.pauses[token]
    rows, trace, seen = jnp.arange(token.shape[0]), draft.trace, draft.seen
    if trace is not None:
        here = (jnp.arange(writing.tokens + 1) == draft.counts[:, None]) & open_[:, None]
        trace = trace._replace(logprobs=jnp.where(here, logprobs[:, None], trace.logprobs))
    place = (jnp.arange(writing.tokens) == draft.counts[:, None]) & open_[:, None]
    return draft._replace(
        ids=jnp.where(place, token[:, None], draft.ids),
        counts=counts, ended=draft.ended | stopped, paused=draft.paused | paused & ~stopped,
        logprobs=draft.logprobs + jnp.where(open_, logprobs, 0), trace=trace,
        seen=None if seen is None else seen.at[rows, token].max(open_),
    )  # fmt: skip


def commit_draft(model: Ready, session: Session, draft: Draft, counts: Sequence[int]) -> Session:
    """The session with the first so many tokens of each row of a traced draft of one row a text, no forward pass; of
    each row all but the last token of the draft can be taken, and that too where a stop token follows."""
    assert draft.trace is not None
    if not any(counts):
        return session
    ids, rows = on_host(draft.ids, model.how.mesh), session.read.lengths.shape[0]
    first, at, count = (np.zeros(rows, np.int32) for _ in range(3))
    at[: len(session.texts)], count[: len(counts)] = [len(text) for text in session.texts], counts
    where = Taken(first, at, count, count - 1)
    texts = [(*text, *ids[row, : counts[row]].tolist()) for row, text in enumerate(session.texts)]
    return Session(tuple(texts), written(model, session.read, draft.block, draft.trace.after, where))
