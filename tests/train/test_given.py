"""What a training step reads besides weights and tokens: further arrays, frozen models, memory, dropout, a companion."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from fusion_jax.data.batches import Data, Example, buckets_for, collate
from fusion_jax.jsonl import read_jsonl
from fusion_jax.losses import weighted
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import Head
from fusion_jax.models.decoder import encode, encoded_states, forward, gathered, projected
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.layers import Noise
from fusion_jax.models.parameters import init_params, parameter_specs
from fusion_jax.sharding import make_mesh
from fusion_jax.store.run_folder import RunFolder
from fusion_jax.train import objectives
from fusion_jax.train import optimise as optimise_module
from fusion_jax.train.batching import step_batch
from fusion_jax.train.objective import Memory, Objective
from fusion_jax.train.optimise import optimise
from fusion_jax.train.reference import examples_fingerprint
from fusion_jax.train.scores import score
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import COMPANION, OptimizerSettings, TrainState, make_optimizer, paces, state_shardings
from tests.small import small_model

pytestmark = pytest.mark.usefixtures("quick_compiler")
# As programs: one by one their operations take longer to compile.
SCORE = jax.jit(score, static_argnums=(1, 3))
ENCODE, STATES, FORWARD = (jax.jit(read, static_argnums=1) for read in (encode, encoded_states, forward))
GATHERED, INIT = jax.jit(gathered), jax.jit(init_params, static_argnums=0)
BART = {
    "model_type": "bart", "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 32, "decoder_start_token_id": 2,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 32,
}  # fmt: skip
TRAIN = TrainSettings(
    OptimizerSettings(learning_rate=1e-2, warmup_ratio=0.0), batch_size=4, micro_batches=2, log_every=1, compute_dtype="float32",
    remat="none", epochs=2.0, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def folder(path: Path) -> RunFolder:
    path.mkdir()
    return RunFolder(path, Console(quiet=True))


def examples(count: int = 8) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(
            (tuple(rng.integers(3, 30, 6 + i % 3).tolist()),), (2,), i,
            beside={"wanted": rng.integers(0, 9, 2 + i % 4), "numbers": rng.random((2, 1 + i % 2)), "is": np.ones(1, bool)},
        )
        for i in range(count)
    ]  # fmt: skip


def test_arrays_beside_rows_have_one_shape_in_all_batches():
    data = Data(examples())
    assert data.shapes == {"wanted": (5,), "numbers": (2, 2), "is": (1,)}
    batch = collate(data.examples[:2], buckets_for(data.extents), shapes=data.shapes)
    first = data.examples[0].beside
    assert batch.beside["wanted"].shape == (2, 5) and batch.beside["wanted"].dtype == np.int32
    assert batch.beside["wanted"][0].tolist() == [*first["wanted"].tolist(), -1, -1, -1]
    assert batch.beside["numbers"][0, :, 1].tolist() == [0, 0] and batch.beside["is"].dtype == bool
    changed = [replace(data.examples[0], beside=first | {"wanted": first["wanted"] + 1}), *data.examples[1:]]
    assert examples_fingerprint(changed) != examples_fingerprint(data.examples)


def test_dropout_is_that_of_an_example_wherever_it_stands(model):
    data, micro = Data(examples()), np.arange(8).reshape(2, 4)
    whole = step_batch(data, micro, buckets_for(data.extents), None, drawn_from=(3, 7))
    other = step_batch(data, micro[:, ::-1], buckets_for(data.extents), None, drawn_from=(3, 7))
    later = step_batch(data, micro, buckets_for(data.extents), None, drawn_from=(3, 8))
    assert whole.noise.shape == (2, 4) and len(set(whole.noise.ravel().tolist())) == 8
    assert (whole.noise == other.noise[:, ::-1]).all() and (whole.noise != later.noise).all()
    compute = Compute(dropout=0.3)
    rows, mixed = (jax.tree.map(lambda x: np.asarray(x[0]), b) for b in (whole, other))
    found, again = (np.asarray(SCORE(model.params, model.config, b, compute).sequence) for b in (rows, mixed))
    np.testing.assert_allclose(found, again[::-1], rtol=1e-6)
    plain = np.asarray(SCORE(model.params, model.config, rows._replace(noise=None), compute).sequence)
    assert np.abs(found - plain).min() > 1e-4
    np.testing.assert_array_equal(plain, SCORE(model.params, model.config, rows, Compute()).sequence)


def test_dropout_is_of_tokens_and_of_what_each_part_adds():
    config = config_from_hf(BART)
    params = INIT(config, jax.random.key(0))
    tokens, lengths = np.broadcast_to(np.arange(3, 9, dtype=np.int32), (2000, 6)), np.full(2000, 6, np.int32)
    keys = np.random.default_rng(1).integers(-(2**31), 2**31 - 1, 2000, np.int32)
    shallow = params | {"encoder": jax.tree.map_with_path(
        lambda path, x: np.ones_like(x) if path[-1].key == "scale" else np.zeros_like(x), params["encoder"]
    )}  # fmt: skip
    gone = ENCODE(shallow, config, tokens, lengths, noise=Noise(keys, source_rate=0.5)).hidden
    without = shallow | {"embed": {"embedding": np.zeros_like(params["embed"]["embedding"])}}
    empty = np.asarray(ENCODE(without, config, tokens[:2], lengths[:2]).hidden)[0]
    assert abs(np.isclose(gone, empty, atol=1e-6).all(-1).mean() - 0.5) < 0.02

    def decoded(rate: float, weights: dict) -> np.ndarray:
        encoded = ENCODE(weights, config, tokens[:2], lengths[:2])
        return np.asarray(FORWARD(weights, config, tokens[:2], encoded=encoded, noise=Noise(keys[:2], rate)))

    encoded = ENCODE(params, config, tokens[:2], lengths[:2])
    still = np.asarray(FORWARD(params, config, tokens[:2], encoded=encoded))
    np.testing.assert_array_equal(decoded(0.0, params), still)
    first = decoded(0.4, params)
    assert np.abs(first - still).max() > 0.01 and np.abs(first[0] - first[1]).max() > 0.01
    # What a layer's part adds is dropped anew in each layer: two layers alike add something else.
    alike = params | {"layers": jax.tree.map(lambda x: np.stack([x[0], x[0]]), params["layers"])}
    assert np.abs(decoded(0.4, alike) - decoded(0.4, params)).max() > 0


def test_padding_between_tokens_keeps_their_places():
    config = config_from_hf(BART)
    params = INIT(config, jax.random.key(0))
    tokens, changed = np.asarray([[5, 6, 7, 8, 9, 10], [5, 6, 33, 8, 1, 10]], np.int32)[:, None]
    exists = np.asarray([[True, True, False, True, False, True]])
    one, other = (np.asarray(STATES(params, config, t, exists)) for t in (tokens, changed))
    np.testing.assert_allclose(one[exists], other[exists], rtol=1e-6)
    whole = GATHERED(one, exists)
    assert whole.lengths.tolist() == [4]
    np.testing.assert_array_equal(np.asarray(whole.hidden)[0, :4], one[0, [0, 1, 3, 5]])
    rows = np.asarray([[2, 4, 6]], np.int32)
    seen = FORWARD(params, config, rows, encoded=whole)
    mixed = GATHERED(one[:, ::-1], exists[:, ::-1])
    np.testing.assert_allclose(seen, FORWARD(params, config, rows, encoded=mixed), atol=1e-5)
    plain = ENCODE(params, config, tokens[:, :4], np.asarray([3], np.int32))
    np.testing.assert_allclose(
        plain.hidden[:, :3], STATES(params, config, tokens, np.arange(6)[None] < 3)[:, :3], rtol=1e-5
    )


def test_a_projected_text_has_length_one():
    config = replace(config_from_hf(BERT), head=Head(projected=4))
    params = INIT(config, jax.random.key(0))
    hidden = ENCODE(params, config, np.asarray([[3, 4, 5], [6, 7, 0]]), np.asarray([3, 2])).hidden
    vectors = jax.jit(projected, static_argnums=1)(params, config, hidden)
    assert vectors.shape == (2, 4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-6)
    part = jax.tree.map(np.asarray, params["projection"])
    by_hand = np.tanh(np.asarray(hidden)[:, 0] @ part["kernel"] + part["bias"])
    np.testing.assert_allclose(vectors, by_hand / np.linalg.norm(by_hand, axis=-1, keepdims=True), rtol=1e-5)


def of_optax(s: OptimizerSettings, num_steps: int) -> optax.GradientTransformation:
    """The same with the schedule inside."""

    def decayed(params):
        return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)

    adamw = optax.adamw(s.rate(num_steps), s.beta1, s.beta2, s.eps, weight_decay=s.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(s.clip_norm), adamw)


def test_a_companion_has_an_optimizer_of_its_own():
    """Each side moves as optax's own chain moves it alone, clipped by its own norm."""
    model, beside = small_model(), config_from_hf(BERT)
    config = replace(model.config, companion=beside)
    assert parameter_specs(config)["companion"].keys() == parameter_specs(beside).keys()
    params = model.params | {"companion": init_params(beside, jax.random.key(1))}
    own = OptimizerSettings(learning_rate=1e-2, clip_norm=0.5, weight_decay=0.1)
    other = OptimizerSettings(learning_rate=1e-3)
    both, grads = make_optimizer(own, other), jax.tree.map(jnp.ones_like, params)
    pace = paces(own, 10, other)
    updates, state = both.update(grads, both.init(params), params, pace=pace(0))
    updates, state = both.update(grads, state, params, pace=pace(1))
    for side, settings, mine in ((model.params, own, state[0]), (params["companion"], other, state[1])):
        alone, ones = of_optax(settings, 10), jax.tree.map(jnp.ones_like, side)
        moved, kept = alone.update(ones, alone.init(side), side)
        moved, kept = alone.update(ones, kept, side)
        told = [jax.tree.map(lambda x: (x.shape, x.dtype), one) for one in (kept, mine)]
        assert told[0] == told[1]  # so that older checkpoints are read
        found = {k: updates[k] for k in side} if side is model.params else updates["companion"]
        jax.tree.map(np.testing.assert_array_equal, found, moved)
    assert float(optax.tree.norm(updates["companion"])) > 0


