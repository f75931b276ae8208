"""Useful FLOPs of a program: what the mathematics needs, whatever is recomputed.

A forward pass takes 2 FLOPs a matmul parameter and token (the embedding is read, not multiplied; the head serves the
tokens behind the prompt alone) and 4 x heads x head_dim a layer and pair of a query and a key that it sees (causal:
half of T x T); training takes three forward passes, which gives 6 x parameters x tokens + 6 x layers x heads x head_dim
x T x tokens for plain rows; a reference inside the step takes one more. A prompt that rows share counts once.
"""

from __future__ import annotations

import math

import jax

from fusion_jax.models.attention import flops_of_kept_pairs, flops_of_pairs
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.parameters import ParamSpec, layer_specs, numbers_of, parameter_specs
from fusion_jax.ops.splash import layer_masks


def row_tokens(prompt: int, tokens: int, groups: int, shared: bool) -> int:
    """Tokens of an example that the model computes."""
    return groups * tokens + prompt * (1 if shared else groups)


def forward_flops(config: ModelConfig, prompt: int, tokens: int, groups: int, shared: bool) -> float:
    """FLOPs of the forward pass of one example: `groups` rows of `tokens` behind `prompt` tokens, which the encoder
    reads where the model has one."""
    if config.encoder:
        return _encoded_flops(config, prompt, tokens, groups)
    copies = 1 if shared else groups
    body = 2.0 * body_parameters(config) * row_tokens(prompt, tokens, groups, shared)
    head = 2.0 * head_parameters(config) * groups * tokens
    attention = 0.0
    for stack in _attending(config):
        for window in stack.windows or (0,) * stack.layers:
            before, whole = _causal(prompt, window), _causal(prompt + tokens, window)
            attention += flops_of_pairs(stack.attention) * (copies * before + groups * (whole - before))
    return body + head + attention


def _encoded_flops(config: ModelConfig, prompt: int, tokens: int, groups: int) -> float:
    """The encoder over the prompt, all of which each of its tokens sees; of a decoder's layers the keys and values of
    the encoder's output once a prompt, everything else for each of the rows' tokens."""
    flops = 2.0 * head_parameters(config) * groups * tokens
    for stack in config.encoder:
        flops += stack.layers * (2.0 * _used(config, stack) * prompt + flops_of_pairs(stack.attention) * prompt**2)
    for stack in config.decoder:
        rows, once = groups * tokens, _once(config, stack)
        pairs = flops_of_pairs(stack.attention) * (_causal(tokens, 0) * groups + rows * prompt)
        flops += stack.layers * (2.0 * (_used(config, stack) - once) * rows + 2.0 * once * prompt + pairs)
    return flops


def kernel_computed(config: ModelConfig, tokens: int, branches: tuple[int, int] | None) -> float:
    """What the attention kernel computes, tiles that hold nothing seen left out, over half of the square of `tokens`.

    Args:
      branches: (prompt, rows) of rows that share a prompt.
    """
    shares = []
    for stack in _attending(config):
        masks = layer_masks(tokens, stack.windows, branches)
        computed = {window: 2 * mask.computed() for window, mask in masks.items()}
        shares += [computed[window] for window in stack.windows or (0,) * stack.layers]
    return sum(shares) / max(len(shares), 1)


def parameter_count(config: ModelConfig) -> int:
    """Numbers of a model."""
    return numbers_of(parameter_specs(config))


def body_parameters(config: ModelConfig) -> int:
    """Parameters of the decoder's matmuls that a token uses."""
    return round(sum(stack.layers * _used(config, stack) for stack in config.decoder))


def _used(config: ModelConfig, stack: Stack) -> float:
    specs = jax.tree.leaves(layer_specs(config, stack), is_leaf=lambda spec: isinstance(spec, ParamSpec))
    return sum(spec.used * math.prod(spec.shape) for spec in specs)


def head_parameters(config: ModelConfig) -> int:
    """Parameters of the head's matmul."""
    return (config.head.labels or config.vocab_size) * config.width


def _attending(config: ModelConfig) -> list[Stack]:
    """The stacks of the decoder whose layers have attention."""
    return [stack for stack in config.decoder if "attention" not in stack.lacks]


def _causal(tokens: int, window: int) -> float:
    """Pairs of a query and a key it sees in a row, half of the square without a window."""
    if not window or window >= tokens:
        return tokens * tokens / 2
    return window * tokens - window * window / 2


def _once(config: ModelConfig, stack: Stack) -> int:
    """Parameters of a decoder's layer that serve the encoder's tokens, once each: those of cross-attention's keys and
    values."""
    return sum(math.prod(layer_specs(config, stack)["cross"][name]["kernel"].shape) for name in "kv")


def token_flops(config: ModelConfig, prompt: int, before: int) -> float:
    """FLOPs of a token that a model writes, the head's included, behind `before` of its own and a prompt of these
    tokens, which the encoder has read where the model has one."""
    once = sum(stack.layers * _once(config, stack) for stack in config.decoder if stack.cross)
    return 2.0 * (body_parameters(config) - once + head_parameters(config)) + query_flops(config, prompt + before)


def query_flops(config: ModelConfig, keys: int) -> float:
    """FLOPs of one query over `keys` keys in all layers."""
    return sum(
        flops_of_kept_pairs(stack.attention) * min(window or keys, keys)
        for stack in _attending(config)
        for window in stack.windows or (0,) * stack.layers
    )
