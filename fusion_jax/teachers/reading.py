"""A teacher read once: texts to rows of its k most probable entries, by the same sharded forward as training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.align.views import view_of
from fusion_jax.data.batches import bucket_list
from fusion_jax.data.documents import (
    Document,
    TeacherRow,
    TeacherText,
    documents_fingerprint,
    leading_token,
    read_before,
)
from fusion_jax.keeping import kept_programs
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, forward, head_kernel, padded_positions
from fusion_jax.models.folder import Model
from fusion_jax.models.identity import described, fingerprint
from fusion_jax.ops.linear_topk import TopK, linear_topk
from fusion_jax.sharding import constrain, data_ways, named, padded_rows, placed, tensor_shards
from fusion_jax.teachers.store import StoreIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = jax.Array


def store_identity(model: Model, documents: Sequence[Document], k: int) -> StoreIdentity:
    """What a store of this teacher on these documents is known by: weights and architecture, all of the tokenizer."""
    assert model.tokenizer is not None  # `encode_documents` has looked
    whole = hashlib.sha256(f"{fingerprint(model.params)}{described(model.config)}".encode()).hexdigest()
    tokenizer = tokenizer_fingerprint(model.tokenizer, documents)
    return StoreIdentity(whole, tokenizer, documents_fingerprint(documents), k, len(documents))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> str:
    """sha256 of all of a tokenizer that `encode_documents` uses, and of whether these are read behind BOS."""
    bos = leading_token(tokenizer, documents)
    behind = "" if bos is None else f" behind {bos}"
    read = f"{tokenizer.eos_token_id} {tokenizer.backend_tokenizer.to_str()}{behind}"
    return hashlib.sha256(read.encode()).hexdigest()


@kept_programs
def make_topk_step(
    config: ModelConfig, compute: Compute, k: int, vocab_limit: int
) -> Callable[[Params, Array, Array, Array], tuple[TopK, Array]]:
    """Jitted (params, tokens int[B,T], labels int[B,T], lengths int[B]) -> (the k entries that may follow, log-probs of
    the labels)."""

    def step(params: Params, tokens: Array, labels: Array, lengths: Array) -> tuple[TopK, Array]:
        tokens = constrain(tokens, compute.mesh, ("batch", None))
        hidden = forward(
            params, config, tokens, positions=padded_positions(tokens, config, lengths), mesh=compute.mesh,
            dtype=compute.dtype, kernel=compute.kernel,
        )  # fmt: skip
        kernel = head_kernel(params, config).astype(hidden.dtype)
        cap, shards = config.head.soft_cap, tensor_shards(compute.mesh)
        top = linear_topk(
            hidden, kernel, k, soft_cap=cap, vocab_shards=shards, row_shards=data_ways(compute.mesh),
            elements=compute.logits, vocab_limit=vocab_limit,
        )  # fmt: skip
        logits = jnp.einsum("btd,btd->bt", hidden, kernel[labels], preferred_element_type=top.logsumexp.dtype)
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        return top, logits - top.logsumexp

    whole = None if compute.mesh is None else named(compute.mesh, ())  # every host reads every row
    return compute.jit(step, out_shardings=whole)


def teacher_rows(
    model: Model, texts: Sequence[TeacherText], k: int, compute: Compute, *, batch_size: int, bos: int | None = None
) -> Callable[[Sequence[int]], list[TeacherRow]]:
    """The rows of some of the texts, scored in batches of similar length: what `write_store` asks for.

    bos: is read before each text that does not begin with it (see `leading_token`) and leaves it room; it has no row.

    A batch is as many texts as the devices divide, `batch_size` at least; the last one is filled up.
    Entries beyond the tokenizer (of a head padded to a round size) do not exist.
    """
    assert model.tokenizer is not None  # `encode_documents` has looked
    step = make_topk_step(model.config, compute, k, min(view_of(model.tokenizer).size, model.config.vocab_size))
    heads = [read_before(text, bos, model.config.max_positions) for text in texts]
    buckets = bucket_list(max((len(t.ids) + len(head) for t, head in zip(texts, heads, strict=True)), default=1))
    batch_size = padded_rows(batch_size, data_ways(compute.mesh))

    def rows_of(wanted: Sequence[int]) -> list[TeacherRow]:
        order = sorted(wanted, key=lambda i: len(texts[i].ids))
        found: dict[int, TeacherRow] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = next(b for b in buckets if b >= max(len(texts[i].ids) + len(heads[i]) for i in chosen))
            tokens, labels = np.zeros((2, batch_size, width), np.int32)
            lengths = np.ones(batch_size, np.int32)
            for b, i in enumerate(chosen):
                ids = np.asarray([*heads[i], *texts[i].ids], np.int32)
                lengths[b] = len(ids)
                tokens[b, : len(ids)], labels[b, : len(ids) - 1] = ids, ids[1:]
            rows = (placed(x, compute.mesh, ("batch", None)[: x.ndim]) for x in (tokens, labels, lengths))
            top, logprobs = jax.device_get(step(model.params, *rows))
            for b, i in enumerate(chosen):
                part = slice(len(heads[i]), len(heads[i]) + len(texts[i].ids))
                found[i] = _row(texts[i], TopK(*(x[b, part] for x in top)), logprobs[b, part])
        return [found[i] for i in wanted]

    return rows_of


def _row(text: TeacherText, top: TopK, logprobs: np.ndarray) -> TeacherRow:
    """top, logprobs: of the text's tokens."""
    entries = np.asarray(top.logprobs, np.float32)
    scored = text.scored[1:]
    nll = -float(np.asarray(logprobs[:-1], np.float64)[scored].sum())
    return TeacherRow(
        ids=text.ids, offsets=text.offsets, topk_ids=np.asarray(top.ids),
        topk_logprobs=entries.astype(np.float16), logsumexp=np.asarray(top.logsumexp, np.float32),
        tail=np.clip(1.0 - np.exp(entries).sum(-1), 0.0, 1.0), metric=np.asarray([nll, scored.sum()], np.float32),
    )  # fmt: skip
