"""The prompt computed once for all rows of an example: the same loss and gradient as a prompt for each row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import Positions
from fusion_jax.models.decoder import forward
from fusion_jax.models.folder import Model, logits
from fusion_jax.models.parameters import init_params
from fusion_jax.ops.rotary import Rope
from fusion_jax.sampling.prompts import How, prefill
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.scores import score
from tests.small import changed
from tests.train.sharded_step import CONFIG

pytestmark = pytest.mark.usefixtures("quick_compiler")

WINDOWED = changed(CONFIG, stack={"windows": (9, 0)}, initializer_range=0.4)
PLAIN = changed(CONFIG, attention={"kv_heads": 2}, stack={"windows": (), "residual": "pre"}, model_type="llama")


def examples(prompts: tuple[int, ...]) -> list[Example]:
    rng = np.random.default_rng(1)
    out = []
    for index, size in enumerate(prompts):
        prompt = tuple(rng.integers(1, 256, size))
        rows = tuple(prompt + tuple(rng.integers(1, 256, n)) for n in rng.integers(1, 14, 3))
        out.append(Example(rows, (size,) * 3, index, reference=(-20.0, -21.0, -22.0)))
    return out


def loss_and_gradient(config, batch, shared):
    objective = objectives.wrpo(WrpoSettings(beta=1.0, dynamic=False))

    def loss(params):
        return objective.loss(
            score(params, config, batch, Compute(shared_prompt=shared)), Progress(jnp.zeros((), jnp.int32), 4)
        )[0].total

    return jax.jit(jax.value_and_grad(loss))(init_params(config, jax.random.key(0)))


@pytest.mark.parametrize(
    "config", [WINDOWED, pytest.param(PLAIN, marks=pytest.mark.slow)], ids=["windows and caps", "plain"]
)
def test_same_loss_and_gradient(config):
    """Prompts of unequal length, one of a single token, against prompts for each row and against whole rows."""
    many = examples((30, 17, 1, 6))
    batch = collate(many, buckets_of(many))
    assert batch.prompts.shape == (4, 32) and list(batch.prompt_lengths) == [29, 16, 0, 5]
    value, gradient = loss_and_gradient(config, batch, True)
    for other in (loss_and_gradient(config, batch, False), _by_whole_rows(config, many)):
        np.testing.assert_allclose(other[0], value, rtol=1e-6)
        scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other[1]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6 * scale)


def _by_whole_rows(config, many):
    """Each row as an example of its own, from its first token on: nothing is shared and nothing is left out."""
    width = 64
    tokens, labels = np.zeros((2, len(many), 3, width), np.int32)
    scored = np.zeros(tokens.shape, bool)
    for b, example in enumerate(many):
        for g, row in enumerate(example.rows):
            tokens[b, g, : len(row) - 1], labels[b, g, : len(row) - 1] = row[:-1], row[1:]
            scored[b, g, max(example.starts[g], 1) - 1 : len(row) - 1] = True
    batch = collate(many, buckets_of(many))._replace(
        prompts=np.zeros((len(many), 0), np.int32), prompt_lengths=np.zeros(len(many), np.int32), tokens=tokens,
        labels=labels, positions=np.broadcast_to(np.arange(width), tokens.shape), groups=scored.astype(np.uint8),
    )  # fmt: skip
    return loss_and_gradient(config, batch, True)


@pytest.mark.parametrize("kernel", ["xla", "splash-interpreted"])
def test_a_window_wider_than_prompt_and_answer_cuts_nothing(kernel):
    """Mistral's window between a prompt with its answer and the row of all answers, by answers in rows of their own."""
    config = changed(PLAIN, stack={"windows": (90, 90)}, model_type="mistral", initializer_range=0.4)
    many = [dataclasses.replace(e, rows=tuple((*row, *range(1, 30)) for row in e.rows)) for e in examples((20, 9))]
    batch = collate(many, buckets_of(many))
    prompt, rest = batch.prompts.shape[1], batch.tokens.shape[2]
    assert prompt + rest < 90 < prompt + 3 * rest
    params = init_params(config, jax.random.key(0))
    found = jax.jit(lambda params: score(params, config, batch, Compute(kernel=kernel)).sequence)(params)
    flat = [Example((row,), (start,), e.index) for e in many for row, start in zip(e.rows, e.starts)]
    unlimited, alone = changed(config, stack={"windows": ()}), collate(flat, buckets_of(flat))
    wanted = jax.jit(lambda params: score(params, unlimited, alone, Compute()).sequence)(params)
    np.testing.assert_allclose(found, wanted.reshape(found.shape), rtol=2e-6)


