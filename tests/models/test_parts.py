"""Every choice of the parts of a model, against the layers written out one by one; float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.models import decoder
from fusion_jax.models.attention import Context
from fusion_jax.models.blocks import LayerInputs, layer_inputs
from fusion_jax.models.config import Attention, Mlp, ModelConfig, Norm, Positions, Stack
from fusion_jax.models.decoder import encode
from fusion_jax.models.parameters import init_params
from fusion_jax.ops.rotary import Rope
from fusion_jax.sampling.ids import generate_ids

pytestmark = pytest.mark.usefixtures("quick_compiler")

forward = jax.jit(decoder.forward, static_argnums=1, static_argnames=("dtype", "keep"))

WIDTH, VOCABULARY = 24, 50
ATTENTION = Attention(heads=4, kv_heads=2, head_dim=6)
STACK = Stack(3, ATTENTION, Mlp(20))
LAYER_NORM = Norm("layer", eps=1e-5, bias=True)
ROPES = (Rope(1e4), Rope(100.0, "linear", 2.0))
STACKS: dict[str, Stack] = {
    "pre": STACK,
    "post, layer norm": dataclasses.replace(STACK, norm=LAYER_NORM, residual="post"),
    "sandwich": dataclasses.replace(STACK, norm=Norm(unit_offset=True), residual="sandwich"),
    "parallel": dataclasses.replace(STACK, norm=LAYER_NORM, residual="parallel"),
    "no gate": dataclasses.replace(STACK, mlp=Mlp(20, "relu", gated=False, bias=True)),
    "heads normed": dataclasses.replace(
        STACK, attention=dataclasses.replace(ATTENTION, qk_norm=Norm(), biases="qo", scale=0.7)
    ),
    "windows and bases by layer": dataclasses.replace(STACK, windows=(3, 0, 5), ropes=(1, 0, 1)),
}


def model_of(*stacks: Stack, **more: Any) -> ModelConfig:
    return ModelConfig("none", VOCABULARY, WIDTH, Positions(64, ROPES), stacks, initializer_range=0.3, **more)


def drawn(config: ModelConfig) -> Any:
    """Random parameters, norms and biases too."""
    leaves, structure = jax.tree.flatten(init_params(config, jax.random.key(0), jnp.float64))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        structure, [x + 0.3 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)]
    )


def norm(x: Any, weights: Any, how: Norm) -> Any:
    x = x - x.mean(-1, keepdims=True) if how.kind == "layer" else x
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + how.eps)
    return x * (weights["scale"] + how.unit_offset) + weights.get("bias", 0.0)


def linear(x: Any, weights: Any) -> Any:
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def rotated(x: Any, rope: Rope) -> Any:
    """[T,H,h] at positions 0..T-1."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] / rope.factor / rope.theta ** (np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def attended(x: Any, memory: Any, weights: Any, how: Attention, mask: Any, rope: Rope | None) -> Any:
    """Rows x [T,D] over memory [S,D] where mask [T,S] allows."""
    q, k, v = (
        linear(of, weights[name]).reshape(len(of), -1, how.head_dim)
        for name, of in (("q", x), ("k", memory), ("v", memory))
    )
    if how.qk_norm is not None:
        q, k = norm(q, weights["q_norm"], how.qk_norm), norm(k, weights["k_norm"], how.qk_norm)
    if rope is not None:
        q, k = rotated(q, rope), rotated(k, rope)
    k, v = (np.repeat(one, how.heads // how.kv_heads, 1) for one in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) * (how.head_dim**-0.5 if how.scale is None else how.scale)
    scores = np.exp(np.where(mask, scores, -np.inf))
    y = np.einsum("hts,shd->thd", scores / scores.sum(-1, keepdims=True), v)
    return linear(y.reshape(len(x), -1), weights["o"])


def fed(x: Any, weights: Any, how: Mlp) -> Any:
    up = linear(x, weights["up"])
    if how.gated:
        gate = linear(x, weights["gate"])
        return linear(gate / (1 + np.exp(-gate)) * up, weights["down"])
    return linear(np.maximum(up, 0), weights["down"])


def layer(x: Any, weights: Any, stack: Stack, number: int, memory: Any) -> Any:
    far = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]
    far = far if stack.causal else abs(far)
    window = (stack.windows or (0,) * stack.layers)[number]
    mask = ((far >= 0) if stack.causal else True) & ((far < window) | (window == 0))
    rope = ROPES[(stack.ropes or (0,) * stack.layers)[number]]
    parts = {"attention": lambda y: attended(y, y, weights, stack.attention, mask, rope)}
    if stack.cross:
        seen = np.ones((len(x), len(memory)), bool)
        parts["cross"] = lambda y: attended(y, memory, weights["cross"], stack.attention, seen, None)
    parts["mlp"] = lambda y: fed(y, weights, stack.mlp)
    parts = {name: part for name, part in parts.items() if name not in stack.lacks}
    if stack.residual == "parallel" and parts:
        y = norm(x, weights["attention_norm"], stack.norm)
        return x + sum(part(y) for part in parts.values())
    for name, part in parts.items():
        before = weights[f"{name}_norm"]
        if stack.residual == "post":
            x = norm(x + part(x), before, stack.norm)
        else:
            y = part(norm(x, before, stack.norm))
            x = x + (norm(y, weights[f"{name}_post_norm"], stack.norm) if stack.residual == "sandwich" else y)
    return x


def written_out(params: Any, config: ModelConfig, tokens: Any, memory: Any = None, side: str = "layers") -> Any:
    """Hidden states [T,D] of one row."""
    params = jax.tree.map(np.asarray, params)
    x = params["embed"]["embedding"][tokens]
    for name, stack in config.stacks.items():
        for number in range(stack.layers) if name.startswith(side) else ():
            x = layer(x, jax.tree.map(lambda p, i=number: p[i], params[name]), stack, number, memory)
    return norm(x, params["final_norm" if side == "layers" else "encoder_norm"], config.final_norm)


def rows() -> Any:
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, 17))


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_of_every_kind(name, x64):
    config = model_of(STACKS[name])
    params = drawn(config)
    hidden = forward(params, config, jnp.asarray(rows()), dtype=jnp.float64)
    for found, row in zip(hidden, rows(), strict=True):
        np.testing.assert_allclose(found, written_out(params, config, row), atol=1e-5)  # the rotary tables are float32


