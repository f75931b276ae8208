"""Batched generation: token ids in, token ids out.

A batch never waits for its longest text: one that is finished gives its place to the next. A token depends on (seed,
prompt, sample number, position) only: random keys are folded from the prompt's content, not from its place in a batch;
a prompt is always read at the same padded length, and batches are always padded to the same number of rows, so that the
same arithmetic is done for it whatever it is batched with.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.arguments import listed
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.models.parameters import check_heads, key_heads
from fusion_jax.sampling.beam_search import BeamSearch, beam_search, refuse_samples
from fusion_jax.sampling.drafts import Draft, Rules, Writing, begin, empty_draft, go_on, with_room
from fusion_jax.sampling.prompts import How, Ready, ready
from fusion_jax.sampling.samplers import GREEDY, Sampler
from fusion_jax.sampling.session import admit, on_host, tokens_kept
from fusion_jax.sampling.sizes import BLOCK, written_width
from fusion_jax.sampling.slots import by_width, check_prompts, empty_slots, filled, other_room, rooms_of, waiting
from fusion_jax.sharding import data_ways, make_mesh, padded_rows, placed

Array = jax.Array

_NO_LIMIT = 2**30
Ended = Callable[[Sequence[int]], bool]


class Completion(NamedTuple):
    """Generated ids without the stop token, whether a stop token or `ended` ended them, and their log-probability.

    logprob: sum over the tokens, the stop token included, under the model's own softmax (temperature 1, nothing
    excluded).
    """

    ids: list[int]
    finished: bool
    logprob: float = 0.0


class Asked(NamedTuple):
    """Prompts and what is asked of them. keys: of each prompt, uint32[samples,2]; limit: tokens of a continuation;
    ended: besides stop tokens, whether the tokens of a row are all that is wanted; it is asked once a block; allowed:
    bool[V], tokens that may be chosen, None: all."""

    prompts: Sequence[Sequence[int]]
    keys: Callable[[int], np.ndarray]
    limit: int
    stop_ids: Sequence[int]
    rows: int
    ended: Ended | None = None
    allowed: np.ndarray | None = None


def _row_keys(name: int, samples: int, seed: int) -> np.ndarray:
    """uint32[S,2]: raw keys from (seed, name of the prompt, sample number)."""
    return np.stack([np.random.SeedSequence([seed, name, s]).generate_state(2) for s in range(samples)])


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed] * count if isinstance(seed, int) else listed(seed, "seed", "numbers", "Give one, or one a prompt")
    if len(seeds) != count:
        raise InputError(f"has {len(seeds)} entries for {count} prompts", field="seed", cure="Give one each")
    for one in seeds:
        if one < 0:
            raise InputError(f"{one} is negative", field="seed", cure="Give 0 or more")
    return list(seeds)


def _names(prompts: Sequence[Sequence[int]], row_ids: Sequence[int | str] | None) -> list[int]:
    """A number that stands for each prompt: a hash of its own id, or of its tokens."""
    if row_ids is not None:
        listed(row_ids, "row_ids", "ids", "Give a list, one id for each prompt")
    if row_ids is None:
        return [zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in prompts]
    if len(row_ids) != len(prompts):
        raise InputError(
            f"has {len(row_ids)} entries for {len(prompts)} prompts", field="row_ids", cure="Give one each"
        )
    return [zlib.crc32(repr(name).encode()) for name in row_ids]


def decoding_ways(config: ModelConfig, devices: int, tensor: int = 0, option: str = "mesh_tensor") -> int:
    """Devices that a model is split over to decode: `tensor`, or as many as its key-value heads divide over.

    Args:
      option: what sets `tensor`, for instance "--sample.mesh-tensor".

    Raises:
      InputError: the devices or the model's heads do not divide by `tensor`; names the option and what would do.
    """
    if not tensor:
        return math.gcd(key_heads(config), devices)
    check_heads(config, tensor, devices, option)
    return tensor


def decoding_mesh(config: ModelConfig, tensor: int = 0, option: str = "mesh_tensor") -> Mesh | None:
    """All devices to decode on, the model split by `decoding_ways`, which names the errors, prompts over the rest; None
    on one device.

    Over an fsdp axis every token would gather the whole model.
    """
    count = jax.device_count()
    return make_mesh(-1, 1, decoding_ways(config, count, tensor, option)) if count > 1 else None


def generate_ids(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampler: Sampler = GREEDY,
    seed: int | Sequence[int] = 0,
    num_samples: int = 1,
    stop_ids: Sequence[int] = (),
    ended: Ended | None = None,
    allowed: np.ndarray | None = None,
    row_ids: Sequence[int | str] | None = None,
    search: BeamSearch | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Completion]]:
    """`num_samples` continuations of every prompt, in the prompts' order.

    Args:
      prompts: token ids, at least one each.
      seed: of all prompts, or one for each.
      stop_ids: tokens that end a continuation; they are not part of it.
      ended: what else ends one: whether these tokens are all that is wanted. It is asked every 16 tokens, all of which
        are in the result; see `generate`, which cuts them.
      allowed: bool[V], tokens that may be chosen; None: all.
      row_ids: what the randomness of each prompt is drawn from instead of its content: equal prompts with different
        ids get different samples.
      search: beam search in place of the sampler, which must be greedy; the best continuation of every prompt. See
        `beam_search`, which gives the others and the scores too.
      batch_size: prompts at once, at least, so that the devices divide them; each holds `num_samples` rows. Results
        may differ in rounding between batch sizes, and beyond 128 tokens between batches, whose caches grow with their
        longest member.
      mesh: what to compute on, see `decoding_mesh`; parameters that lie otherwise are laid out over it first.
      dtype: of the computation; on a CPU at least float32, since its compiler lacks half-precision products.
      progress: called with the number of prompts done, as they are.

    Raises:
      InputError: an empty prompt; a prompt that with the new tokens exceeds the model's positions; an id that the
        model does not have; weights that give logits which are not finite; a search together with samples.
    """
    if search is not None:
        refuse_samples(sampler, num_samples, stops_by_text=ended is not None)
        found = beam_search(
            params, config, prompts, search, max_new_tokens=max_new_tokens, stop_ids=stop_ids, allowed=allowed,
            batch_size=batch_size, mesh=mesh, dtype=dtype, progress=progress,
        )  # fmt: skip
        return [[Completion(best.ids, best.finished, best.logprob)] for best, *_ in found]
    check_prompts(prompts, config, max_new_tokens)
    seeds = _seeds(seed, len(prompts))
    if max_new_tokens <= 0 or num_samples <= 0 or not prompts:
        return [[Completion([], False)] * num_samples for _ in prompts]
    model, names = ready(params, config, dtype, mesh), _names(prompts, row_ids)
    writing = Writing(written_width(max_new_tokens), sampler, num_samples, BLOCK)
    asked = Asked(
        prompts, lambda number: _row_keys(names[number], num_samples, seeds[number]), max_new_tokens, stop_ids,
        padded_rows(batch_size, data_ways(mesh)), ended, allowed,
    )  # fmt: skip
    out: list[list[Completion]] = [[] for _ in prompts]
    done = 0
    for width, alike in by_width(prompts):
        for number, completions in _written(model, writing, asked, alike, width):
            if not all(math.isfinite(c.logprob) for c in completions):
                cure = "Check the weights and the dtype"
                raise InputError("the model's logits are not finite", record=number + 1, cure=cure)
            out[number] = completions
            done += 1
            progress(done)
    return out


def _written(
    model: Ready, writing: Writing, asked: Asked, numbers: Sequence[int], width: int
) -> Iterator[tuple[int, list[Completion]]]:
    """The continuations of prompts that are kept at one width, as they are finished."""
    how, mesh, count = model.how, model.how.mesh, asked.rows
    texts, rooms = empty_slots(model, count, width), rooms_of(asked.limit, writing.block)
    draft = empty_draft(how, writing, count, rooms[0])()
    keys = np.zeros((count, writing.samples, 2), np.uint32)
    coming, slots, left = waiting(model, asked.prompts, numbers, count), [-1] * count, len(numbers)
    while left or any(number >= 0 for number in slots):
        came = np.zeros(count, bool)
        for group, taken in filled(coming, slots):
            texts = admit(how)(texts, group, placed(taken, mesh, ("batch",)))
            came |= taken >= 0
        left -= int(came.sum())
        for slot in np.flatnonzero(came):
            keys[slot] = asked.keys(slots[slot])
        rules = Rules(
            placed(keys.reshape(-1, 2), mesh, ("batch", None)),
            placed(np.asarray(list(asked.stop_ids) or [-1], np.int32), mesh, (None,)), np.int32(asked.limit),
            None if asked.allowed is None else placed(asked.allowed, mesh, (None,)),
        )  # fmt: skip
        if came.any():
            seen = _seen(how, asked, slots) if writing.sampler.penalises else None
            some = placed(came, mesh, ("batch",))
            draft = begin(how, writing)(model.apart, texts, rules, draft, some, seen)
        vacant = slots.count(-1) + max(1, count // 4) if left else _NO_LIMIT
        limits = np.int32(1 if asked.ended else _NO_LIMIT), np.int32(vacant)
        draft = go_on(how, writing)(model.apart, texts, rules, draft, *limits)
        rows = _rows(draft, mesh)
        if asked.ended is not None:
            rows = _also_ended(rows, asked.ended)
            draft = draft._replace(ended=placed(rows.ended, mesh, ("batch",)))
        for slot in np.flatnonzero(~rows.open.reshape(count, -1).any(1)):
            if slots[slot] >= 0:
                yield slots[slot], _completions(rows, range(slot * writing.samples, (slot + 1) * writing.samples))
                slots[slot] = -1
        if draft.cache is not None:
            room = other_room(rooms, tokens_kept(draft.cache), rows.counts[rows.open], writing.block)
            draft = draft if room is None else with_room(how, room)(draft)


class _Rows(NamedTuple):
    """A draft on the host."""

    ids: np.ndarray
    counts: np.ndarray
    ended: np.ndarray
    open: np.ndarray
    logprobs: np.ndarray


def _rows(draft: Draft, mesh: Mesh | None) -> _Rows:
    wanted = draft.ids, draft.counts, draft.ended, draft.open, draft.logprobs
    return _Rows(*(on_host(x, mesh) for x in wanted))


def _also_ended(rows: _Rows, ended: Ended) -> _Rows:
    now = np.asarray([
        is_open and ended(ids[:count].tolist()) for is_open, ids, count in zip(rows.open, rows.ids, rows.counts)
    ])  # fmt: skip
    return rows._replace(ended=rows.ended | now, open=rows.open & ~now)


def _completions(rows: _Rows, of: range) -> list[Completion]:
    each = ((rows.ids[r, : rows.counts[r]].tolist(), bool(rows.ended[r]), float(rows.logprobs[r])) for r in of)
    return [Completion(*one) for one in each]


def _seen(how: How, asked: Asked, slots: Sequence[int]) -> Array:
    """bool[C,V], which tokens the text in each slot has."""
    seen = np.zeros((len(slots), how.config.vocab_size), bool)
    for row, number in enumerate(slots):
        if number >= 0:
            seen[row, np.asarray([how.config.start] if how.config.encoder else asked.prompts[number])] = True
    return placed(seen, how.mesh, ("batch", None))
