"""Configurations of public models, so that a plan needs no download: config.json in Hugging Face form, shapes alone."""

from __future__ import annotations

import os
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.models.gguf_header import is_gguf
from fusion_jax.models.json_files import read_config
from fusion_jax.paths import as_path

_LLAMA3 = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA2 = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN2 = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA31 = _LLAMA3 | {
    "max_position_embeddings": 131072, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_LLAMA32 = _LLAMA31 | {
    "intermediate_size": 8192, "tie_word_embeddings": True, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
PUBLIC: dict[str, dict[str, Any]] = {
    "llama3-8b": _LLAMA3,
    "llama3-70b": _LLAMA3 | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    },
    "llama3.1-8b": _LLAMA31,
    "llama3.2-1b": _LLAMA32 | {"hidden_size": 2048, "num_hidden_layers": 16, "head_dim": 64},
    "llama3.2-3b": _LLAMA32 | {
        "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128,
    },
    "gemma2-9b": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "intermediate_size": 14336,
        "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "max_position_embeddings": 8192, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-6,
    },
    "llama2-7b": _LLAMA2,
    "t5-base": {
        "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12,
        "num_heads": 12,
    },
    "bert-base": {"model_type": "bert", "vocab_size": 30522},
    "t5-large": {
        "model_type": "t5", "vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24,
        "num_heads": 16,
    },
    "bart-large": {"model_type": "bart", "vocab_size": 50265},
    "bart-large-chinese": {
        "model_type": "bart", "vocab_size": 51271, "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102,
        "decoder_start_token_id": 102, "forced_eos_token_id": 102,
    },
    "baichuan2-7b": _LLAMA2 | {
        "model_type": "baichuan", "vocab_size": 125696, "model_max_length": 4096, "rms_norm_eps": 1e-6,
        "z_loss_weight": 0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "llama2-13b": _LLAMA2 | {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    },
    "mistral-7b": _MISTRAL,
    "openchat-7b": _MISTRAL | {"vocab_size": 32002, "max_position_embeddings": 8192},
    "qwen2.5-7b": _QWEN2,
    "qwen2.5-14b": _QWEN2 | {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "qwen2.5-72b": _QWEN2 | {
        "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "mixtral-8x7b": _MISTRAL | {
        "model_type": "mixtral", "rope_theta": 1000000.0, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "rope_theta": 1000000.0,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": {
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 0.707, "mscale_all_dim": 0.707,
        }, "tie_word_embeddings": False,
    },
}  # fmt: skip


def config_named(name: str | os.PathLike[str], option: str | None = None) -> dict[str, Any]:
    """config.json of a public model by its name here, or of a folder, which needs no weights.

    Raises:
      InputError: neither; names the known models.
    """
    if str(name) in PUBLIC:
        return PUBLIC[str(name)]
    if not as_path(name).is_dir() and not is_gguf(name):
        raise InputError(
            "is neither a folder nor a known model", file=name, field=option,
            cure=f"Give a folder with a config.json, a GGUF file, or one of {', '.join(PUBLIC)}",
        )  # fmt: skip
    return read_config(as_path(name))
