"""The copy mechanism against the published numbers and a dense softmax, values and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fusion_jax.ops.copying import copied_logits, copied_logprobs, copy_gate
from tests.ops.sharded_ops import largest

(CASE,) = json.loads((Path(__file__).parents[1] / "golden" / "alirector.json").read_text())["copy_mechanism"]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
PUBLISHED = {"rtol": 0, "atol": 2e-6}  # written with six decimals


def published() -> tuple[jax.Array, ...]:
    """attention [1,2,4], encoded [1,4,3], states [1,2,3], sources [1,4], all of which exist, and logits [1,2,6]."""
    attention = jnp.asarray(CASE["last_layer_cross_attention_per_head"]).mean(0)[None]
    encoded, states = (jnp.asarray(CASE[name])[None] for name in ("encoder_states", "decoder_states"))
    sources = jnp.asarray(CASE["source_ids"])[None]
    return attention, encoded, states, sources, jnp.asarray(CASE["lm_logits"])[None]


def test_golden_gate(x64):
    attention, encoded, states, _, _ = published()
    gate = copy_gate(attention, encoded, states, jnp.asarray(CASE["gate_weight"]), jnp.asarray(CASE["gate_bias"]))
    np.testing.assert_allclose(gate[0], CASE["p_gen"], **PUBLISHED)


def test_golden_logits_and_logprobs(x64):
    """Logits as states under the identity; every entry of the vocabulary as a label in turn."""
    attention, _, _, sources, logits = published()
    gate, exists = jnp.asarray(CASE["p_gen"])[None], jnp.ones((1, 4), bool)
    mixed = copied_logits(logits[0], gate[0], attention[0], sources, exists)
    np.testing.assert_allclose(mixed, CASE["mixed_logits"], **PUBLISHED)
    scores = copied_logits(logits[0], jnp.zeros(2), attention[0], sources, exists)
    np.testing.assert_allclose(scores, CASE["copy_scores"], **PUBLISHED)
    expected = torch.log_softmax(torch.tensor(CASE["mixed_logits"], dtype=torch.float64), -1)
    labels = jnp.broadcast_to(jnp.arange(6)[:, None], (6, 2))
    every = jax.tree.map(lambda x: jnp.repeat(x, 6, 0), (gate, attention, sources, exists))
    found = jax.jit(lambda z: copied_logprobs(z, jnp.eye(6), *every, labels, chunk=4))(jnp.repeat(logits, 6, 0))
    np.testing.assert_allclose(found.T, expected, **PUBLISHED)


def inputs(dtype: Any, vocab: int = 40, scale: float = 1.0) -> tuple[Any, ...]:
    """(hidden, kernel, gate, attention), (sources with repeats, exists, labels of which some are sources), weights."""
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(3, 5, 8)) * scale, rng.normal(size=(vocab, 8))
    gate, attention = rng.uniform(size=(3, 5)), rng.dirichlet(np.ones(7), (3, 5))
    sources = rng.integers(0, 6, (3, 7))
    exists = np.arange(7) < np.asarray([[7], [4], [1]])
    labels = rng.integers(0, 12, (3, 5))
    floats = tuple(jnp.asarray(x, dtype) for x in (hidden, kernel, gate, attention))
    return (
        floats,
        (jnp.asarray(sources), jnp.asarray(exists), jnp.asarray(labels)),
        jnp.asarray(rng.normal(size=(3, 5)), dtype),
    )


def dense(hidden: Any, kernel: Any, gate: Any, attention: Any, sources: Any, exists: Any, labels: Any) -> Any:
    spread = jax.nn.one_hot(sources, kernel.shape[0], dtype=hidden.dtype) * exists[..., None]
    logits = gate[..., None] * (hidden @ kernel.T) + (1 - gate[..., None]) * attention @ spread
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


@pytest.mark.parametrize("chunk, shards", [(7, 1), (16, 2), (100, 1)])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_values_and_gradients_are_the_dense_ones(x64, chunk, shards, scale):
    floats, given, weights = inputs(jnp.float64, scale=scale)

    def both(fn: Any) -> Any:
        def total(*floats: Any) -> Any:
            found = fn(*floats)
            return (weights * found).sum(), found

        return jax.tree.leaves(jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(*floats))

    expected = both(lambda *floats: dense(*floats, *given))
    found = both(lambda *floats: copied_logprobs(*floats, *given, vocab_shards=shards, chunk=chunk))
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, **EXACT)


def test_float32_and_large_logits():
    floats, given, _ = inputs(jnp.float32, scale=1e3)
    found = jax.jit(lambda *floats: copied_logprobs(*floats, *given, chunk=9))(*floats)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in floats]
        expected = jax.jit(lambda *floats: dense(*floats, *given))(*wide)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_the_program_holds_no_array_of_all_logits():
    rng = np.random.default_rng(0)
    rows, vocab = (4, 64), 4096
    hidden, kernel = jnp.asarray(rng.normal(size=(*rows, 8))), jnp.asarray(rng.normal(size=(vocab, 8)))
    gate, attention = jnp.full(rows, 0.5), jnp.full((*rows, 32), 1 / 32)
    ids, exists = jnp.asarray(rng.integers(0, vocab, (4, 32))), jnp.ones((4, 32), bool)

    def total(*floats: Any) -> Any:
        return copied_logprobs(*floats, ids, exists, jnp.zeros(rows, jnp.int32), chunk=256).sum()

    program = jax.jit(jax.grad(total, (0, 1, 2, 3))).lower(hidden, kernel, gate, attention).compile()
    assert largest(program.as_text()) < np.prod(rows) * vocab