def test_stacks_of_different_parts_follow_each_other(x64):
    """A wider first layer, as of DeepSeek: forward, cached and by decoding."""
    first = dataclasses.replace(STACK, layers=1, mlp=Mlp(48))
    second = dataclasses.replace(STACKS["windows and bases by layer"], attention=Attention(2, 1, 8))
    config = model_of(first, second)
    assert list(config.stacks) == ["layers", "layers_1"] and config.layers == 4
    check_every_way(config)


@pytest.mark.parametrize("name", ["windows and bases by layer", "sandwich", "parallel"])
@pytest.mark.parametrize("lost", [("a", "am", ""), ("m", "am", "a"), ("a", "a", "a")])
def test_layers_without_attention_or_feed_forward(name, lost, x64):
    """Attention of the first layers is gone, of the last ones, of all; a feed-forward; whole layers."""
    parts = {"a": "attention", "m": "mlp"}
    stacks = [dataclasses.replace(STACKS[name], lacks=frozenset(parts[one] for one in lacks)) for lacks in lost]
    check_every_way(model_of(*stacks))


def check_every_way(config: ModelConfig) -> None:
    """Forward against the layers written out, forward over what is kept of a part, greedy decoding."""
    params, tokens = drawn(config), jnp.asarray(rows())
    whole = forward(params, config, tokens, dtype=jnp.float64)
    for found, row in zip(whole, rows(), strict=True):
        np.testing.assert_allclose(found, written_out(params, config, row), atol=1e-5)
    _, kept = forward(params, config, tokens[:, :9], dtype=jnp.float64, keep=True)
    places = jnp.broadcast_to(jnp.arange(9), (2, 9))
    rest = jnp.broadcast_to(jnp.arange(9, 17), (2, 8))
    context = (Context(kept, places, jnp.full(2, 9)),)
    continued = forward(params, config, tokens[:, 9:], positions=rest, context=context, dtype=jnp.float64)
    np.testing.assert_allclose(continued, whole[:, 9:], atol=1e-6)
    (((ids, *_),),) = generate_ids(params, config, [rows()[0].tolist()], max_new_tokens=5, dtype=jnp.float64)
    texts = [*rows()[0].tolist(), *ids]
    hidden = forward(params, config, jnp.asarray([texts]), dtype=jnp.float64)[0]
    assert (hidden @ params["head"]["kernel"].T).argmax(-1)[16:-1].tolist() == ids


def test_an_encoder_and_attention_to_it(x64):
    """The encoder sees both directions and no padding; every layer of the decoder attends to its output."""
    encoder = dataclasses.replace(STACK, layers=2, causal=False, windows=(0, 4))
    config = model_of(dataclasses.replace(STACK, cross=True), encoder=(encoder,))
    params, tokens, lengths = drawn(config), rows(), [17, 8]
    of = jax.jit(encode, static_argnums=1, static_argnames="dtype")
    encoded = of(params, config, jnp.asarray(tokens), jnp.asarray(lengths), dtype=jnp.float64)
    hidden = forward(params, config, jnp.asarray(tokens[::-1].copy()), encoded=encoded, dtype=jnp.float64)
    for row, length in enumerate(lengths):
        memory = written_out(params, config, tokens[row, :length], side="encoder")
        np.testing.assert_allclose(encoded.hidden[row, :length], memory, atol=1e-5)
        np.testing.assert_allclose(hidden[row], written_out(params, config, tokens[1 - row], memory), atol=1e-5)


def test_cross_attention_without_an_encoder_is_refused(x64):
    config = model_of(dataclasses.replace(STACK, cross=True))
    with pytest.raises(ValueError, match="need an encoder's output"):
        forward(drawn(config), config, jnp.asarray(rows()), dtype=jnp.float64)


def test_what_differs_by_layer_compiles_nothing_anew(x64):
    config = model_of(STACKS["windows and bases by layer"])
    params, tokens = drawn(config), jnp.asarray(rows())
    traced = []

    @jax.jit
    def hidden(layers):
        traced.append(layers)
        return forward(params, config, tokens, layers=layers, dtype=jnp.float64)

    changed = dataclasses.replace(config.decoder[0], windows=(0, 5, 3), ropes=(0, 1, 1))
    for stack in (config.decoder[0], changed):
        wanted = forward(params, model_of(stack), tokens, dtype=jnp.float64)
        np.testing.assert_allclose(hidden((layer_inputs(stack),)), wanted, atol=1e-12)
    assert len(traced) == 1 and isinstance(traced[0][0], LayerInputs)


def test_windows_for_every_layer_or_for_none():
    with pytest.raises(ValueError, match="2 windows for 3 layers"):
        dataclasses.replace(STACK, windows=(1, 2))
