"""MK-TOD's objective: the passages of a step, its three decoders, retrieval with and without an old index, gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.batches import Data, buckets_for, collate
from fusion_jax.dialogue.inputs import Inputs, Lengths
from fusion_jax.dialogue.knowledge import knowledge_of
from fusion_jax.dialogue.meta import TAGS, metas, tag_ids
from fusion_jax.dialogue.passages import class_number, classes, passages, read, tag_table, together
from fusion_jax.dialogue.retrieval import Retrieved, index, vectors
from fusion_jax.dialogue.sets import SETS
from fusion_jax.dialogue.systems import System, as_generator, as_retriever, with_tokens
from fusion_jax.dialogue.turns import turns_of
from fusion_jax.losses import divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import forward, head_kernel
from fusion_jax.models.folder import Model
from fusion_jax.runs.answering import answering, tags_of
from fusion_jax.runs.dialogue_data import miniature_system
from fusion_jax.train.mktod import (
    KnowledgeArrays,
    MktodSettings,
    mktod,
    mktod_loss,
    mktod_scores,
    retriever_pretraining,
)
from fusion_jax.train.objective import Given, Progress
from fusion_jax.train.scores import Scores
from fusion_jax.train.state import OptimizerSettings
from fusion_jax.zoo import bookings
from tests.dialogue.golden import section

pytestmark = pytest.mark.usefixtures("quick_compiler")
CONDENSED = MktodSettings(top_k=2, scale="condensed")
FEW = replace(CONDENSED, variant="ctr", top_k=4)
LENGTHS = Lengths(context=40, query=40, entity=30, response=16)
COMPUTE = Compute()
# As programs: one by one their operations take longer to compile.
VECTORS = jax.jit(vectors, static_argnums=(1, 3))
INDEX = jax.jit(index, static_argnums=(1, 3, 4))
CLASSES = jax.jit(classes, static_argnums=2)
LOSS = jax.jit(mktod_loss, static_argnums=0)
Params = dict[str, Any]


class Learnt(NamedTuple):
    """gradients: of each of several settings; scores: of all; found: each one's loss with its metrics."""

    gradients: list[Params]
    scores: Scores
    found: list[Any]


@pytest.fixture(scope="module")
def town() -> bookings.Bookings:
    return bookings.bookings(3, (3, 1, 1), count=9)


@pytest.fixture(scope="module")
def system() -> System:
    return miniature_system(0, 32, 1, 8)


def inputs_of(town: bookings.Bookings, system: System, scale: str = "condensed") -> Inputs:
    knowledge = knowledge_of(town.town.places, "camrest")
    return Inputs(knowledge, system.generator.tokenizer, system.retriever.tokenizer, 0, scale, LENGTHS)  # type: ignore[arg-type]


def batch_of(inputs: Inputs, records: list[dict[str, Any]]):
    data = Data(inputs.examples(turns_of(records, inputs.knowledge, scale=inputs.scale).turns))
    return jax.tree.map(jnp.asarray, collate(data.examples, buckets_for(data.extents), shapes=data.shapes))


def arrays_of(inputs: Inputs, settings: MktodSettings) -> KnowledgeArrays:
    table = tag_table(tag_ids(inputs.generator, tags_of(settings)))
    return KnowledgeArrays(*map(jnp.asarray, (inputs.queried, inputs.read, table)))


def scored(settings: MktodSettings, system: System, inputs: Inputs, batch, memory=None) -> Scores:
    joined = system.joined
    return scores_of(settings, joined.config, joined.params, batch, Given(arrays_of(inputs, settings), memory))


@partial(jax.jit, static_argnums=(0, 1))
def scores_of(settings: MktodSettings, config: ModelConfig, params: Params, batch, given: Given) -> Scores:
    return mktod_scores(settings, params, config, batch, COMPUTE, given)


def learnt(several: tuple[MktodSettings, ...], system: System, inputs: Inputs, batch) -> Learnt:
    joined = system.joined
    return Learnt(*learnt_of(several, joined.config, joined.params, batch, Given(arrays_of(inputs, several[0]))))


@partial(jax.jit, static_argnums=(0, 1))
def learnt_of(several: tuple[MktodSettings, ...], config: ModelConfig, params: Params, batch, given: Given):
    """In one program for settings that differ in the loss alone."""

    def losses(params: Params):
        scores = mktod_scores(several[0], params, config, batch, COMPUTE, given)
        found = [mktod_loss(settings, scores, Progress(jnp.int32(0), 10)) for settings in several]
        return jnp.stack([divide(loss) for loss, _ in found]), (scores, found)

    gradients, (scores, found) = jax.jacrev(losses, has_aux=True)(params)
    return [jax.tree.map(itemgetter(i), gradients) for i in range(len(several))], scores, found


