"""Sessions: what a model keeps of a batch of texts, which grow, are scored and are taken back.

    model = ready(params, config, jnp.bfloat16)
    session = start(model, prompts)                          # read once
    session = extend(model, session, more)                   # tokens behind each text
    packed = pack(model, session, candidates)                # many continuations of each text, one forward pass
    found = scores(model, packed)                            # the log-probability of each of their tokens
    session = commit(model, session, packed, chosen)         # one of them becomes part of its text, without another
    session = rollback(model, session, lengths)              # the first tokens of each text stay

All shapes are static: a text is a row of arrays for N tokens of which some exist, so that to take tokens back is to
lower a number. What lies behind is overwritten later. What `sampling.drafts` writes behind a session is committed in
the same way. `extend`, `commit`, `rollback` and `replace` take a session over: its arrays become those of the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.decode import Behind, DecodeParams, Encoder, Kept, next_logits, nothing_kept, read_on
from fusion_jax.models.decoder import head_kernel
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.ops.linear_topk import linear_topk
from fusion_jax.sampling.prompts import How, Read, Ready, compiled_for, read
from fusion_jax.sampling.sizes import candidates_width, kept_width, packed_width
from fusion_jax.sharding import constrain, data_ways, named, padded_rows, placed, tensor_shards

Array = jax.Array
MOST_LOGITS = 1 << 25  # that are held at once; where there would be more, the vocabulary is cut into pieces


class Session(NamedTuple):
    """Texts of tokens, and what the model keeps of them, a row each; rows behind them are empty."""

    texts: tuple[tuple[int, ...], ...]
    read: Read


class Candidate(NamedTuple):
    """One continuation of a text. ids: its tokens from place `start` on, which replace what stands there; `start` is at
    least 1 and at most the text's length."""

    start: int
    ids: Sequence[int]


def behind(text: Sequence[int], ids: Sequence[int], place: int) -> Candidate:
    """The candidate that makes `ids` of a text: from the first token on that differs, or from `place` on if that comes
    before it."""
    alike = next((number for number, (a, b) in enumerate(zip(text, ids)) if a != b), min(len(text), len(ids)))
    start = min(alike, place)
    return Candidate(start, ids[start:])


class Place(NamedTuple):
    """Where a candidate lies in its row: `tokens` are at first, first + 1, ..., and stand in the text from place `at`
    on; those from place `start` on are the candidate's, those before are the text's and were read again."""

    first: int
    at: int
    tokens: tuple[int, ...]
    start: int

    @property
    def again(self) -> int:
        """How many tokens of the text were read again."""
        return self.start - self.at


class Packed(NamedTuple):
    """Candidates that were read. kept: per layer, arrays [B,...,Q,last]; after: hidden states [B,1+Q,D], of the text's
    last token and behind each of the row's; places: of the candidates of each text."""

    kept: tuple[Kept, ...]
    after: Array
    places: list[list[Place]]


class Scored(NamedTuple):
    """Of one candidate. logprobs: float[n], of each token given all before it; greedy: bool[n], whether it is the most
    probable one."""

    logprobs: np.ndarray
    greedy: np.ndarray


def empty_read(how: How, rows: int, tokens: int, encoded: int = 0) -> Read:
    """Room for `tokens` tokens in each of `rows` texts, and for `encoded` of an encoder's."""
    config, mesh = how.config, how.mesh
    zeros, encoder = np.zeros(rows, np.int32), None
    if config.encoder:
        cross = nothing_kept(config, rows, encoded, how.dtype, mesh)
        encoder = Encoder(cross, placed(zeros, mesh, ("batch",)))
    last = placed(np.zeros((rows, config.width), how.dtype), mesh, ("batch", None))
    kept = nothing_kept(config, rows, tokens, how.dtype, mesh)
    return Read(placed(zeros, mesh, ("batch",)), last, kept, encoder)


@partial(compiled_for, donate="old")
def admit(how: How, old: Read, group: Read, taken: Array) -> Read:
    """Texts of a group in place of others: row b becomes number taken[b], or stays where that is -1."""

    def of(new: Array, old: Array) -> Array:
        rows = new[jnp.maximum(taken, 0)]
        rows = jnp.pad(rows, [(0, size - own) for size, own in zip(old.shape, rows.shape, strict=True)])
        return jnp.where((taken >= 0).reshape(-1, *(1,) * (old.ndim - 1)), rows.astype(old.dtype), old)

    return jax.tree.map(of, group, old)


