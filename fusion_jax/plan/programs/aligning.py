"""An optimizer step of MK-TOD: a generator that reads passages, and the retriever that chose them, trained together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.dialogue.passages import CLASSES
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Kernel
from fusion_jax.ops.remat import Remat
from fusion_jax.plan.flops import forward_flops
from fusion_jax.plan.programs.program import BYTES, SMALLER, Dtype, Place, Program, Situation, Start, check_rows
from fusion_jax.plan.programs.shapes import array, batch, pace, spread, tpu_compute, traced
from fusion_jax.train.mktod import KnowledgeArrays, MktodSettings, mktod
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, state_shardings
from fusion_jax.train.step import make_train_step


@dataclass(frozen=True)
class AlignStep(Program):
    """One optimizer step. retriever: config.json's values; loss: the fields of `MktodSettings`; examples: turns of a
    micro-batch, over all chips.

    context, query, entity, queried, tags, response: tokens of a context as generator and retriever read it, of an
    entity with its tags and as the retriever reads it, of a tag, of a response; entities: of the knowledge base; own:
    of a turn, where it has its own. start: dtype of the weights that the run keeps beside it.
    """

    retriever: dict[str, Any]
    loss: dict[str, Any]
    examples: int
    context: int
    query: int
    entity: int
    queried: int
    response: int
    entities: int
    own: int = 0
    tags: int = 3
    micro_batches: int = 1
    dropout: float = 0.0
    remat: Remat = "full"
    attention: Kernel = "splash"
    dtype: Dtype = "bfloat16"
    start: Start = "bfloat16"
    needs_model: ClassVar[bool] = True

    @property
    def settings(self) -> MktodSettings:
        """Of the loss."""
        return MktodSettings(**self.loss)

    @property
    def passages(self) -> int:
        """Of a turn, those of the negative entity and without entity among them."""
        there = self.own or self.entities
        chosen = min(self.settings.top_k, there)
        return chosen + (self.settings.negative and chosen < there) + self.settings.contrasts

    def check(self, ways: int) -> None:
        check_rows(self.examples, ways)

    def trace(self, config: ModelConfig, mesh: Mesh) -> jax.stages.Traced:
        config = self._both(config)
        settings = OptimizerSettings()
        objective = mktod(self.settings, settings)
        compute = tpu_compute(mesh, self.dtype, kernel=self.attention, remat=self.remat, dropout=self.dropout)
        optimizer = make_optimizer(settings, objective.companion)
        params = abstract_params(config, jnp.float32, mesh)
        state = jax.eval_shape(lambda params: init_state(params, optimizer), params)
        placed = state_shardings(state, jax.tree.map(lambda p: p.sharding, params), mesh)
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
        if objective.memory is not None:
            assert config.companion is not None
            index = spread(mesh, ("batch", None), (self.entities, config.companion.head.projected), jnp.float32)
            state = state._replace(opt_state=(state.opt_state, index))
        step = make_train_step(config, objective, optimizer, compute)
        return traced(step, state, self._batch(mesh), pace(mesh, companion=True), None, self._knowledge(mesh))

    def _both(self, config: ModelConfig) -> ModelConfig:
        return replace(config, companion=config_from_hf(self.retriever))

    def _batch(self, mesh: Mesh) -> Any:
        leading = (self.micro_batches,)

        def of(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
            return array(mesh, leading, (self.examples, *rest), dtype)

        count = self.own or self.entities
        beside = {"context": of(jnp.int32, self.context), "query": of(jnp.int32, self.query)}
        beside |= {"old": of(jnp.bool_, count)} | ({"own": of(jnp.int32, count)} if self.own else {})
        rows = batch(mesh, leading, self.examples, 1, 0, self.response)
        return rows._replace(beside=beside, noise=of(jnp.int32) if self.dropout else None)

    def _knowledge(self, mesh: Mesh) -> KnowledgeArrays:
        shapes = (self.entities, self.queried), (self.entities, self.entity), (CLASSES, self.tags)
        return KnowledgeArrays(*(spread(mesh, (None, None), shape, jnp.int32) for shape in shapes))

    def flops(self, config: ModelConfig) -> float:
        """Three forward passes of every passage's encoder, of the decoder behind all and behind each, and of the
        retriever over the context and the entities; one of the index, divided by the steps that it serves."""
        s, retriever, count = self.settings, config_from_hf(self.retriever), self.passages
        width = self.context + self.entity
        encoder = replace(config, decoder=())

        def decoder(tokens: int) -> float:
            whole = forward_flops(config, tokens, self.response, 1, True)
            return whole - forward_flops(encoder, tokens, 0, 1, True)

        read = count * forward_flops(encoder, width, 0, 1, True)
        written = decoder((count - s.contrasts) * width) + (count * decoder(width) if s.reads_each else 0.0)
        asked = forward_flops(retriever, self.query, 0, 1, True)
        again = (self.own or count - s.contrasts) * forward_flops(retriever, self.queried, 0, 1, True)
        turn = 3 * (read + written) + (3 * (asked + again) if s.beta else asked + (again if self.own else 0.0))
        index = 0.0 if self.own else self.entities * forward_flops(retriever, self.queried, 0, 1, True) / s.refresh
        return turn * self.examples * self.micro_batches + index

    def tokens_computed(self) -> int:
        decoders = 1 + (self.passages if self.settings.reads_each else 0)
        turn = self.passages * (self.context + self.entity) + decoders * self.response
        return turn * self.examples * self.micro_batches

    def weights_beside(self, weights: int, place: Place) -> int:
        _, fsdp, tensor = place.mesh
        return BYTES[self.start] * weights // (fsdp * tensor)

    def smaller(self, now: Situation) -> str:
        if now.state_fits and self.examples > 1:
            return "Try more micro-batches, fewer entities (--loss.top-k), or a larger slice"
        return SMALLER
