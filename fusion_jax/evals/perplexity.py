"""How well a model predicts held-out text, in a unit that does not depend on its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.arguments import listed
from fusion_jax.data.batches import Data, buckets_for
from fusion_jax.data.documents import (
    Document,
    TeacherRow,
    all_scored_bytes,
    encode_documents,
    leading_token,
    plain_examples,
)
from fusion_jax.errors import InputError
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model
from fusion_jax.train.reference import sequence_logprobs


class Surprise(NamedTuple):
    """-log p of what is scored: bits per UTF-8 byte, nats per token."""

    bits_per_byte: float
    nats_per_token: float


def surprise(
    model: Model, documents: Sequence[Document], *, max_length: int, compute: Compute, batch_size: int = 32
) -> Surprise:
    """Of all documents together, plain texts behind BOS where the tokenizer puts it there.

    Raises:
      InputError: no document, none of two tokens; see `encode_documents`.
    """
    if not listed(documents, "documents", "documents", "Give text_documents([text])"):
        raise InputError("there is none", field="documents", cure="Give held-out texts")
    texts = encode_documents(model.tokenizer, documents, max_length=min(max_length, model.config.max_positions))
    size = all_scored_bytes(documents, (t.offsets for t in texts))
    bos = leading_token(model.tokenizer, documents) if model.tokenizer is not None else None
    data = Data(plain_examples(texts, bos, model.config.max_positions))
    logprobs = sequence_logprobs(
        model.params, model.config, data, compute, batch_size=batch_size, buckets=buckets_for(data.extents)
    )
    nats = -float(logprobs.sum(dtype="float64"))
    return Surprise(nats / math.log(2) / size, nats / sum(int(t.scored.sum()) for t in texts))


def stored_surprise(rows: Sequence[TeacherRow], documents: Sequence[Document]) -> Surprise:
    """Of all documents together, from a teacher's rows of them."""
    nats, tokens = map(float, np.asarray([row.metric for row in rows], np.float64).sum(0))
    size = all_scored_bytes(documents, (row.offsets for row in rows))
    return Surprise(nats / math.log(2) / size, nats / tokens)