def start(model: Ready, texts: Sequence[Sequence[int]], *, room: int = 0, rows: int = 0) -> Session:
    """Texts of at least one token, read. An encoder reads the texts; those that grow are the decoder's.

    Args:
      room: tokens that each may grow to; where they outgrow it, it doubles, which compiles anew.
      rows: how many there are at least; those behind the texts are empty. Batches of one size share their programs.
    """
    how, longest = model.how, max(map(len, texts), default=1)
    rows = padded_rows(max(len(texts), rows), data_ways(how.mesh))
    encoded = kept_width(longest) if how.config.encoder else 0
    empty = empty_read(how, rows, kept_width(max(room, 1 if encoded else longest)), encoded)
    return replace(model, Session(((),) * len(texts), empty), dict(enumerate(texts)))


def extend(model: Ready, session: Session, more: Sequence[Sequence[int]]) -> Session:
    """Each text with these tokens behind it."""
    both = zip(session.texts, more, strict=True)
    return _changed(model, session, [Candidate(len(text), ids) if len(ids) else None for text, ids in both])


def _changed(model: Ready, session: Session, candidates: Sequence[Candidate | None]) -> Session:
    """Each text with its candidate, if it has one."""
    if not any(candidates):
        return session
    packed = pack(model, session, [[one] if one else [] for one in candidates])
    return commit(model, session, packed, [0 if one else None for one in candidates])


def replace(model: Ready, session: Session, texts: Mapping[int, Sequence[int]]) -> Session:
    """Other texts in some rows, read from their start."""
    how, rows, numbers = model.how, session.read.lengths.shape[0], list(texts)
    _check_texts(list(texts.values()))
    longest = max(map(len, texts.values()), default=1)
    whole = grown(session.read, *((1, longest) if how.config.encoder else (longest,)))
    for places, group in read(model, list(texts.values()), rows):
        taken = np.full(rows, -1, np.int32)
        taken[[numbers[place] for place in places]] = np.arange(len(places))
        whole = admit(how)(whole, group, placed(taken, how.mesh, ("batch",)))
    own = [(how.config.start,) if how.config.encoder else tuple(texts[row]) for row in texts]
    new = dict(zip(texts, own, strict=True))
    return Session(tuple(new.get(row, old) for row, old in enumerate(session.texts)), whole)


def rollback(model: Ready, session: Session, lengths: Sequence[int]) -> Session:
    """The first so many tokens of each text, at least one. The last of them is read again, to go on from it."""
    both = zip(session.texts, lengths, strict=True)
    return _changed(model, session, [Candidate(length, ()) if length < len(text) else None for text, length in both])


def pack(model: Ready, session: Session, candidates: Sequence[Sequence[Candidate]]) -> Packed:
    """Continuations of each text, some or none, in one forward pass; the session stays as it is.

    The candidates of a text lie side by side in one row; each sees the text and itself. Where one of them replaces a
    token of the text, each reads the text again from the token before that on, so that the probability of every token
    of the candidates is known.
    """
    how, rows = model.how, session.read.lengths.shape[0]
    places = [_places(text, offered) for text, offered in zip(session.texts, candidates, strict=True)]
    width = packed_width(max((p.first + len(p.tokens) for row in places for p in row), default=1))
    tokens, positions, segments = (np.zeros((rows, width), np.int32) for _ in range(3))
    seen = np.zeros(rows, np.int32)
    for row, own in enumerate(places):
        for number, place in enumerate(own, 1):
            here = slice(place.first, place.first + len(place.tokens))
            tokens[row, here], segments[row, here] = place.tokens, number
            positions[row, here] = place.at + np.arange(len(place.tokens))
            seen[row] = place.at
    arrays = [placed(x, how.mesh, ("batch", "tokens")) for x in (tokens, positions, segments)]
    after, kept = _read_on(how)(model.apart, session.read, *arrays, placed(seen, how.mesh, ("batch",)))
    return Packed(kept, after, places)


def _places(text: Sequence[int], offered: Sequence[Candidate]) -> list[Place]:
    """Where the candidates of a text lie in a row."""
    for one in offered:
        if not 1 <= one.start <= len(text):
            raise ValueError(f"a candidate starts at place {one.start} of a text of {len(text)} tokens")
    at, first, out = min((one.start for one in offered), default=len(text)), 0, []
    if at < len(text) or any(not one.ids for one in offered):
        at -= 1
    for one in offered:
        tokens = (*text[at : one.start], *one.ids)
        out.append(Place(first, at, tokens, one.start))
        first += len(tokens)
    return out


@compiled_for
def _read_on(
    how: How, params: DecodeParams, held: Read, tokens: Array, positions: Array, segments: Array, seen: Array
) -> tuple[Array, tuple[Kept, ...]]:
    behind = Behind(held.kept, _from_zero(held), seen)
    after, kept = read_on(
        params, how.config, tokens, positions, (behind,), segments=segments, encoder=held.encoder, mesh=how.mesh,
        dtype=how.dtype,
    )  # fmt: skip
    return jnp.concatenate([held.last[:, None].astype(after.dtype), after], 1), kept


