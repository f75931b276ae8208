"""What a dialogue system answers to every turn of a file: entities by rank, then greedy decoding behind all of them.

Section 5 of MK-TOD's specification (arXiv 2310.08877). No negative entity is ever read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from fusion_jax.data.batches import Data, TokenBatch, buckets_of, collate, extents
from fusion_jax.dialogue import retrieval
from fusion_jax.dialogue.inputs import Inputs
from fusion_jax.dialogue.meta import TagSettings, tag_ids
from fusion_jax.dialogue.passages import tag_table
from fusion_jax.dialogue.systems import COMPANION
from fusion_jax.dialogue.turns import Turn
from fusion_jax.display import brief
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params
from fusion_jax.sampling.encoded import written
from fusion_jax.sampling.prompts import ready
from fusion_jax.sampling.session import on_host
from fusion_jax.sharding import data_ways, local_rows, padded_rows, placed
from fusion_jax.train.mktod import KnowledgeArrays, MktodSettings, all_of, read_passages, retrieved
from fusion_jax.train.objective import Given
from fusion_jax.train.step import shard_batch

Array = jax.Array


class Answered(NamedTuple):
    """Of one turn. text: the response; entities: places in the knowledge base, by rank; scores: theirs."""

    text: str
    entities: tuple[int, ...]
    scores: tuple[float, ...]


def knowledge_arrays(inputs: Inputs, settings: MktodSettings, compute: Compute) -> KnowledgeArrays:
    """The knowledge base and the tags of a variant, whole on every device."""
    tags = tag_table(tag_ids(inputs.generator, tags_of(settings)))
    return KnowledgeArrays(*(placed(x, compute.mesh, (None, None)) for x in (inputs.queried, inputs.read, tags)))


def tags_of(settings: MktodSettings) -> TagSettings:
    """What the generator is told of entities."""
    form = "none" if settings.variant == "ctr" else settings.variant
    return TagSettings(form, settings.order, settings.confidence, settings.cooccurrence, settings.thresholds)


@dataclass(frozen=True)
class Answering:
    """How turns are answered. config: of the generator with the retriever as its companion. rows: turns at once."""

    inputs: Inputs
    settings: MktodSettings
    config: ModelConfig
    compute: Compute
    arrays: KnowledgeArrays
    rows: int
    read: Callable[..., Any]
    index: Callable[..., Any]

    def __repr__(self) -> str:
        return brief(self)

    def answers(self, params: Params, turns: Sequence[Turn]) -> list[Answered]:
        """The answer to each turn, in order."""
        own = {name: part for name, part in params.items() if name != COMPANION}
        model = ready(own, replace(self.config, companion=None), self.compute.dtype, self.compute.mesh)
        end, tokenizer = int(self.inputs.generator.eos_token_id), self.inputs.generator
        out = list[Answered]()
        for encoded, found in self._read(params, turns, whole=True):
            said = written(model, encoded, self.inputs.lengths.response, [end])
            out += [Answered(tokenizer.decode(ids), *one) for ids, one in zip(said, found)]
        return out

    def retrieved(self, params: Params, turns: Sequence[Turn]) -> list[Answered]:
        """The entities of each turn, without text."""
        return [Answered("", *one) for _, some in self._read(params, turns, whole=False) for one in some]

    def _read(self, params: Params, turns: Sequence[Turn], *, whole: bool) -> Any:
        """The passages of turns, some at once, and what was retrieved."""
        examples, mesh = self.inputs.examples(turns), self.compute.mesh
        index = self.index(params, self.arrays) if self.settings.scale == "large" else None
        buckets, shapes = buckets_of(examples), Data(examples).shapes
        rows = padded_rows(min(self.rows, max(len(examples), 1)), data_ways(mesh))
        mine = local_rows(rows, mesh)
        for first in range(0, len(examples), rows):
            some = examples[first : first + rows]
            filled = [*some, *([replace(some[0], weight=0.0)] * (rows - len(some)))]
            batch = collate([filled[i] for i in mine], buckets, extents(filled).max(0), shapes)
            encoded, *found = self.read(params, shard_batch(batch, mesh), Given(self.arrays, index), whole)
            entities, scores, exists = (on_host(x, mesh) for x in found)
            kept = [(e[t].tolist(), s[t].tolist()) for e, s, t in zip(entities, scores, exists)][: len(some)]
            yield encoded, [(tuple(e), tuple(s)) for e, s in kept]


def answering(inputs: Inputs, settings: MktodSettings, config: ModelConfig, compute: Compute, rows: int) -> Answering:
    """The programs that answer; they compile once and take any weights."""
    compute = replace(compute, remat="none")
    arrays = knowledge_arrays(inputs, settings, compute)

    def read(params: Params, batch: TokenBatch, given: Given, whole: bool) -> Any:
        found = retrieved(settings, params, config, batch, compute, given, negative=False)
        encoded = None
        if whole:
            passages = read_passages(settings, batch, found, given.arrays, bare=False)
            own = (batch.beside or {}).get("own")
            most = len(given.arrays.read) if own is None else own.shape[1]
            assert passages.tokens.shape[1] == min(settings.top_k, most)  # no negative entity
            encoded = all_of(settings, params, config, batch, passages, compute)
        return encoded, found.entities, found.scores, found.exists

    def index(params: Params, arrays: KnowledgeArrays) -> Array:
        assert config.companion is not None
        return retrieval.index(params[COMPANION], config.companion, arrays.queried, compute)

    jitted = jax.jit(read, static_argnums=3, compiler_options=dict(compute.options) or None)
    return Answering(inputs, settings, config, compute, arrays, rows, jitted, compute.jit(index))
