"""Beam search behind texts that were read, on the device: N unfinished hypotheses of each text grow side by side, and
the N best finished ones are kept.

    score = (sum of log p of the tokens, the stop token included) / (number of those tokens) ** length_penalty

Hypotheses branch, so that one's tokens were written by others before it. What attention keeps of them stays where it
was written: each hypothesis knows which beam wrote each of its tokens, and sees those of all its text's entries. So
nothing is moved or copied when beams change places, the text itself is kept once for all of them, and the entries of a
text are read once for all its queries. What it costs is that every query is compared with the entries of all N beams.

Which hypotheses go on and which are kept is decided as in `transformers` (`generate(num_beams=N)`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.models.decode import Behind, DecodeParams, Kept, next_logits, nothing_kept, read_on
from fusion_jax.ops.topk import largest
from fusion_jax.sampling.prompts import How, Read, compiled_for
from fusion_jax.sampling.session import roomier, tokens_kept
from fusion_jax.sharding import constrain

Array = jax.Array


class Searching(NamedTuple):
    """How beams grow, compiled in. beams: N. tokens: W, the most that a hypothesis may have. block: tokens between two
    moves to the cache. no_repeat: n of the n-grams that occur once in a text and its continuation; 0: no limit."""

    beams: int
    tokens: int
    block: int = 16
    no_repeat: int = 0


class Rules(NamedTuple):
    """What may be written, what ends it and how it is scored.

    stop_ids: int[k]. limit: tokens of a hypothesis, at most W. divisors: float32[W+1], what the sum of a finished
    hypothesis of n tokens is divided by. bounds: the same for the best that an unfinished one of n tokens may become.
    early: whether a text is done as soon as N hypotheses are finished. allowed: bool[V], tokens that may be chosen;
    None: all. prompts: int[C,P], the decoder's tokens of the texts, where n-grams are looked for in them.
    """

    stop_ids: Array
    limit: Array | np.int32
    divisors: Array
    bounds: Array
    early: Array
    allowed: Array | None = None
    prompts: Array | None = None


class Found(NamedTuple):
    """The N best finished hypotheses of each text, best first.

    ids: int[C,N,W], counts: int[C,N] tokens of which exist, a stop token not among them. ended: bool[C,N], by a stop
    token, not by the limit. logprobs: float32[C,N], sums; scores: float32[C,N], -inf where there is none.
    """

    ids: Array
    counts: Array
    ended: Array
    logprobs: Array
    scores: Array


class Beams(NamedTuple):
    """C texts and their N unfinished hypotheses, best first.

    ids: int[C,N,W], counts: int[C] tokens of which are written, all but the last read again. logprobs: float32[C,N],
    sums, -inf where there is none. writers: int[C,N,W], which beam wrote each token that was read again. open: bool[C],
    texts that go on. block, cache: per layer, arrays [C,...,block*N,last] and [C,...,room*N,last], a token of all beams
    behind the other.
    """

    ids: Array
    counts: Array
    logprobs: Array
    writers: Array
    open: Array
    found: Found
    block: tuple[Kept, ...]
    cache: tuple[Kept, ...] | None = None


@compiled_for
def no_beams(how: How, search: Searching, texts: int, room: int) -> Beams:
    """Beams of as many texts of which nothing is written nor will be; room: tokens of the cache, 0 for none."""
    many = (texts, search.beams)

    def of(shape: tuple[int, ...], dtype: Any) -> Array:
        return constrain(jnp.zeros(shape, dtype), how.mesh, ("batch", *(None,) * (len(shape) - 1)))

    def kept(tokens: int) -> tuple[Kept, ...]:
        return nothing_kept(how.config, texts, tokens * search.beams, how.dtype, how.mesh)

    ids, none = of((*many, search.tokens), jnp.int32), of(many, jnp.float32)
    found = Found(ids, of(many, jnp.int32), of(many, bool), none, none - jnp.inf)
    return Beams(
        ids, of((texts,), jnp.int32), none, ids, of((texts,), bool), found, kept(search.block),
        kept(room) if room else None,
    )  # fmt: skip


@compiled_for
def with_room(how: How, search: Searching, room: int, beams: Beams) -> Beams:
    """Beams with room for so many tokens in their cache, which open texts do not exceed."""
    return beams._replace(cache=jax.tree.map(partial(roomier, tokens=room * search.beams), beams.cache))


def room_of(search: Searching, beams: Beams) -> int:
    """How many tokens a hypothesis may have before the cache has to grow."""
    if beams.cache is None:
        return search.block
    return next((one.shape[-2] // search.beams for one in jax.tree.leaves(beams.cache)), search.tokens)


@partial(compiled_for, donate="beams")
def begin(
    how: How, search: Searching, params: DecodeParams, texts: Read, rules: Rules, beams: Beams, some: Array
) -> Beams:
    """The first tokens behind some of the C texts, bool[C], chosen from the texts' last hidden states."""
    first = jnp.where(jnp.arange(search.beams) == 0, 0.0, -jnp.inf)  # equal beams would take the same tokens
    beams = beams._replace(
        counts=jnp.where(some, 0, beams.counts), open=beams.open | some,
        logprobs=jnp.where(some[:, None], first, beams.logprobs),
        found=beams.found._replace(scores=jnp.where(some[:, None], -jnp.inf, beams.found.scores)),
    )  # fmt: skip
    logits = constrain(next_logits(texts.last, params.rest, how.config), how.mesh, ("batch", "vocab"))
    return _chosen(search, rules, texts, beams, jnp.repeat(logits, search.beams, 0), some)