def _from_zero(held: Read) -> Array:
    """int[C,P], the positions of what is kept."""
    rows = held.lengths.shape[0]
    return jnp.broadcast_to(jnp.arange(tokens_kept(held.kept)), (rows, tokens_kept(held.kept)))


def tokens_kept(kept: tuple[Kept, ...]) -> int:
    """N, for how many tokens the layers have room, all for as many; 1 where none keeps anything."""
    return next((one.shape[-2] for one in jax.tree.leaves(kept)), 1)


def scores(model: Ready, packed: Packed, *, greedy: bool = False) -> list[list[Scored]]:
    """Log-probabilities of the tokens of every candidate from its `start` on; softmax in at least float32.

    Args:
      greedy: also which token is the most probable; costs a second product with the head where logits are many.
    """
    how, (rows, states) = model.how, packed.after.shape[:2]
    labels = np.zeros((rows, states), np.int32)
    firsts = np.zeros((rows, candidates_width(max(map(len, packed.places), default=1))), np.int32)
    for row, places in enumerate(packed.places):
        for number, place in enumerate(places):
            labels[row, place.first + 1 : place.first + len(place.tokens)] = place.tokens[1:]
            firsts[row, number] = place.tokens[0]
    both = (placed(one, how.mesh, ("batch", "tokens")) for one in (labels, firsts))
    found = [on_host(one, how.mesh) for one in _judged(how, greedy)(model.apart.rest, packed.after, *both)]

    def of(row: int, number: int, place: Place) -> Scored:
        end = place.first + len(place.tokens)
        if place.again:
            return Scored(*(of_labels[row, place.first + place.again : end] for of_labels in found[:2]))
        each = ((found[2 + n][row, number : number + 1], found[n][row, place.first + 1 : end]) for n in range(2))
        return Scored(*map(np.concatenate, each))

    return [[of(row, *one) for one in enumerate(places)] for row, places in enumerate(packed.places)]


@compiled_for
def _judged(how: How, greedy: bool, rest: Any, after: Array, labels: Array, firsts: Array) -> tuple[Array, ...]:
    """log p(label) [B,1+Q] of hidden states [B,1+Q,D], whether nothing is more probable, and both, [B,C], of several
    labels of the first states."""
    if labels.size * how.config.vocab_size <= MOST_LOGITS:
        return _judged_at_once(how, rest, after, labels, firsts)
    kernel = head_kernel(rest, how.config)
    shards = {"vocab_shards": tensor_shards(how.mesh), "row_shards": data_ways(how.mesh)}
    cap = how.config.head.soft_cap
    logprobs, _ = linear_logprobs(after, kernel, labels, soft_cap=cap, **shards)
    of_first, _ = linear_logprobs(after[:, 0], kernel, firsts, soft_cap=cap, **shards)
    if not greedy:
        return logprobs, jnp.zeros(labels.shape, bool), of_first, jnp.zeros(firsts.shape, bool)
    best = linear_topk(after, kernel, 1, soft_cap=cap, **shards).ids
    return logprobs, best[..., 0] == labels, of_first, best[:, 0] == firsts


def _judged_at_once(how: How, rest: Any, after: Array, labels: Array, firsts: Array) -> tuple[Array, ...]:
    """The same by all logits: the head is read once, and not cut into pieces, which would copy it."""
    logits = next_logits(after.reshape(-1, after.shape[-1]), rest, how.config).reshape(*labels.shape, -1)
    logits = constrain(logits, how.mesh, ("batch", "tokens", "vocab"))
    total, best = jax.nn.logsumexp(logits, -1), logits.argmax(-1)
    logprobs = jnp.take_along_axis(logits, labels[..., None], 2)[..., 0] - total
    of_first = jnp.take_along_axis(logits[:, 0], firsts, 1) - total[:, :1]
    return logprobs, best == labels, of_first, best[:, :1] == firsts


def scored(
    model: Ready, session: Session, candidates: Sequence[Sequence[Candidate]], *, greedy: bool = False, most: int = 2048
) -> list[list[Scored]]:
    """`scores` of any number of continuations of each text, in as few forward passes as rows of `most` tokens allow (of
    one candidate, where it is longer)."""
    left = [list(enumerate(own)) for own in candidates]
    out: list[list[Scored | None]] = [[None] * len(own) for own in candidates]
    while any(left):
        taken = [_fitting(text, own, most) for text, own in zip(session.texts, left, strict=True)]
        found = scores(model, pack(model, session, [[one for _, one in own] for own in taken]), greedy=greedy)
        for row, (own, told) in enumerate(zip(taken, found, strict=True)):
            for (number, _), one in zip(own, told, strict=True):
                out[row][number] = one
            left[row] = left[row][len(own) :]
    return out  # type: ignore[return-value]