@functools.cache
def remembering(every: int) -> Objective:
    """Cross-entropy whose weight is what the weights' sum was when the memory was made; arrays shift it."""

    def scores(params, config, batch, compute, given):
        found = score(params, config, batch, compute)
        return found._replace(reference=jnp.broadcast_to(given.memory + given.arrays, found.sequence.shape))

    def loss(scores, progress):
        return weighted(-scores.sequence[:, 0], scores.weights), {
            "memory": weighted(scores.reference[:, 0], scores.weights)
        }

    def make(params, config, arrays, compute):
        return params["embed"]["embedding"].astype(jnp.float32).sum()

    return Objective("remembering", ("response",), loss, scores=scores, memory=Memory(make, every))


def stopped(monkeypatch, train, step: int) -> None:
    """Stop a training as the metrics of a step are to be written; what was saved before it is all that is left."""
    write = optimise_module.append_metrics

    def stop(run, line):
        if line["step"] == step:
            raise KeyboardInterrupt
        write(run, line)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(optimise_module, "append_metrics", stop)
        train()


def test_memory_is_made_every_few_steps_and_resumes(model, tmp_path, monkeypatch):
    data = Data(examples())

    def trained(run: RunFolder, every: int = 2):
        optimise(model, data, remembering(every), TRAIN, run, arrays=jnp.float32(3.0))
        return read_jsonl(run.file("metrics.jsonl"))

    whole = trained(folder(tmp_path / "whole"))
    seen = [round(line["memory"], 5) for line in whole]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert seen[0] == pytest.approx(float(model.params["embed"]["embedding"].sum()) + 3, abs=1e-4)
    always = trained(folder(tmp_path / "always"), 1)
    assert len({round(line["memory"], 6) for line in always}) == 4
    assert [line["loss"] for line in always] == [line["loss"] for line in whole]
    again = folder(tmp_path / "again")
    stopped(monkeypatch, lambda: trained(again, 3), 2)
    assert trained(again, 3) == trained(folder(tmp_path / "three"), 3)