@pytest.fixture(scope="module")
def still(town, system) -> Learnt:
    """Where the retriever stays as it is."""
    inputs = inputs_of(town, system)
    return learnt((replace(CONDENSED, beta=0.0),), system, inputs, batch_of(inputs, town.train[:3]))


@pytest.fixture(scope="module")
def both(town, system) -> Learnt:
    """Where both models learn; where theta is stopped; and where it is, and has no cross-entropy either."""
    several = (CONDENSED, replace(CONDENSED, stop_grad_theta=True),
               replace(CONDENSED, alpha=0.0, stop_grad_theta=True))  # fmt: skip
    inputs = inputs_of(town, system)
    return learnt(several, system, inputs, batch_of(inputs, town.train[:3]))


def test_golden_classes_have_the_tokens_of_their_tags(system):
    """The table in the graph gives what `meta.metas` and `meta.tag` write."""
    cases = section("meta_knowledge")
    most = max(case["rank"] or 1 for case in cases)
    for case in cases:
        for thresholds in ("table10", "footnote"):
            rank = case["rank"] or 1
            before = [0.0] * (rank - 1)
            told = metas([*before, case["score"]], [None] * (rank - 1) + [case["name"]], case["context"],
                         negative=case["rank"] is None, thresholds=thresholds)[-1]  # fmt: skip
            behind = [0.0] * (most - rank)
            names = np.asarray([[False] * (rank - 1) + [told.old or case["rank"] is None] + [False] * len(behind)])
            scores = np.asarray([[*before, case["score"], *behind]], np.float32)
            negative = np.arange(most) == (rank - 1 if case["rank"] is None else most)
            retrieved = Retrieved(np.zeros((1, most), np.int32), scores > -9, scores, negative)
            assert int(CLASSES(retrieved, names, thresholds)[0, rank - 1]) == class_number(told)


def test_a_step_reads_what_a_plain_program_reads(town, system):
    """Log-probs given all, each and no entity, from texts that are put together on the host."""
    inputs = inputs_of(town, system)
    batch = jax.tree.map(np.asarray, batch_of(inputs, town.train[:4]))
    found = jax.tree.map(np.asarray, learnt((FEW,), system, inputs, batch).scores)
    assert found.found.each.shape[1] == 5 and found.found.retrieved.negative.tolist() == [False] * 4 + [True]
    generator, retriever = system.generator, system.retriever
    query = np.asarray(VECTORS(retriever.params, retriever.config, batch.beside["query"], COMPUTE))
    table = np.asarray(INDEX(retriever.params, retriever.config, jnp.asarray(inputs.queried), COMPUTE, 4))
    for row in range(4):
        own = batch.beside["own"][row]
        order = sorted(range(len(own)), key=lambda i: (-float(query[row] @ table[own[i]]), i))
        chosen = [*own[order[:4]], own[order[-1]]]
        assert found.found.retrieved.entities[row].tolist() == chosen
        np.testing.assert_allclose(found.found.retrieved.scores[row], query[row] @ table[chosen].T, atol=1e-5)
        texts = [(batch.beside["context"][row], inputs.read[place]) for place in chosen]
        texts.append((batch.beside["context"][row], np.full(LENGTHS.entity, -1)))
        alone = [plain(generator, [text], batch, row) for text in texts]
        kept = batch.scored[row, 0]
        for number in range(5):
            np.testing.assert_allclose(found.found.each[row, number][kept], alone[number][kept], atol=1e-4)
        np.testing.assert_allclose(found.found.without[row][kept], alone[5][kept], atol=1e-4)
        np.testing.assert_allclose(
            found.logprobs[row, 0][kept], plain(generator, texts[:5], batch, row)[kept], atol=1e-4
        )


def plain(model: Model, texts, batch, row: int) -> np.ndarray:
    """Log-probs of a response behind the encoder's states of some texts."""
    tokens = np.stack([np.concatenate(text) for text in texts])[None]
    return np.asarray(plain_logprobs(model.params, model.config, tokens, batch.tokens[row], batch.labels[row]))


@partial(jax.jit, static_argnums=1)
def plain_logprobs(params: Params, config: ModelConfig, tokens: jax.Array, inputs: jax.Array, labels: jax.Array):
    made = passages(tokens[0, :1, :0], tokens[0][None, :, :0], tokens, jnp.ones(tokens.shape[:2], bool), bare=False)
    hidden = read(params, config, made, COMPUTE)
    states = forward(params, config, inputs, encoded=together(hidden, made.exists))
    logits = jnp.einsum("btd,vd->btv", states, head_kernel(params, config), precision="highest")
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], 2)[0, :, 0]


