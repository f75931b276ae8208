"""The splash kernel, interpreted, against the reference attention: values and gradients in float32."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.ops.attention import attention
from fusion_jax.ops.kernels import Visible
from fusion_jax.ops.splash import TreeMask, splash_attention, takes
from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")

HEADS, KV_HEADS, DIM = 2, 1, 128
HOW = {"scale": DIM**-0.5}


def drawn(rng, rows, tokens):
    return [jnp.asarray(rng.normal(size=(rows, tokens, n, DIM)), jnp.float32) for n in (HEADS, KV_HEADS, KV_HEADS)]


def assert_same(ours, theirs, inputs, seen):
    """Where `seen` [B,T] says, values; and the gradients of a fixed random projection of them."""
    toward = np.random.default_rng(9).normal(size=inputs[0].shape).astype(np.float32) * seen[..., None, None]

    def results(attend):
        out, pull = jax.vjp(attend, *inputs)
        return out * seen[..., None, None], *pull(jnp.asarray(toward))

    for a, b in zip(jax.jit(lambda: results(ours))(), jax.jit(lambda: results(theirs))(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("window", "windows", "soft_cap"), [(0, (), None), (40, (40,), 2.0), (40, (0, 40), None), (0, (0, 40), None)]
)
def test_segments_windows_and_caps(window, windows, soft_cap):
    """200 tokens: not whole tiles, so that the row is filled."""
    rng = np.random.default_rng(0)
    inputs = drawn(rng, 2, 200)
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (2, 200)), 1))
    positions = jnp.broadcast_to(jnp.arange(200), (2, 200))
    visible = Visible(positions, segments, window=jnp.asarray(window), windows=windows)
    known = Visible(positions, segments, window=window)
    assert_same(
        lambda *qkv: splash_attention(*qkv, visible, soft_cap=soft_cap, interpret=True, **HOW),
        lambda *qkv: attention(*qkv, known, soft_cap=soft_cap, **HOW),
        inputs,
        np.ones((2, 200)),
    )


@pytest.mark.parametrize(("size", "count", "rest"), [(70, 2, 50), (128, 1, 100)])
def test_continuations_of_one_prompt(size, count, rest):
    rng = np.random.default_rng(1)
    tokens = size + count * rest
    inputs = drawn(rng, 2, tokens)
    lengths = jnp.asarray([size, size // 3])
    seen = (np.arange(tokens) < np.asarray(lengths)[:, None]) | (np.arange(tokens) >= size)
    visible = Visible(jnp.zeros((2, tokens), int), prompt_lengths=lengths, branches=(size, count))
    assert_same(
        lambda *qkv: splash_attention(*qkv, visible, interpret=True, **HOW),
        lambda *qkv: attention(*qkv, visible, **HOW),
        inputs,
        seen,
    )


@pytest.mark.slow
def test_a_training_step_on_a_mesh_of_eight_devices():
    """Rows over data and fsdp, heads over tensor; the prompts shared; the residual stream offloaded."""
    script = Path(__file__).with_name("sharded_splash.py")
    apart = json.loads(finished([str(script)], os.environ | virtual_devices(8)))
    assert apart["loss"] < 1e-5 and apart["gradient"] < 1e-5, apart


def test_a_tree_mask_leaves_out_other_branches():
    mask = TreeMask(8, prompt=2, branch=3)
    seen = mask[slice(0, 8), slice(0, 8)]
    assert [np.flatnonzero(row).tolist() for row in seen] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 5], [0, 1, 5, 6], [0, 1, 5, 6, 7],
    ]  # fmt: skip


def test_what_is_left_to_the_reference():
    place, lengths = jnp.arange(300)[None], jnp.ones(1, int)
    assert takes(Visible(place, windows=(0, 40)))
    assert takes(Visible(place, prompt_lengths=lengths, windows=(0, 200), branches=(100, 2)))
    assert not takes(Visible(place, prompt_lengths=lengths, windows=(150,), branches=(100, 2)))
    assert not takes(Visible(place, causal=False))


def test_heads_smaller_than_a_tile_are_filled():
    """As those of Llama-3.2-1B and Qwen2.5-0.5B."""
    inputs = [x[..., :64] for x in drawn(np.random.default_rng(2), 1, 130)]
    visible = Visible(jnp.arange(130)[None])
    assert_same(
        lambda *qkv: splash_attention(*qkv, visible, scale=64**-0.5, interpret=True),
        lambda *qkv: attention(*qkv, visible, scale=64**-0.5),
        inputs,
        np.ones((1, 130)),
    )