def test_training_with_dropout_resumes_bit_for_bit(model, tmp_path, monkeypatch):
    data, train = Data(examples()), replace(TRAIN, dropout=0.2)
    whole = optimise(model, data, objectives.sft(), train, folder(tmp_path / "whole"))
    again = folder(tmp_path / "again")
    stopped(monkeypatch, lambda: optimise(model, data, objectives.sft(), train, again), 2)
    resumed = optimise(model, data, objectives.sft(), train, again)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    plain = optimise(model, data, objectives.sft(), TRAIN, folder(tmp_path / "plain"))
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), whole.params, plain.params)))


def test_the_best_state_by_what_is_measured(model, tmp_path):
    """Without held-out examples; of the kept states the one with the highest measure is the result."""
    data, seen = Data(examples()), list[float]()

    def measured(params) -> dict[str, float]:
        seen.append(float(params["embed"]["embedding"].astype(jnp.float32).sum()))
        return {"eval_f1": 1.0 if len(seen) == 1 else 0.5}

    train = replace(TRAIN, eval_every=2, best_of=3)
    run = folder(tmp_path / "run")
    best = optimise(model, data, objectives.sft(), train, run, measured=measured, best_by="eval_f1")
    logged = [line["eval_f1"] for line in read_jsonl(run.file("metrics.jsonl")) if "eval_f1" in line]
    assert logged == [1.0, 0.5] and len(seen) == 2
    assert float(best.params["embed"]["embedding"].sum()) == pytest.approx(seen[0], abs=1e-4)


def test_moments_lie_where_the_parameters_of_their_own_model_lie():
    """Also where a companion's tree is like the model's, and only its arrays have other shapes."""
    mesh = make_mesh(1, 1, 1)
    own, beside = NamedSharding(mesh, PartitionSpec("tensor")), NamedSharding(mesh, PartitionSpec(None, "tensor"))
    params = {"kernel": jnp.ones((4, 2)), COMPANION: {"kernel": jnp.ones((2, 4))}}
    settings = OptimizerSettings(1e-3)
    optimizer = make_optimizer(settings, settings)
    state = TrainState(0, False, params, optimizer.init(params))
    placed = state_shardings(state, {"kernel": own, COMPANION: {"kernel": beside}}, mesh)
    moments = [m for m in jax.tree.leaves(placed.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(m, "mu")]
    assert [m.mu for m in moments] == [{"kernel": own}, {"kernel": beside}]