def _fitting(
    text: Sequence[int], offered: Sequence[tuple[int, Candidate]], most: int
) -> Sequence[tuple[int, Candidate]]:
    """The first candidates that a row holds, one at least."""
    least, total = len(text), 0
    for count, (_, one) in enumerate(offered):
        added, least = least - min(least, one.start), min(least, one.start)
        total += added * count + one.start - least + 1 + len(one.ids)
        if count and total > most:
            return offered[:count]
    return offered


def commit(model: Ready, session: Session, packed: Packed, chosen: Sequence[int | None]) -> Session:
    """The session with one candidate of each text written into it, or none where that is None; no forward pass."""
    first, at, count = (np.zeros(session.read.lengths.shape[0], np.int32) for _ in range(3))
    texts = list(session.texts)
    for row, (text, number) in enumerate(zip(session.texts, chosen, strict=True)):
        at[row] = len(text)
        if number is None:
            continue
        place = packed.places[row][number]
        first[row], at[row], count[row] = place.first, place.at, len(place.tokens)
        texts[row] = (*text[: place.at], *place.tokens)
    where = Taken(first, at, count, first + count)
    return Session(tuple(texts), written(model, session.read, packed.kept, packed.after, where))


class Taken(NamedTuple):
    """What `written` takes, int[B] each: the tokens first, ..., first + size - 1 of a row stand in its text from place
    `at` on, and end it, with state number `end` of the row. A row that takes none has size 0, its length in `at`."""

    first: np.ndarray
    at: np.ndarray
    size: np.ndarray
    end: np.ndarray


def written(model: Ready, held: Read, kept: tuple[Kept, ...], after: Array, where: Taken) -> Read:
    """What is kept of texts with tokens that were read behind them.

    Args:
      kept: of Q tokens of each row, as `read_on` returns it. after: hidden states [B,...,D].
    """
    how = model.how
    if not where.size.any():
        return held
    width = packed_width(int(where.size.max()))
    held = grown(held, int(where.at.max()) + width)
    return _written(how, width)(held, kept, after, Taken(*(placed(x, how.mesh, ("batch",)) for x in where)))  # type: ignore[arg-type]


def grown(held: Read, tokens: int, encoded: int = 0) -> Read:
    """The same with room for so many tokens at least, and for `encoded` of an encoder's."""
    if tokens > tokens_kept(held.kept):
        held = held._replace(kept=jax.tree.map(partial(roomier, tokens=kept_width(tokens)), held.kept))
    if held.encoder is not None and encoded > tokens_kept(held.encoder.cross):
        cross = jax.tree.map(partial(roomier, tokens=kept_width(encoded)), held.encoder.cross)
        held = held._replace(encoder=held.encoder._replace(cross=cross))
    return held


def roomier(x: Array, tokens: int) -> Array:
    """[R,...,N,last] padded, or cut, to so many tokens."""
    x = x[..., :tokens, :]
    return jnp.pad(x, [(0, tokens - x.shape[axis] if axis == x.ndim - 2 else 0) for axis in range(x.ndim)])


@partial(compiled_for, donate="held")
def _written(how: How, width: int, held: Read, kept: tuple[Kept, ...], after: Array, where: Taken) -> Read:
    first, at, size, end = where
    places = first[:, None] + jnp.arange(width)

    def of(new: Array, old: Array) -> Array:
        index = jnp.minimum(places, new.shape[-2] - 1).reshape(-1, *(1,) * (new.ndim - 3), width, 1)
        rows = jnp.take_along_axis(new, index, new.ndim - 2)
        return jax.vmap(lambda x, y, i: lax.dynamic_update_slice_in_dim(x, y, i, x.ndim - 2))(old, rows, at)

    ends = jnp.take_along_axis(after, jnp.maximum(end, 0)[:, None, None], 1)[:, 0]
    last = jnp.where((size > 0)[:, None], ends, held.last)
    return held._replace(
        lengths=at + size, last=constrain(last, how.mesh, ("batch", None)), kept=jax.tree.map(of, kept, held.kept)
    )


def on_host(x: Array, mesh: Mesh | None) -> np.ndarray:
    """On the host, also where other processes hold a part of it."""
    return np.asarray(x if mesh is None else jax.device_put(x, named(mesh, (None,) * x.ndim)))


def _check_texts(texts: Sequence[Sequence[int]]) -> None:
    for number, text in enumerate(texts, 1):
        if not len(text):
            raise InputError("has no token", record=number, field="text", cure="Give a text or a BOS token")