def test_without_tags_a_prefix_is_plain_fusion_in_decoder_bit_for_bit(town, system, still):
    inputs = inputs_of(town, system)
    batch = batch_of(inputs, town.train[:3])
    bare = replace(CONDENSED, beta=0.0, order=False, confidence=False, cooccurrence=False)
    without, base = (
        scored(bare, system, inputs, batch),
        scored(replace(CONDENSED, beta=0.0, variant="ctr", gamma=0.0), system, inputs, batch),
    )
    np.testing.assert_array_equal(without.logprobs, base.logprobs)
    assert np.abs(np.asarray(still.scores.logprobs) - np.asarray(without.logprobs)).max() > 1e-4


def norm(tree: Any) -> float:
    return float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(tree)))


def test_who_learns_from_what(system, both, still):
    own = {name for name in system.joined.params if name != "companion"}
    (whole, alone, only), (without,) = both.gradients, still.gradients
    assert norm(whole["companion"]) > 0 and norm(without["companion"]) == 0
    for name in own:  # theta is stopped in the marginal likelihood: what is left is the cross-entropy's
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), alone[name], without[name])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-6), alone["companion"], whole["companion"])
    assert norm({name: only[name] for name in own}) == 0 and norm(only["companion"]) > 0


def test_an_old_index_chooses_and_new_vectors_score(town, system):
    settings = replace(CONDENSED, scale="large", top_k=3)
    inputs = inputs_of(town, system, "large")
    batch, retriever = batch_of(inputs, town.train[:3]), system.retriever
    fresh = INDEX(retriever.params, retriever.config, jnp.asarray(inputs.queried), COMPUTE)
    fresh = np.asarray(fresh)
    old = fresh[::-1]
    query = np.asarray(VECTORS(retriever.params, retriever.config, batch.beside["query"], COMPUTE))
    found = scored(settings, system, inputs, batch, memory=old).found.retrieved
    wanted = np.argsort(-(query @ old.T), axis=1, kind="stable")
    np.testing.assert_array_equal(found.entities[:, :3], wanted[:, :3])
    np.testing.assert_array_equal(found.entities[:, 3], wanted[:, -1])
    expected = np.take_along_axis(query @ fresh.T, np.asarray(found.entities), 1)
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-5)


def test_turns_with_few_entities_or_none(town, system):
    inputs, settings = inputs_of(town, system), FEW
    cut = [{**turn, "gt_db_idx": turn["gt_db_idx"][:count]} for turn, count in zip(town.train, (0, 2, 4, 7))]
    batch = batch_of(inputs, cut)
    (grads,), found, ((loss, metrics),) = learnt((settings,), system, inputs, batch)
    exists = np.asarray(found.found.retrieved.exists)
    assert exists.sum(1).tolist() == [0, 2, 4, 5] and np.isfinite(found.sequence).all()
    assert np.isfinite(divide(loss)) and float(divide(metrics["turns_with_entities"])) == 0.75
    one = batch_of(inputs, cut[:1])
    none = scored(settings, system, inputs, one)
    np.testing.assert_allclose(none.logprobs[0], found.logprobs[0], atol=1e-5)
    loss, metrics = LOSS(settings, none, Progress(jnp.int32(0), 10))
    assert float(divide(metrics["loss/mml"])) == float(divide(metrics["loss/ctr"])) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    empty = replace(inputs, knowledge=knowledge_of([], "camrest"), scale="large")
    vacant = [{**turn, "gt_db_idx": []} for turn in town.train[:1]]
    whole = answering(empty, replace(settings, scale="large"), system.joined.config, COMPUTE, 2)
    (answer,) = whole.answers(system.joined.params, turns_of(vacant, empty.knowledge, scale="large").turns)
    assert answer.entities == ()


def test_the_marginal_likelihood_starts_when_it_is_told_to(both):
    settings = replace(CONDENSED, mml_start=5)
    (before, metrics), (after, _) = (LOSS(settings, both.scores, Progress(jnp.int32(step), 10)) for step in (4, 5))
    nll, mml = (float(divide(metrics[f"loss/{name}"])) for name in ("nll", "mml"))
    np.testing.assert_allclose([float(divide(before)), float(divide(after))], [nll, nll + mml], rtol=1e-6)


