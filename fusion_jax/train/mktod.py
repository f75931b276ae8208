"""The objectives of MK-TOD (arXiv 2310.08877): a generator that reads retrieved entities, and a retriever that learns
from what the generator makes of each of them.

The generator is the model, the retriever its companion (`ModelConfig.companion`). Sections 3 to 7 of the specification.
Shapes: B turns, E entities of a turn by rank with the negative last, P passages, T tokens of a response.

A batch has the decoder's first token and the response as its row, and beside it:
  context int[B,C]   the context as the generator reads it, -1 behind it
  query   int[B,Q]   the context as the retriever reads it, -1 behind it
  own     int[B,N]   the dialogue's own entities, places in the knowledge base, -1 behind them; absent where all of the
                     knowledge base are looked through
  old     bool[B,N]  whether the context names each of them (of the whole knowledge base, where `own` is absent)
`Given.arrays` is a `KnowledgeArrays`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.data.batches import TokenBatch
from fusion_jax.dialogue import passages as texts
from fusion_jax.dialogue import retrieval
from fusion_jax.dialogue.meta import Thresholds
from fusion_jax.dialogue.retrieval import Retrieved
from fusion_jax.dialogue.sets import Scale
from fusion_jax.errors import InputError
from fusion_jax.keeping import kept
from fusion_jax.losses import Count, Mean, combined, weighted
from fusion_jax.losses.mktod import Level, entity_contrast, in_batch_contrastive, marginal_likelihood
from fusion_jax.models.attention import Encoded
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, forward, head_kernel
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.settings import bounded
from fusion_jax.sharding import data_ways, tensor_shards
from fusion_jax.train.objective import Given, Memory, Metrics, Objective, Progress
from fusion_jax.train.scores import Scores, noise_of
from fusion_jax.train.state import COMPANION, OptimizerSettings

Array = jax.Array
Variant = Literal["prefix", "prompt", "ctr"]


class KnowledgeArrays(NamedTuple):
    """A knowledge base as the step reads it. queried: int[N,R], the retriever's tokens of every entity; read: int[N,L],
    the generator's; tags: int[CLASSES,W] (`passages.tag_table`); all padded with -1."""

    queried: Array
    read: Array
    tags: Array


@dataclass(frozen=True)
class MktodSettings:
    """What is retrieved, and the loss alpha NLL + beta MML + gamma CTR."""

    variant: Variant = "prefix"
    """How the generator learns of entities: by added tokens (prefix), phrases (prompt), or a contrastive loss (ctr)."""
    top_k: int = 7
    """Entities that are retrieved."""
    fusion: Literal["decoder", "concat"] = "decoder"
    """Whether the encoder reads each entity behind the context by itself, or all behind one context."""
    negative: bool = True
    """Whether the entity with the lowest score is added in training."""
    alpha: float = 1.0
    """Weight of the cross-entropy given all entities."""
    beta: float = 1.0
    """Weight of the marginal likelihood, from which the retriever learns; 0: it stays as it is."""
    gamma: float = 1.0
    """Weight of the contrast between an entity and none, in the variant ctr."""
    tau: float = 1.0
    """Temperature of the distribution over entities."""
    level: Level = "sequence"
    """Whether entities are summed over for the whole response or for each of its tokens (as in EMDR2)."""
    stop_grad_theta: bool = False
    """Whether the marginal likelihood trains the retriever alone."""
    mml_start: int = 0
    """Optimizer steps before the marginal likelihood counts."""
    contrast_size: int = 3
    """Entities of highest rank that are contrasted with none."""
    margin: float = 0.01
    """By how much each of them should help."""
    order: bool = True
    """Whether tags tell the rank."""
    confidence: bool = True
    """Whether they tell the retriever's confidence."""
    cooccurrence: bool = True
    """Whether they tell that the context names the entity."""
    thresholds: Thresholds = "table10"
    """Confidence is high from 0.75 and low below 0.25; or, by the footnote, high above 0.75 and low up to 0.4."""
    refresh: int = 3
    """Optimizer steps from one index of a large knowledge base to the next; published with accumulation are about 100
    micro-batches, which 3 steps of 32 are."""
    scale: Scale = "large"
    """Whether a turn's entities are chosen from its dialogue's own few or from the whole knowledge base."""

    def __post_init__(self) -> None:
        bounded(self, "top_k", "contrast_size", "refresh", least=1)
        bounded(self, "alpha", "beta", "gamma", "margin", "mml_start", least=0)
        bounded(self, "tau", above=0)
        if not self.alpha and not self.beta:
            raise InputError("is 0 beside beta 0: nothing is learnt", field="alpha", cure="Give one of them a weight")

    @property
    def contrasts(self) -> bool:
        """Whether passages without entity are read besides."""
        return self.variant == "ctr" and self.gamma > 0

    @property
    def reads_each(self) -> bool:
        """Whether each entity alone is decoded."""
        return self.beta > 0 or self.contrasts


