"""Small checkpoints of one architecture, made of noise: a base and its fine-tunes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fusion_jax.merge import METHODS
from fusion_jax.models.safetensors_io import PlannedTensor, open_folder, write_folder

GIVEN = {"weight": 0.4, "density": 0.5, "t": 0.3, "select_topk": 0.3}
BF16 = np.dtype(ml_dtypes.bfloat16)
VOCAB, WIDTH, INNER, LAYERS = 24, 16, 16, 3  # three shapes of tensors: each is a program of its own for each method
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCAB,
    "tie_word_embeddings": False, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip


def shapes(vocab: int = VOCAB, inner: int = INNER) -> dict[str, tuple[int, ...]]:
    """The tensors of the architecture."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, WIDTH)}
    for i in range(LAYERS):
        layer = {f"self_attn.{n}_proj": (WIDTH, WIDTH) for n in "qkvo"}
        layer |= {"mlp.gate_proj": (inner, WIDTH), "mlp.up_proj": (inner, WIDTH), "mlp.down_proj": (WIDTH, inner)}
        found |= {f"model.layers.{i}.{n}.weight": shape for n, shape in layer.items()}
        found |= {f"model.layers.{i}.{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")}
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (vocab, WIDTH)}


def tensors(seed: int, dtype: np.dtype = np.dtype(np.float32), **sizes: int) -> dict[str, np.ndarray]:
    """The base (seed 0), or a fine-tune of it. sizes: other ones of `shapes`."""
    base, change = np.random.default_rng(0), np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(**sizes).items():
        value = base.standard_normal(shape, np.float32) * 0.1
        moved = change.standard_normal(shape, np.float32) * 0.02
        out[name] = (value + (seed > 0) * moved).astype(dtype)
    return out


def write_model(folder: Path, values: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A model folder without a tokenizer."""
    folder.mkdir(parents=True)
    planned = [PlannedTensor(n, v.dtype, v.shape, lambda v=v: v) for n, v in values.items()]
    write_folder(folder, planned)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def read_model(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, float32."""
    return {name: entry.read().astype(np.float32) for name, entry in open_folder(folder).items()}


def make_models(folder: Path, count: int = 3, dtype: np.dtype = np.dtype(np.float32), **sizes: int) -> list[str]:
    """folder/base and folder/m1, m2 ...; the paths of the fine-tunes. sizes: other ones of `shapes`."""
    for seed in range(count + 1):
        values = tensors(seed, dtype, **sizes)
        vocab, inner = len(values["lm_head.weight"]), len(values["model.layers.0.mlp.up_proj.weight"])
        write_model(folder / (f"m{seed}" if seed else "base"), values, vocab_size=vocab, intermediate_size=inner)
    return [str(folder / f"m{seed}") for seed in range(1, count + 1)]


def ties(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for `make_models`."""
    models = [{"model": str(folder / f"m{i}"), "parameters": {"weight": 0.4, "density": 0.5}} for i in (1, 2, 3)]
    return {"merge_method": "ties", "base_model": str(folder / "base"), "models": models, **changes}


def recipe_of(method: str, folder: Path, **parameters: Any) -> dict[str, Any]:
    """A recipe of any method for the models of `make_models`: as many of three as it takes, with the base it takes."""
    chosen = METHODS[method]
    known = {p.name for p in chosen.parameters}
    models = [{"model": str(folder / f"m{i + 1}")} for i in range(chosen.most_models or 3)]
    given = {name: value for name, value in GIVEN.items() if name in known} | parameters
    recipe = {"merge_method": method, "models": models, "parameters": given}
    return recipe if chosen.base == "none" else recipe | {"base_model": str(folder / "base")}
