"""Tiny random checkpoints written by `transformers` in PyTorch: the reference for every port."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.25, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
THETA = {"rope_theta": 1e4}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10,
    "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
}  # fmt: skip

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-gqa-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mqa-bias-wide-heads": ("llama", {
        "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama-linear": ("llama", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic": ("llama", {
        "max_position_embeddings": 16, "rope_parameters": {**THETA, "rope_type": "dynamic", "factor": 2.0}}),
    "llama-yarn": ("llama", {"rope_parameters": {
        **THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "llama-3.1": ("llama", {"rope_parameters": {
        "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    "llama-3.2": ("llama", {"tie_word_embeddings": True, "rope_parameters": {
        "rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-bias": ("qwen3", {
        "head_dim": 10, "num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-windows-yarn": ("qwen3", {
        "head_dim": 12, "num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
        "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "gemma": ("gemma", {"head_dim": 16, "attention_bias": True}),
    "gemma-mqa": ("gemma", {"head_dim": 8, "num_key_value_heads": 1}),
    "gemma-untied-linear": ("gemma", {"head_dim": 12, "tie_word_embeddings": False, "rope_parameters": {
        **THETA, "rope_type": "linear", "factor": 2.0}}),
    "gemma2": ("gemma2", {
        "sliding_window": 6, "head_dim": 16, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {
        "num_hidden_layers": 7, "sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 20,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}}),
    "gemma3-kinds-yarn": ("gemma3_text", {
        "sliding_window": 6, "head_dim": 12, "num_key_value_heads": 1, "query_pre_attn_scalar": 12,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "attention_bias": True,
        "rope_parameters": {
            "full_attention": {
                "rope_theta": 1e5, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            "sliding_attention": {"rope_theta": 1e3, "rope_type": "default"}}}),
    "gemma3-capped-untied": ("gemma3_text", {
        "sliding_window": 4096, "head_dim": 16, "final_logit_softcapping": 3.0, "tie_word_embeddings": False}),
    "gemma2-uncapped": ("gemma2", {"sliding_window": 4096, "head_dim": 12, "query_pre_attn_scalar": 12,
                                   "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "olmo2": ("olmo2", {"num_key_value_heads": 4}),
    "olmo2-gqa-tied-bias": ("olmo2", {"tie_word_embeddings": True, "attention_bias": True}),
    "olmo2-yarn": ("olmo2", {"num_key_value_heads": 1, "rope_parameters": {
        "rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "glm": ("glm", {"head_dim": 16}),
    "glm-whole-no-bias": ("glm", {
        "head_dim": 12, "attention_bias": False, "rope_parameters": {**THETA, "partial_rotary_factor": 1.0}}),
    "glm-tied-mqa": ("glm", {"head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "glm4": ("glm4", {"head_dim": 16}),
    "glm4-mha-quarter": ("glm4", {
        "head_dim": 16, "num_key_value_heads": 4, "rope_parameters": {**THETA, "partial_rotary_factor": 0.25}}),
    "glm4-tied-no-bias": ("glm4", {"head_dim": 8, "attention_bias": False, "tie_word_embeddings": True}),
    "phi3": ("phi3", {"num_key_value_heads": 4}),
    "phi3-window-gqa": ("phi3", {"sliding_window": 7}),
    "phi3-longrope-beyond": ("phi3", {
        "hidden_size": 64, "original_max_position_embeddings": 4, "tie_word_embeddings": True, "rope_parameters": {
            **THETA, "rope_type": "longrope", "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0]}}),
    "phi3-longrope-within": ("phi3", {
        "original_max_position_embeddings": 48, "rope_parameters": {
            **THETA, "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0]}}),
    "gpt-neox": ("gpt_neox", {"hidden_size": 64}),
    "gpt-neox-in-turn": ("gpt_neox", {"use_parallel_residual": False, "rope_parameters": {
        **THETA, "partial_rotary_factor": 1.0}}),
    "gpt-neox-no-bias-linear": ("gpt_neox", {"attention_bias": False, "hidden_act": "gelu_pytorch_tanh", "rope_parameters": {
        **THETA, "partial_rotary_factor": 0.5, "rope_type": "linear", "factor": 2.0}}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral-window-three-of-five": ("mixtral", {
        "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 7, "head_dim": 16,
        "tie_word_embeddings": True}),
    "mixtral-one-of-two-yarn": ("mixtral", {
        "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 12, "num_key_value_heads": 4, "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "qwen3-moe": ("qwen3_moe", {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
        "head_dim": 16}),
    "qwen3-moe-some-plain": ("qwen3_moe", {
        "num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 28, "num_hidden_layers": 5,
        "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-moe-window-yarn": ("qwen3_moe", {
        "num_experts": 16, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "use_sliding_window": True,
        "sliding_window": 6, "mlp_only_layers": [0], "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "deepseek-v2": ("deepseek_v2", {
        **LATENT, "q_lora_rank": 20, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 2.5, "rope_parameters": {
            **THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
            "mscale_all_dim": 0.7}}),
    "deepseek-v2-lite": ("deepseek_v2", {
        **LATENT, "q_lora_rank": None, "n_shared_experts": 1, "rms_norm_eps": 1e-4, "rope_parameters": {
            **THETA, "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 8, "mscale": 0.707,
            "mscale_all_dim": 0.707}}),
    "deepseek-v2-bias-tied": ("deepseek_v2", {
        **LATENT, "q_lora_rank": 12, "attention_bias": True, "mlp_bias": True, "first_k_dense_replace": 2,
        "tie_word_embeddings": True, "v_head_dim": 24, "num_experts_per_tok": 1, "qk_rope_head_dim": 4}),
    "mpt": ("mpt", {"max_seq_len": 64}),
    "mpt-clipped-6-heads": ("mpt", {
        "num_attention_heads": 6, "max_seq_len": 64, "attn_config": {"clip_qkv": 1.3, "softmax_scale": 0.3}}),
    "mpt-untied-3-heads": ("mpt", {
        "num_attention_heads": 3, "max_seq_len": 40, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
}  # fmt: skip


def write_checkpoint(name: str, folder: Path, *, classifier: bool = False, **changes: Any) -> Any:
    """Write the named configuration with random weights (norms and biases too) and return the PyTorch model."""
    family, options = CONFIGS[name]
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **options, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    kind = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if re.search(r"norm(_\w)?\.weight$|bias$", key):
                value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(folder)
    return model