def test_answers_are_the_most_probable_tokens_and_read_no_negative_entity(town, system):
    settings = replace(CONDENSED, scale="large", top_k=3)
    inputs, joined = inputs_of(town, system, "large"), system.joined
    turns = turns_of(town.train[:5], inputs.knowledge, scale="large").turns
    found = answering(inputs, settings, joined.config, COMPUTE, 2).answers(joined.params, turns)
    retriever, generator = system.retriever, system.generator
    table = INDEX(retriever.params, retriever.config, jnp.asarray(inputs.queried), COMPUTE)
    batch = batch_of(inputs, town.train[:5])
    query = VECTORS(retriever.params, retriever.config, batch.beside["query"], COMPUTE)
    wanted = np.argsort(-(np.asarray(query) @ np.asarray(table).T), axis=1, kind="stable")[:, :3]
    assert [one.entities for one in found] == [tuple(row) for row in wanted.tolist()]
    tags, texts = tag_ids(inputs.generator, tags_of(settings)), []
    for turn, one in zip(turns, found, strict=True):
        told = metas(one.scores, [inputs.knowledge.names[i] for i in one.entities], turn.context)
        texts.append([[*tags[meta], *inputs.read[i].tolist()][: LENGTHS.entity] for meta, i in zip(told, one.entities)])
    context = batch.beside["context"]
    made = passages(context, jnp.zeros((5, 3, 0), int), jnp.asarray(texts), jnp.ones((5, 3), bool), bare=False)

    @jax.jit
    def best(ids: jax.Array) -> jax.Array:
        encoded = together(read(generator.params, generator.config, made, COMPUTE), made.exists)
        states = forward(generator.params, generator.config, ids, encoded=encoded)
        return (states @ head_kernel(generator.params, generator.config).T).argmax(-1)

    ids = np.zeros((5, 4), np.int32)
    for place in range(3):
        ids[:, place + 1] = best(ids)[:, place]
    for one, row in zip(found, ids[:, 1:].tolist(), strict=True):
        row = row[: row.index(1)] if 1 in row else row
        assert one.text.startswith(inputs.generator.decode(row))


def test_pretraining_prefers_the_entity_that_a_turn_holds(town, system):
    inputs = inputs_of(town, system)
    turns = turns_of(town.train, inputs.knowledge, scale="condensed").turns
    examples, kept = inputs.queries(turns)
    assert len(examples) == len(kept) <= len(turns)
    data = Data(examples)
    batch = jax.tree.map(jnp.asarray, collate(examples, buckets_for(data.extents), shapes=data.shapes))
    objective, retriever = retriever_pretraining(0.05), system.retriever
    given = Given(jnp.asarray(inputs.queried))
    scores = jax.jit(lambda params: objective.scores(params, retriever.config, batch, COMPUTE, given))(retriever.params)
    contexts = VECTORS(retriever.params, retriever.config, batch.beside["query"], COMPUTE)
    np.testing.assert_allclose(scores.found[0], contexts, atol=1e-6)
    loss, metrics = objective.loss(scores, Progress(jnp.int32(0), 1))
    assert np.isfinite(float(divide(loss))) and 0 <= float(divide(metrics["accuracy"])) <= 1


def test_new_tokens_begin_as_the_mean_of_their_words(system):
    model = system.generator
    known = model.tokenizer.get_vocab()
    new = with_tokens(model, ("<cheap-thai>", "<sys>"))
    assert len(new.tokenizer) == len(model.tokenizer) + 1 and "<cheap-thai>" not in model.tokenizer.get_vocab()
    table = np.asarray(model.params["embed"]["embedding"])
    wanted = (table[known["cheap"]] + table[known["thai"]]) / 2
    row = new.tokenizer.convert_tokens_to_ids("<cheap-thai>")
    np.testing.assert_allclose(np.asarray(new.params["embed"]["embedding"])[row], wanted, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(new.params["embed"]["embedding"])[: len(table)], table)
    assert as_generator(new, "camrest") is new and as_retriever(system.retriever, "camrest") is system.retriever
    assert set(SETS["camrest"].marks) | set(TAGS) <= set(known)


def test_the_objective_says_what_it_needs():
    settings = OptimizerSettings(learning_rate=1e-3, weight_decay=0.01)
    whole = mktod(MktodSettings(), settings)
    assert whole.memory is not None and whole.companion == settings
    slower = mktod(MktodSettings(), replace(settings, learning_rate=1e-4))
    assert replace(slower, companion=None) == replace(whole, companion=None)  # and so they share their step
    alone = mktod(replace(CONDENSED, beta=0.0), settings)
    assert alone.memory is None and alone.companion.learning_rate == 0
