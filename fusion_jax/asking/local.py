"""A model of ours as an answerer: batched on all devices, short questions first, through its own chat template.

A model without a template reads the messages as they stand, with a blank line between them. Each question is answered
as if it had been asked alone, up to rounding (see `sampling.ids`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh

from fusion_jax.asking.contract import Candidate, Decoding, Failure, Outcome, Question, Reply
from fusion_jax.data.chat import LostText, render_each, stop_token_ids
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, head_kernel
from fusion_jax.models.folder import Model
from fusion_jax.models.int8 import Weights
from fusion_jax.ops.linear_topk import linear_topk
from fusion_jax.paths import as_path
from fusion_jax.sampling.generate import load_to_sample, sampling_dtype
from fusion_jax.sampling.ids import decoding_mesh, generate_ids
from fusion_jax.sampling.prompts import How, Ready, compiled_for, read, ready
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sampling.session import on_host
from fusion_jax.sampling.sizes import chunks
from fusion_jax.sampling.stops import Stops
from fusion_jax.sharding import data_ways, tensor_shards
from fusion_jax.store.manifest import signature

if TYPE_CHECKING:
    import jax
    from transformers import PreTrainedTokenizerBase

LOST, LONG, EMPTY = "chat template changes the question", "longer than the model's window", "no token to read"
BATCHES = 4  # that are answered before their replies are told: what a kill loses


@dataclass(frozen=True)
class Local:
    """A model that answers. identity: see `Answerer`. mesh: to decode on. chat: whether questions go through the chat
    template, where there is one. batch_size: questions at once, over all devices. window: tokens of a question and its
    reply together; 0: the model's positions."""

    model: Model
    identity: str
    mesh: Mesh | None = None
    chat: bool = True
    batch_size: int = 32
    window: int = 0
    together: bool = True

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.reader

    @cached_property
    def ready(self) -> Ready:
        return ready(self.model.params, self.model.config, sampling_dtype(self.model), self.mesh)

    @property
    def templated(self) -> bool:
        """Whether questions go through a chat template."""
        return self.chat and bool(self.tokenizer.chat_template) and not self.model.config.encoder

    def fits(self, question: Question, decoding: Decoding) -> bool:
        (read,) = self.encoded([question])
        return isinstance(read, Failure) or self._room(read, decoding) is None

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[tuple[int, Outcome]]:
        waiting: dict[int, list[int]] = {}
        for number, ids in enumerate(self.encoded(questions)):
            failed = ids if isinstance(ids, Failure) else self._room(ids, decoding)
            if failed is not None:
                yield number, failed
            elif not isinstance(ids, Failure):
                waiting[number] = ids
        order = sorted(waiting, key=lambda number: len(waiting[number]))
        for some in chunks(order, BATCHES * self.batch_size):
            yield from zip(some, self._replies([waiting[number] for number in some], decoding), strict=True)

    def encoded(self, questions: Sequence[Question]) -> list[list[int] | Failure]:
        """The tokens that the model continues."""
        if not self.templated:
            texts = ["\n\n".join(message.content for message in question.messages) for question in questions]
            return [list(self.tokenizer(text)["input_ids"]) or Failure(EMPTY) for text in texts]
        chats = [[message._asdict() for message in question.messages] for question in questions]
        return [
            Failure(LOST, text.problem) if isinstance(text, LostText)
            else list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) or Failure(EMPTY)
            for text in render_each(self.tokenizer, chats, header=True)
        ]  # fmt: skip

    def _room(self, ids: Sequence[int], decoding: Decoding) -> Failure | None:
        """Why a question cannot be answered in so many tokens, if it cannot."""
        config, new = self.model.config, decoding.max_tokens
        total = max(len(ids), new) if config.encoder else len(ids) + new
        if total > (room := self.window or config.max_positions):
            return Failure(LONG, f"{len(ids)} tokens and {new} new ones, room for {room}")
        crossed = next((place for place in config.positions.switches if len(ids) <= place < len(ids) + new), None)
        return None if crossed is None else Failure(LONG, f"{len(ids)} tokens and {new} new ones cross {crossed}")

    def _replies(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Reply]:
        tokenizer, stops = self.tokenizer, Stops(self.tokenizer, tuple(decoding.stop))
        ends = (*stop_token_ids(tokenizer, self.model.generation), *stops.ids)
        firsts = self._firsts(prompts, decoding.top_logprobs) if decoding.top_logprobs else [None] * len(prompts)
        if decoding.max_tokens == 1 and decoding.temperature == 0 and decoding.top_logprobs:
            written = [([], True) if own[0][0] in ends else ([own[0][0]], False) for own in firsts if own]
        else:
            found = generate_ids(
                self.model.params, self.model.config, prompts, max_new_tokens=decoding.max_tokens,
                sampler=Sampler(decoding.temperature, decoding.top_p), seed=decoding.seed, stop_ids=ends,
                ended=stops.ended if decoding.stop else None, batch_size=self.batch_size, mesh=self.mesh,
                dtype=sampling_dtype(self.model),
            )  # fmt: skip
            written = [(one.ids, one.finished) for one, *_ in found]
        replies = []
        for (ids, ended), own in zip(written, firsts, strict=True):
            text, stopped = stops.said(ids)
            told = None if own is None else tuple(Candidate(tokenizer.decode([i]), value) for i, value in own)
            replies.append(Reply(text, "stop" if ended or stopped else "length", told))
        return replies

    def _firsts(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
        """The most probable first tokens of each reply with their log-probabilities."""
        model, out = self.ready, list[list[tuple[int, float]]]([[]] * len(prompts))
        best = _best(model.how, min(count, model.how.config.vocab_size))
        for numbers, texts in read(model, prompts, self.batch_size):
            ids, values = (on_host(x, self.mesh) for x in best(model.apart.rest, texts.last))
            for row, number in enumerate(numbers):
                out[number] = list(zip(ids[row].tolist(), np.asarray(values[row], np.float32).tolist()))
        return out


@compiled_for
def _best(how: How, count: int, rest: Params, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ids and log p of the most probable tokens behind hidden states [C,D]: [C,count] both."""
    shards = {"vocab_shards": tensor_shards(how.mesh), "row_shards": data_ways(how.mesh)}
    found = linear_topk(last, head_kernel(rest, how.config), count, soft_cap=how.config.head.soft_cap, **shards)
    return found.ids, found.logprobs


def from_folder(
    path: str | os.PathLike[str],
    *,
    name: str = "",
    chat: bool = True,
    window: int = 0,
    batch_size: int = 32,
    mesh_tensor: int = 0,
    weights: Weights = "stored",
) -> Local:
    """The model of a Hugging Face folder or a GGUF file, on all devices.

    Args:
      name: what its identity begins with, before a hash of the folder; without, the folder's name.
      chat: see `Local`.
      window: tokens of a question and its reply together; 0: the model's own positions.
      batch_size, mesh_tensor, weights: as in `sampling.generate.SampleSettings` and `load`.

    Raises:
      InputError: as `load` and `decoding_mesh`; more positions than the model can have.
    """
    place = as_path(path)
    model = load_to_sample(place, mesh_tensor, weights=weights)
    if window:
        model = dataclasses.replace(model, config=with_room(model.config, window, os.fspath(path)))
    told = [identity_of(place, name)]
    told += [] if chat else ["plain text"]
    told += [] if weights == "stored" else [weights]
    told += [f"window {window}"] if window else []
    mesh = decoding_mesh(model.config, mesh_tensor)
    return Local(model, ", ".join(told), mesh, chat, batch_size, window)


def identity_of(path: str | os.PathLike[str], name: str = "") -> str:
    """What `from_folder` calls a model that it loads as it is, before it is loaded."""
    place = as_path(path)
    return f"{name or place.name}@{(signature(place) or '')[:16]}"


def with_room(config: ModelConfig, window: int, file: str) -> ModelConfig:
    """A model with room for so many tokens at least: more than its own only where places enter as plain rotations, and
    what it makes of those is untried.

    Raises:
      InputError: more, of a model whose places are counted otherwise.
    """
    places = config.positions
    if window <= config.max_positions:
        return config
    if places.kind != "rotary" or any(rope.kind != "default" for rope in places.ropes):
        raise InputError(
            f"{window} tokens are more than its {config.max_positions} positions", file=file, field="window",
            cure="Give fewer, or leave it out",
        )  # fmt: skip
    return dataclasses.replace(config, positions=dataclasses.replace(places, max_positions=window))
