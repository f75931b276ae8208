"""Batched generation with a KV cache; all samples of a prompt share its one prefill.

A token depends on (seed, prompt, sample number, position) only: random keys are folded from the prompt's content, not
from its place in a batch; a prompt is always computed at the same padded length, and batches are always padded to the
same number of rows, so that the same arithmetic is done for it whatever it is batched with.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from fusion_jax.arguments import listed
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decode import (
    DecodeParams,
    Kept,
    LayerCache,
    decode_params,
    decode_step,
    empty_caches,
    next_logits,
)
from fusion_jax.models.decoder import Params
from fusion_jax.models.parameters import check_heads, key_heads, place_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.sampling.prompts import How, compiled_for, read_prompts
from fusion_jax.sampling.samplers import GREEDY, Sampler, choose, penalised
from fusion_jax.sampling.sizes import batches, capacities_of
from fusion_jax.sharding import constrain, data_ways, make_mesh, named, padded_rows, placed
from fusion_jax.slices import compiler_options

Array = jax.Array

_PROMPTS = "Give a list of lists of token ids: tokenizer(texts)['input_ids']"


class Completion(NamedTuple):
    """Generated ids without the stop token, whether a stop token ended them, and their log-probability.

    logprob: sum over the tokens, the stop token included, under the model's own softmax (temperature 1, nothing
    excluded).
    """

    ids: list[int]
    finished: bool
    logprob: float = 0.0


class _State(NamedTuple):
    """R rows while they grow. `step` tokens of each are chosen; `token` is the last one, not yet in the caches.

    seen: bool[R,V], the tokens of each row and its prompt, where the sampler asks for them.
    """

    step: Array
    token: Array
    ids: Array
    done: Array
    counts: Array
    finished: Array
    logprobs: Array
    caches: tuple[LayerCache, ...]
    seen: Array | None = None


class Fixed(NamedTuple):
    """What stays while the rows of a batch grow: lengths of the prompts int[C], random keys [R,2], stop ids."""

    lengths: Array
    keys: Array
    stop_ids: Array


prepare = functools.partial(jax.jit, static_argnums=(1, 2))(decode_params)


def _choose_next(how: How, fixed: Fixed, state: _State, logits: Array) -> _State:
    """The state with one more token of every row."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(fixed.keys, state.step)
    allowed = logits if state.seen is None else penalised(logits, state.seen, how.sampler.repetition_penalty)
    token = choose(allowed, keys, how.sampler)
    logprobs = jnp.take_along_axis(logits, token[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, -1)
    stopped = (token[:, None] == fixed.stop_ids).any(-1)
    written = ~state.done & ~stopped
    return state._replace(
        step=state.step + 1,
        token=token,
        ids=lax.dynamic_update_slice_in_dim(state.ids, jnp.where(written, token, 0)[:, None], state.step, 1),
        done=state.done | stopped,
        counts=state.counts + written,
        finished=state.finished | (stopped & ~state.done),
        logprobs=state.logprobs + jnp.where(state.done, 0, logprobs),
        seen=None if state.seen is None else state.seen.at[jnp.arange(token.shape[0]), token].set(True),
    )


@compiled_for
def start_rows(
    how: How, capacity: int, params: DecodeParams, fixed: Fixed, last: Array, seen: Array | None = None
) -> _State:
    """The first token of every row, from the prompts' last hidden states [C,D]. An empty prompt fills the batch.

    Args:
      seen: bool[C,V], the tokens of each prompt, where the sampler asks for them.
    """
    rows = last.shape[0] * how.samples
    caches = empty_caches(how.config, rows, capacity, how.dtype, how.mesh)
    zeros = jnp.zeros(rows, jnp.int32)
    state = _State(
        jnp.zeros((), jnp.int32), zeros, jnp.zeros((rows, capacity), jnp.int32),
        jnp.repeat(fixed.lengths == 0, how.samples), zeros, jnp.zeros(rows, bool), jnp.zeros(rows, jnp.float32),
        caches, None if seen is None else jnp.repeat(seen, how.samples, 0),
    )  # fmt: skip
    logits = constrain(next_logits(last, params.rest, how.config), how.mesh, ("batch", "vocab"))
    return _choose_next(how, fixed, state, jnp.repeat(logits, how.samples, 0))


@compiled_for
def continue_rows(
    how: How,
    capacity: int,
    params: DecodeParams,
    prompts: tuple[Kept, ...],
    fixed: Fixed,
    state: _State,
    limit: Array,
) -> _State:
    """Tokens until every row has stopped, has `limit` tokens, or fills `capacity` (to which the caches are grown)."""

    def grown(x: Array, tokens: int) -> Array:
        return jnp.pad(x, [(0, capacity - n if axis == tokens % x.ndim else 0) for axis, n in enumerate(x.shape)])

    def more(state: _State) -> Array:
        return (state.step < jnp.minimum(limit, capacity)) & ~state.done.all()

    def advance(state: _State) -> _State:
        logits, caches = decode_step(
            params, how.config, state.token, state.step - 1, fixed.lengths, prompts, state.caches,
            mesh=how.mesh, dtype=how.dtype,
        )  # fmt: skip
        logits = constrain(logits, how.mesh, ("batch", "vocab"))
        return _choose_next(how, fixed, state._replace(caches=caches), logits)

    caches = tuple(c._replace(kept=jax.tree.map(lambda x: grown(x, -2), c.kept)) for c in state.caches)
    state = state._replace(ids=grown(state.ids, 1), caches=caches)
    return lax.while_loop(more, advance, state)


def _row_keys(names: Sequence[int], samples: int, seed: int) -> np.ndarray:
    """uint32[C*S,2]: raw keys from (seed, name of the prompt, sample number)."""
    out = [np.random.SeedSequence([seed, name, s]).generate_state(2) for name in names for s in range(samples)]
    return np.stack(out)


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


def _check(prompts: Sequence[Sequence[int]], config: ModelConfig, max_new_tokens: int, seed: int) -> None:
    if seed < 0:
        raise InputError(f"{seed} is negative", field="seed", cure="Give 0 or more")
    for number, prompt in enumerate(listed(prompts, "prompts", "prompts", _PROMPTS), 1):
        if not len(listed(prompt, f"prompts[{number - 1}]", "token ids", _PROMPTS)):
            raise InputError("has no token", record=number, field="prompt", cure="Give a text or a BOS token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise InputError(
                f"holds a token id outside 0..{config.vocab_size - 1}", record=number, field="prompt",
                cure="Use the model's own tokenizer",
            )  # fmt: skip
        both = max(len(prompt), max_new_tokens) if config.encoder else len(prompt) + max_new_tokens
        if both > config.max_positions:
            raise InputError(
                f"{len(prompt)} tokens and {max_new_tokens} new ones exceed "
                f"the model's {config.max_positions} positions",
                record=number, field="prompt", cure="Shorten the prompt or lower max_new_tokens",
            )  # fmt: skip
        for switch in config.positions.switches:
            if len(prompt) <= switch < len(prompt) + max_new_tokens:
                raise InputError(
                    f"{len(prompt)} tokens and {max_new_tokens} new ones cross {switch}, from where on the model turns "
                    "all tokens otherwise: what it keeps of the prompt would not fit",
                    record=number, field="prompt",
                    cure=f"Lower max_new_tokens to {switch - len(prompt)}, or give a longer prompt",
                )  # fmt: skip


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
    seed: int = 0,
    num_samples: int = 1,
    stop_ids: Sequence[int] = (),
    row_ids: Sequence[int | str] | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Completion]]:
    """`num_samples` continuations of every prompt, in the prompts' order.

    Args:
      prompts: token ids, at least one each.
      stop_ids: tokens that end a continuation; they are not part of it.
      row_ids: what the randomness of each prompt is drawn from instead of its content: equal prompts with different
        ids get different samples.
      batch_size: prompts at once, at least, so that the devices divide them; each holds `num_samples` rows. Results
        may differ in rounding between batch sizes, never between batches.
      mesh: what to compute on, see `decoding_mesh`; parameters that lie otherwise are laid out over it first.
      dtype: of the computation; on a CPU at least float32, since its compiler lacks half-precision products.
      progress: called with the number of prompts done after each batch.

    Raises:
      InputError: an empty prompt; a prompt that with the new tokens exceeds the model's positions; an id that the
        model does not have; weights that give logits which are not finite.
    """
    if not config.decoder:
        raise InputError(f"{config.model_type} is an encoder, which writes nothing", cure="Give a model with a decoder")
    if config.head.labels:
        raise InputError("the model is a classifier, which writes nothing", cure="Give a language model")
    _check(prompts, config, max_new_tokens, seed)
    if max_new_tokens <= 0 or num_samples <= 0 or not prompts:
        return [[Completion([], False)] * num_samples for _ in prompts]
    if jax.default_backend() == "cpu":
        dtype = jnp.promote_types(dtype, jnp.float32)
    options = compiler_options(jax.devices()[0].device_kind)
    kernel: Kernel = "splash" if jax.default_backend() == "tpu" else "xla"
    how = How(config, sampler, num_samples, jnp.dtype(dtype), mesh, kernel, tuple(options.items()))
    names, batch_size = _names(prompts, row_ids), padded_rows(batch_size, data_ways(mesh))
    params = place_params(params, config, mesh, None if mesh is None else how.dtype)
    ready = prepare(params, config, how.dtype)
    stops = placed(np.asarray(list(stop_ids) or [-1], np.int32), mesh, (None,))
    out: list[list[Completion]] = [[] for _ in prompts]
    done = 0
    for chosen in batches(prompts, batch_size):
        lengths = np.zeros(batch_size, np.int32)
        lengths[: len(chosen)] = [len(prompts[i]) for i in chosen]
        keys = np.zeros((batch_size * num_samples, 2), np.uint32)
        keys[: len(chosen) * num_samples] = _row_keys([names[i] for i in chosen], num_samples, seed)
        read, last = read_prompts(how, params, [prompts[i] for i in chosen], batch_size)
        fixed = Fixed(placed(lengths, mesh, ("batch",)), placed(keys, mesh, ("batch", None)), stops)
        written = [[config.start] if config.encoder else prompts[i] for i in chosen]
        seen = _seen(written, batch_size, how) if sampler.penalises else None
        grown = _grow(how, ready, read, (fixed, last, seen), max_new_tokens)
        for row, i in enumerate(chosen):
            out[i] = _completions(grown, range(row * num_samples, (row + 1) * num_samples), i + 1)
        done += len(chosen)
        progress(done)
    return out