@pytest.mark.slow
def test_padding_beyond_the_positions_of_a_model_turns_nothing():
    """`dynamic` rotary scaling goes by the longest row; a row that fills all positions is padded to more of them."""
    rope = Rope(kind="dynamic", factor=4.0)
    config = dataclasses.replace(PLAIN, positions=Positions(50, (rope,)), initializer_range=0.4)
    row = tuple(np.random.default_rng(0).integers(1, 256, 51).tolist())
    params, batch = init_params(config, jax.random.key(0)), collate(one := [Example((row,), (9,))], buckets_of(one))
    assert batch.prompts.shape[1] + batch.tokens.shape[2] > 50
    model = Model(config, params)
    rows = jnp.asarray([row[:-1]])
    logprobs = np.asarray(jax.jit(lambda rows: jax.nn.log_softmax(logits(model, rows)[0]))(rows))
    wanted = logprobs[np.arange(8, 50), row[9:]].sum()
    found = jax.jit(lambda params: score(params, config, batch, Compute()).sequence)(params)
    np.testing.assert_allclose(found[0, 0], wanted, rtol=1e-5)
    hidden = prefill(How(config, jnp.dtype("float32"), None))(params, *_padded(row[:50], 64)).last
    wanted = jax.jit(forward, static_argnums=1)(params, config, rows)[:, -1]
    np.testing.assert_allclose(hidden, wanted, rtol=1e-4, atol=1e-5)


def test_padding_beyond_the_original_length_of_longrope_turns_nothing():
    """Rows of 18 and of 25 tokens in one batch: the factors for texts beyond 20 tokens are the second one's alone."""
    rope = Rope(
        kind="longrope", factor=2.0, original_max_positions=20, short_factors=(1.0, 1.2) * 2, long_factors=(3.0, 5.0) * 2
    )
    config = dataclasses.replace(PLAIN, positions=Positions(64, (rope,)), initializer_range=0.4)
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(1, 256, size).tolist()) for size in (18, 25)]
    many = [Example((row,), (9,), index) for index, row in enumerate(rows)]
    params, batch = init_params(config, jax.random.key(0)), collate(many, buckets_of(many))
    found = jax.jit(lambda params: score(params, config, batch, Compute()).sequence)(params)
    how = How(config, jnp.dtype("float32"), None)
    siblings = [Example((rows[0], rows[0][:9] + rows[1][9:]), (9, 9))]  # one on each side, behind one prompt
    together = collate(siblings, buckets_of(siblings))
    apart = [Example((row,), (9,)) for row in siblings[0].rows]
    shared = jax.jit(lambda params: score(params, config, together, Compute()).sequence)(params)
    single = jax.jit(lambda params: score(params, config, collate(apart, buckets_of(apart)), Compute()).sequence)(params)
    np.testing.assert_allclose(shared[0], single[:, 0], rtol=1e-5)
    for row, value in zip(rows, found[:, 0], strict=True):
        alone = jnp.asarray([row[:-1]])
        logprobs = np.asarray(jax.nn.log_softmax(logits(Model(config, params), alone)[0]))
        np.testing.assert_allclose(value, logprobs[np.arange(8, len(row) - 1), row[9:]].sum(), rtol=1e-5)
        hidden = prefill(how)(params, *_padded(row[:-1], 32)).last
        np.testing.assert_allclose(hidden, forward(params, config, alone)[:, -1], rtol=1e-4, atol=1e-5)


def _padded(row, width):
    return jnp.asarray([[*row, *[0] * (width - len(row))]]), jnp.asarray([len(row)])
