"""Batched generation with a KV cache; all samples of a prompt share its one prefill.

A token depends on (seed, prompt, sample number, position) only: random keys are folded from the prompt's content, not
from its place in a batch, and batches are padded to one size.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.data.batches import bucket_list
from fusion_jax.data.chat import generation_prompt, stop_token_ids
from fusion_jax.errors import InputError
from fusion_jax.models.config import DecoderConfig
from fusion_jax.models.decoder import Block, Norm, Params, forward, head_kernel
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import parameter_specs
from fusion_jax.ops.rotary import rotary_tables
from fusion_jax.sampling.samplers import Sampler, choose

Array = jax.Array


class Completion(NamedTuple):
    """Generated ids without the stop token, and whether a stop token ended them."""

    ids: list[int]
    finished: bool


class _Cache(NamedTuple):
    """Keys and values of one layer: of the prompts [C,P,K,h] and of the tokens generated since [C*S,N,K,h]."""

    prompt_k: Array
    prompt_v: Array
    k: Array
    v: Array


def _logits(hidden: Array, params: Params, config: DecoderConfig) -> Array:
    """Logits [R,V] of hidden states [R,D], at least float32."""
    kernel = head_kernel(params, config).astype(hidden.dtype)
    out = jnp.einsum("rd,vd->rv", hidden, kernel, preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32))
    cap = config.final_soft_cap
    return out if cap is None else cap * jnp.tanh(out / cap)


def _decode_step(
    params: Params,
    layers: tuple[Params, ...],
    config: DecoderConfig,
    token: Array,
    step: Array,
    lengths: Array,
    caches: tuple[_Cache, ...],
    dtype: Any,
) -> tuple[Array, tuple[_Cache, ...]]:
    """Logits [R,V] after one more token int[R] a row, and the caches with it. Layers are unrolled: scanned caches
    would be copied at every step."""
    rows, (prompts, size) = token.shape[0], caches[0].prompt_k.shape[:2]
    positions = (jnp.repeat(lengths, rows // prompts) + step)[:, None]
    x = params["embed"]["embedding"].astype(dtype)[token[:, None]]
    if config.embed_scale != 1.0:
        x *= jnp.asarray(config.embed_scale, dtype)
    tables = rotary_tables(positions, config.rope, config.head_dim, config.max_positions)
    capacity = caches[0].k.shape[1]
    places = (
        (jnp.broadcast_to(jnp.arange(size), (prompts, size)), lengths),
        (jnp.arange(capacity) + jnp.repeat(lengths, rows // prompts)[:, None], jnp.full(rows, step)),
    )
    block, new = Block(config, None, dtype, True), []
    for layer, cache, window in zip(layers, caches, config.windows or (0,) * config.num_layers, strict=True):
        kv = ((cache.prompt_k, cache.prompt_v), (cache.k, cache.v))
        x, (k, v) = block.apply({"params": layer}, x, window, kv, tables, positions, None, places)
        new.append(
            cache._replace(
                k=lax.dynamic_update_slice_in_dim(cache.k, k, step, 1),
                v=lax.dynamic_update_slice_in_dim(cache.v, v, step, 1),
            )
        )
    norm = Norm(parameter_specs(config)["final_norm"], config, dtype)
    hidden = norm.apply({"params": params["final_norm"]}, x)
    return _logits(hidden[:, 0], params, config), tuple(new)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate_batch(
    config: DecoderConfig,
    sampler: Sampler,
    samples: int,
    capacity: int,
    dtype: Any,
    params: Params,
    tokens: Array,
    lengths: Array,
    keys: Array,
    stop_ids: Array,
    limit: Array,
) -> tuple[Array, Array, Array]:
    """(ids int[C*S,N], counts int[C*S], finished bool[C*S]) for prompts int[C,P]; row b*S+s is sample s of prompt b.

    A prompt of length 0 is a row that only fills the batch. `limit` new tokens at most, of a capacity N that shapes
    the buffers.
    """
    hidden, (k, v) = forward(params, config, tokens, dtype=dtype, return_kv=True)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    rows = tokens.shape[0] * samples
    shape = (rows, capacity, config.num_kv_heads, config.head_dim)
    caches = tuple(
        _Cache(k[i], v[i], jnp.zeros(shape, k.dtype), jnp.zeros(shape, v.dtype)) for i in range(config.num_layers)
    )
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.num_layers))
    live = jnp.repeat(lengths > 0, samples)

    def pick(logits: Array, step: Array) -> Array:
        return choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), sampler)

    def more(carry: tuple) -> Array:
        step, done = carry[0], carry[3]
        return (step < limit) & ~done.all()

    def advance(carry: tuple) -> tuple:
        step, token, ids, done, counts, finished, caches = carry
        stopped = (token[:, None] == stop_ids).any(-1)
        finished |= stopped & ~done
        done |= stopped
        ids = ids.at[:, step].set(jnp.where(done, 0, token))
        counts += ~done
        logits, caches = _decode_step(params, layers, config, token, step, lengths, caches, dtype)
        return step + 1, pick(logits, step + 1), ids, done, counts, finished, caches

    first = pick(jnp.repeat(_logits(last, params, config), samples, 0), jnp.zeros((), jnp.int32))
    start = (
        jnp.zeros((), jnp.int32), first, jnp.zeros((rows, capacity), jnp.int32), ~live,
        jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), caches,
    )  # fmt: skip
    _, _, ids, _, counts, finished, _ = lax.while_loop(more, advance, start)
    return ids, counts, finished


def _row_keys(prompts: Sequence[Sequence[int]], samples: int, seed: int) -> np.ndarray:
    """uint32[C*S,2]: raw keys from (seed, prompt content, sample number)."""
    out = []
    for prompt in prompts:
        content = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
        out += [np.random.SeedSequence([seed, content, s]).generate_state(2, np.uint32) for s in range(samples)]
    return np.stack(out)


def generate_ids(
    params: Params,
    config: DecoderConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampler: Sampler = Sampler(),
    seed: int = 0,
    num_samples: int = 1,
    stop_ids: Sequence[int] = (),
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Completion]]:
    """`num_samples` continuations of every prompt, in the prompts' order.

    Args:
      prompts: token ids, at least one each.
      batch_size: prompts at once; each holds `num_samples` rows.
      progress: called with the number of prompts done after each batch.

    Raises:
      InputError: an empty prompt; a prompt that with the new tokens exceeds the model's positions.
    """
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) == 0:
            raise InputError("has no token", record=number, field="prompt", cure="Give a text or a BOS token")
        if len(prompt) + max_new_tokens > config.max_positions:
            raise InputError(
                f"{len(prompt)} tokens and {max_new_tokens} new ones exceed the model's {config.max_positions} positions",
                record=number, field="prompt", cure="Shorten the prompt or lower max_new_tokens",
            )  # fmt: skip
    if max_new_tokens <= 0 or not prompts:
        return [[Completion([], False)] * num_samples for _ in prompts]
    buckets = bucket_list(max(map(len, prompts)))
    capacity = -(-max_new_tokens // 16) * 16
    stops = jnp.asarray(list(stop_ids) or [-1], jnp.int32)
    out: list[list[Completion]] = [[] for _ in prompts]
    done = 0
    for chosen in _batches(prompts, batch_size, buckets):
        width = next(b for b in buckets if b >= max(len(prompts[i]) for i in chosen))
        tokens, lengths = np.zeros((batch_size, width), np.int32), np.zeros(batch_size, np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : len(prompts[i])], lengths[row] = prompts[i], len(prompts[i])
        keys = np.zeros((batch_size * num_samples, 2), np.uint32)
        keys[: len(chosen) * num_samples] = _row_keys([prompts[i] for i in chosen], num_samples, seed)
        ids, counts, finished = jax.device_get(
            _generate_batch(
                config, sampler, num_samples, capacity, dtype, params, tokens, lengths, keys, stops,
                jnp.asarray(max_new_tokens),
            )
        )  # fmt: skip
        for row, i in enumerate(chosen):
            mine = range(row * num_samples, (row + 1) * num_samples)
            out[i] = [Completion(ids[r, : counts[r]].tolist(), bool(finished[r])) for r in mine]
        done += len(chosen)
        progress(done)
    return out


def _batches(prompts: Sequence[Sequence[int]], size: int, buckets: Sequence[int]) -> Iterator[list[int]]:
    """Prompts of the same bucket together; a bucket's last batch may be small."""
    by_bucket: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_bucket.setdefault(next(b for b in buckets if b >= len(prompt)), []).append(i)
    for bucket in sorted(by_bucket):
        members = by_bucket[bucket]
        yield from (members[i : i + size] for i in range(0, len(members), size))