class Found(NamedTuple):
    """What the forward pass gives the loss. each: float[B,E,T], log-probs given each entity alone; without: float[B,T],
    given none; both None where the loss does not read them. retrieved: the entities."""

    each: Array | None
    without: Array | None
    retrieved: Retrieved


def mktod(settings: MktodSettings, companion: OptimizerSettings) -> Objective:
    """The joint training of generator and retriever. companion: how the retriever is trained."""
    return replace(_mktod(settings), companion=companion if settings.beta else still(companion))


@kept
def _mktod(settings: MktodSettings) -> Objective:
    memory = Memory(_index, settings.refresh) if settings.scale == "large" else None
    return Objective(
        f"mktod_{settings.variant}", ("response",), partial(mktod_loss, settings),
        scores=partial(mktod_scores, settings), memory=memory,
    )  # fmt: skip


def still(settings: OptimizerSettings) -> OptimizerSettings:
    """An optimizer that leaves everything as it is, decay included."""
    schedule: Literal["constant"] = "constant"
    return OptimizerSettings(0.0, schedule, warmup_ratio=0.0, clip_norm=settings.clip_norm)


def _index(params: Params, config: ModelConfig, arrays: KnowledgeArrays, compute: Compute) -> Array:
    assert config.companion is not None
    return retrieval.index(params[COMPANION], config.companion, arrays.queried, compute)


def retrieved(
    settings: MktodSettings, params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute, given: Given,
    *, negative: bool,
) -> Retrieved:  # fmt: skip
    """The entities of every turn. In a large knowledge base they are chosen by the index, which may be old, and read
    again where the retriever learns, so that their scores have a gradient."""
    assert batch.beside is not None and config.companion is not None
    learns, arrays = settings.beta > 0, given.arrays
    retriever = params[COMPANION] if learns else jax.lax.stop_gradient(params[COMPANION])
    read = partial(retrieval.vectors, retriever, config.companion)
    query, rows = read(batch.beside["query"], compute, noise_of(batch, compute)), batch.weights.shape[0]

    def entities(places: Array) -> Array:
        tokens = arrays.queried[jnp.maximum(places, 0)].reshape(-1, arrays.queried.shape[1])
        return read(tokens, compute, noise_of(batch, compute, places.shape[1])).reshape(rows, places.shape[1], -1)

    if "own" in batch.beside:
        own = batch.beside["own"]
        return retrieval.among_own(query, entities(own), own, settings.top_k, negative=negative)
    there = (arrays.queried >= 0).any(-1)
    found = retrieval.among_all(query, given.memory, there, settings.top_k, negative=negative)
    again = entities(found.places) if learns else given.memory[found.places]
    scores = jnp.einsum("bd,bed->be", query, again, precision="highest")
    return Retrieved(found.places, found.exists, jnp.where(found.exists, scores, 0.0), found.negative)


def read_passages(
    settings: MktodSettings, batch: TokenBatch, found: Retrieved, arrays: KnowledgeArrays, *, bare: bool
) -> texts.Passages:
    """The passages of retrieved entities."""
    assert batch.beside is not None
    old, own = batch.beside["old"], batch.beside.get("own")
    places = found.entities
    if own is not None:
        here = (own[:, None] == places[..., None]) & (own >= 0)[:, None]
        named = (here & old[:, None]).any(-1)
    else:
        named = jnp.take_along_axis(old, places, 1)
    tags = arrays.tags[texts.classes(found, named, settings.thresholds)]
    return texts.passages(batch.beside["context"], tags, arrays.read[places], found.exists, bare=bare)


def mktod_scores(
    settings: MktodSettings, params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute, given: Given
) -> Scores:
    """Log-probs of the responses given all retrieved entities, each alone, and none, of one reading of each passage."""
    with jax.named_scope("retrieve"):
        found = retrieved(settings, params, config, batch, compute, given, negative=settings.negative)
    passages = read_passages(settings, batch, found, given.arrays, bare=settings.contrasts)
    count = passages.tokens.shape[1]
    with jax.named_scope("encode"):
        hidden = texts.read(params, config, passages, compute, noise_of(batch, compute, count))
    tokens, labels = batch.tokens[:, 0], batch.labels[:, 0]

    def decoded(encoded: Encoded, groups: int) -> Array:
        repeated = jnp.repeat(tokens, groups, 0)
        return forward(
            params, config, repeated, encoded=encoded, noise=noise_of(batch, compute, groups), mesh=compute.mesh,
            dtype=compute.dtype, remat=compute.remat, kernel=compute.kernel,
        )  # fmt: skip

    with jax.named_scope("decode"):
        own = texts.Passages(*(x[:, : count - settings.contrasts] for x in passages))
        read = hidden[:, : count - settings.contrasts]
        states = decoded(all_of(settings, params, config, batch, own, compute, read), 1)[:, None]
        if settings.reads_each:
            alone = decoded(texts.apart(hidden, passages.exists), count)
            states = jnp.concatenate([states, alone.reshape(states.shape[0], count, *states.shape[2:])], 1)
    logprobs, _ = linear_logprobs(
        states, head_kernel(params, config), jnp.broadcast_to(labels[:, None], states.shape[:-1]),
        soft_cap=config.head.soft_cap, vocab_shards=tensor_shards(compute.mesh), row_shards=data_ways(compute.mesh),
        elements=compute.logits,
    )  # fmt: skip
    scored = batch.scored[:, 0]
    whole = jnp.where(scored, logprobs[:, 0], 0.0)
    mask = scored.astype(whole.dtype)
    each = logprobs[:, 1 : 1 + found.exists.shape[1]] if settings.reads_each else None
    without = logprobs[:, -1] if settings.contrasts else None
    return Scores(
        logprobs=whole[:, None], mask=(mask * batch.weights[:, None])[:, None], sequence=whole.sum(-1)[:, None],
        lengths=mask.sum(-1)[:, None], reference=batch.reference, weights=batch.weights,
        found=Found(each, without, found),
    )  # fmt: skip


