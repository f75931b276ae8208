"""Tiny GGUF files, written with the gguf package as llama.cpp's converter writes them, from Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma": gguf.MODEL_ARCH.GEMMA, "gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "phi3": gguf.MODEL_ARCH.PHI3,
}  # fmt: skip
PLAIN = ("F32", "F16")


def write_gguf(
    folder: Path, file: Path, kind: str = "F32", *, more: Mapping[str, Any] = {}, tokenizer: bool = False,
    tensors: Callable[[dict[str, np.ndarray]], object] = lambda found: None,
) -> Path:  # fmt: skip
    """Convert a model folder; matrices are quantised as `kind` says, norms and biases stay float32.

    Args:
      more: further keys of the metadata, which replace those of the folder. tokenizer: with the tokens of a byte-level
        vocabulary. tensors: changes them before they are written.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    values = _metadata(config, gguf.MODEL_ARCH_NAMES[architecture]) | (_byte_level() if tokenizer else {}) | dict(more)
    for key, value in values.items():
        _add(writer, key, value)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    found = {_name(names, key): value for key, value in load_file(folder / "model.safetensors").items()}
    found = {name: _converted(name, value, config) for name, value in found.items()}
    tensors(found)
    for name, value in found.items():
        quantisation = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        raw = _random_q6(value.shape) if quantisation.name == "Q6_K" else gguf.quantize(value, quantisation)
        writer.add_tensor(name, raw, raw_dtype=None if quantisation.name in PLAIN else quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _random_q6(shape: tuple[int, ...]) -> np.ndarray:
    """Blocks of Q6_K, which the package reads but does not write: random bytes, and a scale of 2^-14 at each end."""
    blocks = np.random.default_rng(0).integers(0, 256, (*shape[:-1], shape[-1] // 256, 210), np.uint8)
    blocks[..., -2:] = np.frombuffer(np.float16(2**-14).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _name(names: Any, key: str) -> str:
    end, _, leaf = key.rpartition(".")
    found = names.get_name(end)
    assert found is not None, key
    return f"{found}.{leaf}"


def _converted(name: str, value: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """What the converter does to numbers: Llama's q and k interleaved, Gemma's norms plus one."""
    if config["model_type"] == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
    return value + 1 if config["model_type"].startswith("gemma") and name.endswith("norm.weight") else value


def _metadata(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    heads, rope = config["num_attention_heads"], config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    size = config.get("head_dim") or config["hidden_size"] // heads
    values = {
        "context_length": config["max_position_embeddings"], "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]), "attention.key_length": size,
        "attention.value_length": size, "rope.freq_base": float(whole["rope_theta"]),
        "rope.dimension_count": int(size * whole.get("partial_rotary_factor", 1.0)),
    }  # fmt: skip
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            values[key] = float(config[key])
    if config.get("sliding_window") and name in ("gemma2", "gemma3", "phi3"):
        values["attention.sliding_window"] = config["sliding_window"]
    if whole.get("rope_type") == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(whole["factor"])}
    return {f"{name}.{key}": value for key, value in values.items()}


def _byte_level() -> dict[str, Any]:
    """A vocabulary of the 256 bytes, two merges and two special tokens: 260 tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*bytes_to_unicode().values(), "he", "hel", "<|im_start|>", "<|im_end|>"]
    template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 258 + [3, 3], "tokenizer.ggml.merges": ["h e", "he l"],
        "tokenizer.ggml.bos_token_id": 258, "tokenizer.ggml.eos_token_id": 259, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    }  # fmt: skip


def sentencepiece(spaces: bool = False) -> dict[str, Any]:
    """A SentencePiece vocabulary without merges, of 280 tokens; spaces: two of them in a row are one, as Gemma's files
    spell it."""
    words = ["▁", "h", "e", "l", "o", "x", "he", "hel", "lo", "▁he", "▁x", "1", "=", "ï", "融"]
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "  " if spaces else "▁▁",
        *words,
    ]
    tokens += [f"<unused{i}>" for i in range(280 - len(tokens))]
    kinds = [3, 3, 3, 2, *[6] * 256, 4 if spaces else 1, *[1] * len(words)]
    kinds += [4] * (280 - len(kinds))
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [-float(i) for i in range(280)], "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": not spaces,
    }  # fmt: skip


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
