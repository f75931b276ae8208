"""Rewards from a reward model: a folder with a scalar sequence-classification head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.arguments import records
from fusion_jax.data.batches import bucket_list
from fusion_jax.data.chat import LostText, render_each
from fusion_jax.data.clip import Clip
from fusion_jax.errors import InputError
from fusion_jax.jsonl import Record
from fusion_jax.models.config import rewarding
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model, classify
from fusion_jax.models.parameters import parameter_specs
from fusion_jax.sharding import data_ways, named, padded_rows, placed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def score_responses(
    model: Model, responses: Sequence[Record], *, batch_size: int = 8, mesh: Mesh | None = None
) -> list[Record]:
    """Responses with `reward`: the model's float32 score of the two-message chat in the model's own template.

    A score that is not finite becomes None, and so does that of a response whose text the template changes: `select`
    counts and drops them.

    Args:
      mesh: the one that the parameters are sharded over.

    Raises:
      InputError: the model has no scalar head or no tokenizer; a chat is longer than the model's positions.
    """
    if model.config.head.labels != 1:
        raise _not_one_score(model, "reward_model", "Give a sequence-classification folder with one label")
    if model.tokenizer is None:
        raise InputError("has no tokenizer", field="reward_model", cure="Add the tokenizer's files to its folder")
    responses = records(responses, "responses")
    chats = _encoded(model.tokenizer, responses, model.config.max_positions)
    order = sorted(chats, key=lambda i: len(chats[i]))
    buckets = bucket_list(max(map(len, chats.values()), default=1))
    scores, batch_size = np.full(len(responses), np.nan, np.float32), padded_rows(batch_size, data_ways(mesh))
    run = jax.jit(lambda params, tokens, lengths: classify(_with(model, params), tokens, lengths))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = next(b for b in buckets if b >= len(chats[chosen[-1]]))
        tokens, lengths = np.zeros((batch_size, width), np.int32), np.ones(batch_size, np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : len(chats[i])], lengths[row] = chats[i], len(chats[i])
        scores[chosen] = _run(run, model.params, tokens, lengths, mesh)[: len(chosen), 0]
    return [{**r, "reward": float(s) if np.isfinite(s) else None} for r, s in zip(responses, scores)]


def as_reward_model(model: Model, seed: int) -> Model:
    """The model with a fresh head of one score in the place of its language model's; a reward model as it is.

    Its config.json names the tokenizer's padding token: transformers scores the last token that is no padding, so that
    token should end no conversation.

    Raises:
      InputError: a classifier of several labels.
    """
    if model.config.encoder:
        problem = f"is {model.config.model_type}, which has an encoder; judges are made of decoders"
        raise InputError(problem, file=model.folder or None, field="model", cure="Give a decoder")
    if model.config.head.labels == 1:
        return model
    if model.config.head.labels:
        cure = "Give a language model, or a sequence-classification folder with one label"
        raise _not_one_score(model, "model", cure)
    config = rewarding(model.config)
    spec = parameter_specs(config)["score"]["kernel"]
    kernel = spec.init(jax.random.key(seed), spec.shape, jnp.float32)
    params = {name: value for name, value in model.params.items() if name != "head"} | {"score": {"kernel": kernel}}
    padding = None if model.tokenizer is None else model.tokenizer.pad_token_id
    hf_config = model.hf_config if padding is None else model.hf_config | {"pad_token_id": padding}
    return dataclasses.replace(model, config=config, params=params, hf_config=hf_config)


def _not_one_score(model: Model, field: str, cure: str) -> InputError:
    problem = f"has {model.config.head.labels} scores, a reward model has one"
    return InputError(problem, file=model.folder or None, field=field, cure=cure)


def _run(run: Callable, params: Params, tokens: np.ndarray, lengths: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """float32[B,1] on the host, the batch split over the mesh."""
    if mesh is None:
        return np.asarray(run(params, tokens, lengths))
    sharded = [placed(x, mesh, ("batch", None)[: x.ndim]) for x in (tokens, lengths)]
    return np.asarray(jax.device_put(run(params, *sharded), named(mesh, (None, None))))


def _with(model: Model, params: Params) -> Model:
    return Model(model.config, params)


def _encoded(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Record], most: int) -> dict[int, list[int]]:
    """The responses' places and two-message chats in ids, without those whose text the template changes.

    Raises:
      InputError: a chat of more than `most` tokens; the template changes the text of every response.
    """
    clip = Clip(tokenizer, most)
    for number, record in enumerate(responses, 1):
        size = len(record["prompt"]) + len(record["response"])
        if clip.too_long(record["prompt"]) or clip.too_long(record["response"]):
            raise _too_long(f"{size} characters", most, number)
    chats = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}] for r in responses
    ]
    out, lost = dict[int, list[int]](), list[InputError]()
    for i, text in enumerate(render_each(tokenizer, chats, header=False)):
        if isinstance(text, LostText):
            lost.append(text)
            continue
        out[i] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(out[i]) > most:
            raise _too_long(f"{len(out[i])} tokens", most, i + 1)
    if lost and not out:
        raise lost[0]
    return out


def _too_long(length: str, most: int, number: int) -> InputError:
    return InputError(
        f"the chat has {length}, the reward model reads {most} tokens", record=number, field="response",
        cure="Shorten the response or use a model with a longer context",
    )  # fmt: skip