def _seen(prompts: Sequence[Sequence[int]], size: int, how: How) -> Array:
    """bool[size,V], which tokens each prompt has."""
    seen = np.zeros((size, how.config.vocab_size), bool)
    for row, prompt in enumerate(prompts):
        seen[row, np.asarray(prompt)] = True
    return placed(seen, how.mesh, ("batch", None))


def _grow(
    how: How, params: DecodeParams, prompts: tuple[Kept, ...], start: tuple[Fixed, Array, Array | None], limit: int
) -> tuple[np.ndarray, ...]:
    """(ids [R,N], counts, finished, logprobs [R]) on the host. start: what `start_rows` reads."""
    capacities, fixed = list(capacities_of(limit)), start[0]
    state = start_rows(how, capacities[0])(params, *start)
    for capacity in capacities:
        state = continue_rows(how, capacity)(params, prompts, fixed, state, np.int32(limit))
        if bool(_whole(state.done.all(), how.mesh)):
            break
    return tuple(_whole(x, how.mesh) for x in (state.ids, state.counts, state.finished, state.logprobs))


def _whole(x: Array, mesh: Mesh | None) -> np.ndarray:
    """On the host, also where other processes hold a part of it."""
    return np.asarray(x if mesh is None else jax.device_put(x, named(mesh, (None,) * x.ndim)))


def _completions(grown: tuple[np.ndarray, ...], rows: range, record: int) -> list[Completion]:
    ids, counts, finished, logprobs = grown
    out = [Completion(ids[r, : counts[r]].tolist(), bool(finished[r]), float(logprobs[r])) for r in rows]
    if not all(math.isfinite(c.logprob) for c in out):
        raise InputError("the model's logits are not finite", record=record, cure="Check the weights and the dtype")
    return out
