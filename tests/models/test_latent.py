"""Latent attention: what is kept of a token, and that reading it gives what keys and values of every head give."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.batches import buckets_of, collate
from fusion_jax.models.attention import Context
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decode import nothing_kept
from fusion_jax.models.decoder import forward
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params, key_heads
from fusion_jax.ops.splash import LANES
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.train.scores import score
from tests.parity.checkpoints import CONFIGS, SMALL
from tests.quick import FAST
from tests.train.test_shared_prompt import examples

pytestmark = pytest.mark.usefixtures("quick_compiler")


def config_of(**changes) -> ModelConfig:
    family, options = CONFIGS["deepseek-v2"]
    return config_from_hf({"model_type": family, **SMALL, **options, "num_hidden_layers": 2, **changes})


def test_latents_as_keys_and_values_give_what_those_of_every_head_give(x64):
    """The second half of the texts over what is kept of the first, two continuations of each; float64."""
    config = config_of()
    params = init_params(config, jax.random.key(0), jnp.float64)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 24)))
    run = jax.jit(partial(forward, config=config, dtype=jnp.float64), static_argnames="keep", compiler_options=FAST)
    whole, kept = run(params, tokens=tokens, keep=True)
    places = jnp.broadcast_to(jnp.arange(24), (2, 24))
    rest, positions = (jnp.repeat(x[:, 12:], 2, 0) for x in (tokens, places))
    context = (Context(kept, places, jnp.full(2, 12)),)
    continued = run(params, tokens=rest, positions=positions, context=context)
    for copy in range(2):
        np.testing.assert_allclose(continued[copy::2], whole[:, 12:], atol=1e-10)


def test_the_cache_holds_latents_and_rotary_keys_alone():
    """24 numbers of a token and layer, where keys and values of 4 heads would be 120."""
    config = config_of()
    kept = nothing_kept(config, 3, 50, jnp.bfloat16)
    bytes_kept = [sum(x.nbytes for x in jax.tree.leaves(one)) for one in kept]
    assert bytes_kept == [2 * 3 * 50 * (16 + 8)] * 2
    attention = config.decoder[0].attention
    assert attention.heads * (attention.head_dim + attention.value_dim) == 120
    abstract = jax.eval_shape(
        lambda p, t: forward(p, config, t, keep=True)[1],
        init_params(config, jax.random.key(0)), jax.ShapeDtypeStruct((3, 50), jnp.int32),
    )  # fmt: skip
    assert [x.shape for x in jax.tree.leaves(abstract)] == [(1, 3, 1, 50, 24)] * 2
    assert key_heads(config) == 4  # the queries' heads divide over devices; each of them has all latents


def test_rows_that_share_a_prompt():
    """The prompt's latents once for three continuations: the log-probs of rows with a prompt each, and of splash."""
    config = config_of(vocab_size=256, max_position_embeddings=256)
    params, many = init_params(config, jax.random.key(0)), examples((30, 17, 1))
    batch = jax.tree.map(jnp.asarray, collate(many, buckets_of(many)))

    def logprobs(**how):
        return jax.jit(lambda p, b: score(p, config, b, Compute(**how)).logprobs, compiler_options=FAST)(params, batch)

    apart = logprobs(shared_prompt=False)
    np.testing.assert_allclose(logprobs(), apart, atol=2e-5)
    assert config.decoder[0].attention.head_dim < LANES  # which the kernel fills up, keys and values on their own
    np.testing.assert_allclose(logprobs(kernel="splash-interpreted"), apart, atol=2e-5)


@pytest.mark.slow
def test_samples_of_one_prompt_read_its_latents():
    """Greedy, every sample of a prompt is that of the prompt alone."""
    config = config_of()
    params = init_params(config, jax.random.key(0))
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12]]
    together = generate_ids(params, config, prompts, max_new_tokens=6, num_samples=3)
    for prompt, samples in zip(prompts, together, strict=True):
        ((alone,),) = generate_ids(params, config, [prompt], max_new_tokens=6)
        assert [one.ids for one in samples] == [alone.ids] * 3