def all_of(
    settings: MktodSettings, params: Params, config: ModelConfig, batch: TokenBatch, passages: texts.Passages,
    compute: Compute, hidden: Array | None = None,
) -> Encoded:  # fmt: skip
    """What a decoder reads of all passages of a turn. hidden: their states, where they were read already."""
    assert batch.beside is not None
    if settings.fusion == "concat":
        passages, hidden = texts.in_one(passages, batch.beside["context"].shape[1]), None
    if hidden is None:
        noise = noise_of(batch, compute, passages.tokens.shape[1])
        hidden = texts.read(params, config, passages, compute, noise)
    return texts.together(hidden, passages.exists)


def mktod_loss(settings: MktodSettings, scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
    """alpha NLL + beta MML + gamma CTR, each a mean over the micro-batch: the first two over tokens, CTR over turns."""
    s, found = settings, scores.found
    got, mask, weights = found.retrieved, scores.mask[:, 0], scores.weights
    nll = weighted(-scores.logprobs[:, 0], mask)
    terms: list[tuple[Array | float, Mean]] = [(s.alpha, nll)]
    metrics: Metrics = {"loss/nll": nll, "turns_with_entities": weighted(got.exists.any(-1) * 1.0, weights)}
    if s.beta:
        mml = marginal_likelihood(
            got.scores, found.each, mask, got.exists, tau=s.tau, level=s.level, stop_grad_theta=s.stop_grad_theta
        )
        terms.append((jnp.where(progress.step >= s.mml_start, s.beta, 0.0), mml.loss))
        there = weights * got.exists.any(-1)
        metrics |= {
            "loss/mml": mml.loss,
            "posterior_entropy": mml.entropy,
            "posterior_of_rank_1": weighted(mml.posterior[:, 0], there),
            "prior_of_rank_1": weighted(mml.prior[:, 0], there),
            "posterior_at_another_rank": weighted((mml.posterior.argmax(-1) != 0) * 1.0, there),
        }
    if s.contrasts:
        contrast = entity_contrast(
            found.each, found.without, mask, got.exists & ~got.negative, weights, size=s.contrast_size, margin=s.margin
        )
        terms.append((s.gamma, contrast))
        metrics["loss/ctr"] = contrast
    return combined(*terms), {**metrics, **_retrieval_metrics(got, weights)}


def _retrieval_metrics(got: Retrieved, weights: Array) -> Metrics:
    """How sure the retriever is, and whether what its index had at rank 1 still is."""
    scores = jax.lax.stop_gradient(jnp.where(got.exists & ~got.negative, got.scores, -jnp.inf))
    there = weights * got.exists.any(-1)
    return {
        "score_of_rank_1": weighted(scores[:, 0], there),
        "another_top_1_by_now": weighted((scores.argmax(-1) != 0) * 1.0, there),
        "turns": Count(weights.sum()),
    }


@kept
def retriever_pretraining(tau: float) -> Objective:
    """In-batch contrastive training of the retriever alone on entities that are taken for right (section 3.3).

    Examples have beside a row that nothing reads "query", int[Q], padded with -1, and "positive", int[1], the entity's
    place in `Given.arrays`, int[N,R].
    """

    def scores(params: Params, config: ModelConfig, batch: TokenBatch, compute: Compute, given: Given) -> Scores:
        assert batch.beside is not None
        positive = jnp.maximum(batch.beside["positive"][:, 0], 0)
        read = partial(retrieval.vectors, params, config, compute=compute, noise=noise_of(batch, compute))
        contexts, entities = read(batch.beside["query"]), read(given.arrays[positive])
        own = (contexts * entities).sum(-1)[:, None]
        one = jnp.ones_like(own)
        return Scores(
            own[..., None], one[..., None], own, one, batch.reference, batch.weights,
            found=(contexts, entities, positive),
        )  # fmt: skip

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        contexts, entities, positive = scores.found
        return in_batch_contrastive(contexts, entities, positive, scores.weights, tau=tau)  # type: ignore[return-value]

    return Objective("retriever", ("query",), loss, scores=scores)