@partial(compiled_for, donate="beams")
def go_on(
    how: How, search: Searching, params: DecodeParams, texts: Read, rules: Rules, beams: Beams, vacant: Array
) -> Beams:
    """More tokens of all open texts: until all are closed, or the cache is full, or, at the end of a block, `vacant` of
    them are closed.

    Open texts stand at the same place of their blocks: texts begin when others have filled theirs.
    """
    room = room_of(search, beams)

    def goes_on(beams: Beams) -> Array:
        fits = jnp.where(beams.open, _in_cache(search, beams), 0).max() + search.block <= room
        return beams.open.any() & fits & ((~beams.open).sum() < vacant)

    def more(state: tuple[Array, Array, Beams]) -> Array:  # a plan reads from the constant how often loops run at most
        return state[1] & (state[0] < room // search.block)

    def fill(state: tuple[Array, Array, Beams]) -> tuple[Array, Array, Beams]:
        number, _, beams = state
        start = _in_cache(search, beams)
        step = partial(_step, how, search, params, texts, rules)

        def unfilled(now: tuple[Array, Beams]) -> Array:
            return (now[0] < search.block) & now[1].open.any()

        _, beams = lax.while_loop(unfilled, lambda now: (now[0] + 1, step(now[0], now[1])), (jnp.int32(0), beams))
        if beams.cache is not None:
            beams = beams._replace(cache=_moved(search, beams, start))
        return number + 1, goes_on(beams), beams

    return lax.while_loop(more, fill, (jnp.int32(0), goes_on(beams), beams))[2]


def _in_cache(search: Searching, beams: Beams) -> Array:
    """int[C], how many of the tokens that were read again lie in the cache."""
    return jnp.maximum(beams.counts - 1, 0) // search.block * search.block


def _moved(search: Searching, beams: Beams, start: Array) -> tuple[Kept, ...]:
    """The cache with the blocks written from the places `start`, int[C], on."""

    def put(cache: Array, block: Array, at: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(cache, block, at * search.beams, cache.ndim - 2)

    return jax.tree.map(lambda cache, block: jax.vmap(put)(cache, block, start), beams.cache, beams.block)


def _step(
    how: How, search: Searching, params: DecodeParams, texts: Read, rules: Rules, place: Array, beams: Beams
) -> Beams:
    """The last token of every hypothesis read, at `place` of the block, and the next ones chosen."""
    count, many = beams.logprobs.shape
    before, in_cache = jnp.maximum(beams.counts - 1, 0), _in_cache(search, beams)
    tokens = jnp.take_along_axis(beams.ids, before[:, None, None], 2).reshape(-1, 1)
    positions = jnp.repeat(texts.lengths + before, many)[:, None]
    size = tokens_kept(texts.kept)
    behind = [Behind(texts.kept, jnp.broadcast_to(jnp.arange(size), (count, size)), texts.lengths)]
    if beams.cache is not None:
        room, first = room_of(search, beams), jnp.zeros_like(before)
        behind.append(_written(beams, beams.cache, texts.lengths, first, in_cache, room))
    behind.append(_written(beams, beams.block, texts.lengths, in_cache, before - in_cache, search.block))
    hidden, new = read_on(
        params, how.config, tokens, positions, tuple(behind), encoder=texts.encoder, mesh=how.mesh, dtype=how.dtype
    )

    def put(block: Array, token: Array) -> Array:
        token = jnp.moveaxis(token[..., 0, :].reshape(count, many, *token.shape[1:-2], token.shape[-1]), 1, -2)
        return lax.dynamic_update_slice_in_dim(block, token, place * many, block.ndim - 2)

    beams = beams._replace(block=jax.tree.map(put, beams.block, new))
    logits = constrain(next_logits(hidden[:, 0], params.rest, how.config), how.mesh, ("batch", "vocab"))
    return _chosen(search, rules, texts, beams, logits, beams.open)


def _written(beams: Beams, kept: tuple[Kept, ...], starts: Array, first: Array, size: Array, room: int) -> Behind:
    """Entries of tokens first, ..., first + size - 1 (int[C] both) of all beams, of which a hypothesis sees its own."""
    count, many = beams.logprobs.shape
    here = jnp.arange(room)
    places = jnp.minimum(first[:, None] + here, beams.writers.shape[2] - 1)
    writers = jnp.take_along_axis(beams.writers, places[:, None], 2)[..., None]  # [C,N,room,1]
    seen = (writers == jnp.arange(many)) & (here < size[:, None])[:, None, :, None]
    positions = jnp.repeat(starts[:, None] + first[:, None] + here, many, 1)
    return Behind(kept, positions, size * many, seen.reshape(count * many, room * many))


def _chosen(search: Searching, rules: Rules, texts: Read, beams: Beams, logits: Array, active: Array) -> Beams:
    """One more token of the hypotheses of `active` texts, bool[C], from logits [C*N,V]."""
    sums, sources, tokens = _candidates(search, rules, texts, beams, logits)
    many, counts = search.beams, beams.counts + 1
    stops = (tokens[..., None] == rules.stop_ids).any(-1)
    hits = stops | (counts >= rules.limit)[:, None]
    ids = _with_token(beams, sources[:, :many], tokens[:, :many])  # only the N most probable ones are ever finished
    finished = Found(
        ids, counts[:, None] - stops[:, :many], stops[:, :many], sums[:, :many],
        jnp.where(hits[:, :many], sums[:, :many] / rules.divisors[counts][:, None], -jnp.inf),
    )  # fmt: skip
    found = _best(beams.found, finished)
    logprobs, best = lax.top_k(jnp.where(hits, -jnp.inf, sums), many)
    sources, tokens = (jnp.take_along_axis(x, best, 1) for x in (sources, tokens))
    own = jnp.arange(search.tokens) == (beams.counts - 1)[:, None]  # what was read now, each beam wrote itself
    writers = jnp.where(own[:, None], jnp.arange(many)[:, None], beams.writers)
    improves = logprobs[:, 0] / rules.bounds[counts] > found.scores[:, -1]
    full = found.scores[:, -1] > -jnp.inf
    new = beams._replace(
        ids=_with_token(beams, sources, tokens), counts=counts, logprobs=logprobs,
        writers=jnp.take_along_axis(writers, sources[..., None], 1), open=improves & ~(rules.early & full), found=found,
    )  # fmt: skip

    def where_active(new: Array, old: Array) -> Array:
        return jnp.where(active.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    chosen = jax.tree.map(where_active, new._replace(block=(), cache=None), beams._replace(block=(), cache=None))
    return chosen._replace(block=beams.block, cache=beams.cache)


def _candidates(
    search: Searching, rules: Rules, texts: Read, beams: Beams, logits: Array
) -> tuple[Array, Array, Array]:
    """The most probable continuations by one token of all hypotheses of a text, by falling sum: the sums, which beams
    they continue, and the tokens, [C,M]; M is such that N of them remain when all others are stop tokens."""
    count, many = beams.logprobs.shape
    offered = logits if rules.allowed is None else jnp.where(rules.allowed, logits, -jnp.inf)
    if search.no_repeat:
        repeated = _repeated(search.no_repeat, rules, texts, beams, logits.shape[1])
        offered = jnp.where(repeated.reshape(logits.shape), -jnp.inf, offered)
    total = many * (1 + rules.stop_ids.shape[0])
    each = min(total, logits.shape[1])
    values, ids = largest(offered, each)
    logprobs = (values - jax.nn.logsumexp(logits, -1)[:, None]).astype(jnp.float32)
    sums = (logprobs.reshape(count, many, each) + beams.logprobs[..., None]).reshape(count, -1)
    sums, at = lax.top_k(sums, min(total, sums.shape[1]))
    return sums, at // each, jnp.take_along_axis(ids.reshape(count, -1), at, 1)


def _with_token(beams: Beams, sources: Array, tokens: Array) -> Array:
    """int[C,N,W], the tokens of the beams `sources` and one more behind them."""
    here = jnp.arange(beams.ids.shape[2]) == beams.counts[:, None]
    return jnp.where(here[:, None], tokens[..., None], jnp.take_along_axis(beams.ids, sources[..., None], 1))


def _best(old: Found, new: Found) -> Found:
    """The best of both, as many as there were."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), old, new)
    _, at = lax.top_k(both.scores, old.scores.shape[1])
    return jax.tree.map(lambda x: jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), 1), both)


def _repeated(size: int, rules: Rules, texts: Read, beams: Beams, vocabulary: int) -> Array:
    """bool[C,N,V], the tokens with which the last `size` - 1 ones would form what a text and its hypothesis have."""
    assert rules.prompts is not None
    count, many, tokens = beams.ids.shape
    lengths, total = texts.lengths[:, None], texts.lengths + beams.counts
    own = jnp.arange(rules.prompts.shape[1] + tokens) - lengths
    padded = jnp.pad(rules.prompts, ((0, 0), (0, tokens)))
    written = jnp.take_along_axis(beams.ids, jnp.clip(own, 0, tokens - 1)[:, None], 2)
    text = jnp.where((own < 0)[:, None], padded[:, None], written)  # [C,N,P+W]
    starts = jnp.arange(text.shape[2] - size + 1)
    alike = (starts + size <= total[:, None])[:, None]
    for place in range(size - 1):
        last = jnp.take_along_axis(text, jnp.maximum(total - size + 1 + place, 0)[:, None, None], 2)
        alike = alike & (text[:, :, place : place + starts.shape[0]] == last)
    alike = jnp.broadcast_to(alike, (count, many, starts.shape[0]))
    where = jnp.arange(count)[:, None, None], jnp.arange(many)[:, None], text[:, :, size - 1 :]
    return jnp.zeros((count, many, vocabulary), bool).at[where].max(alike)