@dataclass(frozen=True)
class SampleSettings:
    """How responses are sampled; the defaults are the published ones (WRPO spec section 3)."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    num_samples: int = 5
    max_new_tokens: int = 4096
    batch_size: int = 32

    @property
    def sampler(self) -> Sampler:
        return Sampler(self.temperature, self.top_p, self.top_k)


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    num_samples: int = 1,
    chat: bool = True,
    batch_size: int = 32,
    dtype: Any = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[str]]:
    """Text in, text out: `num_samples` answers to every prompt.

    Args:
      chat: each prompt is one user message in the model's chat template; else it is continued as it stands.
      dtype: of the computation; None is the parameters', at least float32 on a CPU.

    Raises:
      InputError: the model has no tokenizer or, for chat, no template; see `generate_ids`.
    """
    if model.tokenizer is None:
        raise InputError(
            "the model has no tokenizer", field="tokenizer", cure="Add the tokenizer's files to its folder"
        )
    tokenizer = model.tokenizer
    texts = [generation_prompt(tokenizer, [{"role": "user", "content": p}]) for p in prompts] if chat else prompts
    encoded = [tokenizer(t, add_special_tokens=not chat)["input_ids"] for t in texts]
    completions = generate_ids(
        model.params, model.config, encoded, max_new_tokens=max_new_tokens,
        sampler=Sampler(temperature, top_p, top_k), seed=seed, num_samples=num_samples,
        stop_ids=stop_token_ids(tokenizer, model.generation), batch_size=batch_size,
        dtype=dtype or _default_dtype(model), progress=progress,
    )  # fmt: skip
    return [[tokenizer.decode(c.ids, skip_special_tokens=True) for c in row] for row in completions]


def _default_dtype(model: Model) -> Any:
    kept = model.params["embed"]["embedding"].dtype
    return jnp.promote_types(kept, jnp.float32) if jax.default_backend() == "cpu" else kept
