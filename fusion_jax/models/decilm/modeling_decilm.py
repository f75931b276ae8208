"""Nemotron-NAS in transformers with trust_remote_code: Llama whose layers have sizes of their own or lack a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .configuration_decilm import DeciLMConfig


class NoAttention(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """Zeros, and no weights of attention."""
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros_like(hidden_states)


def layer_of(config: DeciLMConfig, number: int) -> LlamaDecoderLayer:
    """A layer. Its place in the cache is its number among those with attention, the first of which tells the length."""
    block, usual = config.block_configs[number], (config.num_key_value_heads, config.intermediate_size)
    if not block.attention.no_op:
        config.num_key_value_heads = config.num_attention_heads // block.attention.n_heads_in_group
    if not block.ffn.no_op:
        config.intermediate_size = -(-int(2 * block.ffn.ffn_mult * config.hidden_size / 3) // 256) * 256
    layer = LlamaDecoderLayer(config, sum(not one.attention.no_op for one in config.block_configs[:number]))
    config.num_key_value_heads, config.intermediate_size = usual
    if block.attention.no_op:
        layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
    if block.ffn.no_op:
        layer.mlp, layer.post_attention_layernorm = NoFeedForward(), nn.Identity()
    return layer


class DeciLMModel(LlamaModel):
    """The body."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        layers, config.num_hidden_layers = config.num_hidden_layers, 0
        super().__init__(config)
        config.num_hidden_layers = layers
        self.layers = nn.ModuleList(layer_of(config, number) for number in range(layers))
        self.post_init()


class DeciLMForCausalLM(LlamaForCausalLM):
    """The language model."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        layers, config.num_hidden_layers = config.num_hidden_layers, 0
        super().__init__(config)
        config.num_hidden_layers = layers
        self.model = DeciLMModel(config)
        self.post_init()
