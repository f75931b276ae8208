"""A GGUF file as a model folder: its metadata as config.json, its tensors under Hugging Face names.

The architectures are those of llama.cpp whose Hugging Face family is ported here. What the metadata does not hold
(Gemma's scale of scores, the kinds of its layers) is what llama.cpp computes with. A key of the architecture that is
not known here is refused: it may change the numbers.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.models.families import config_from_hf, config_to_hf
from fusion_jax.models.gguf_entries import GgufEntry, entry_of, gguf_package
from fusion_jax.models.gguf_header import Header, read_gguf_header
from fusion_jax.ops.rotary import Rope, llama3_divisors

CURE = "Take the model's Hugging Face folder, or convert it with a newer llama.cpp"
PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
HF_ENDS = {theirs: own for own, theirs in ENDS.items()}
# Keys of the metadata, behind the architecture's name -> fields of config.json.
FIELDS = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}  # fmt: skip
READ = (
    "vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
NO_MATTER = ("rope.scaling.finetuned", "tensor_data_layout", "expert_count", "expert_used_count", "attention.causal")
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
DIVISORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


@dataclass(frozen=True)
class Architecture:
    """model_type: of the Hugging Face family. parts: llama.cpp's names of a layer's parts -> those of its files.
    fields: further keys of the metadata -> fields of config.json. interleaved: whether rows of q and k are.
    offset: added to the scales of norms."""

    model_type: str
    parts: Mapping[str, str] = field(default_factory=lambda: PARTS)
    fields: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    offset: float = 0.0


WINDOW = {"attention.sliding_window": "sliding_window"}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
LOCAL = {"rope.freq_base_swa": "rope_local_base_freq", "attention.sliding_window_pattern": "sliding_window_pattern"}
ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", offset=-1.0),
    "gemma2": Architecture("gemma2", PARTS | FOUR_NORMS, WINDOW | CAPS, offset=-1.0),
    "gemma3": Architecture("gemma3_text", PARTS | FOUR_NORMS, WINDOW | CAPS | LOCAL, offset=-1.0),
    "phi3": Architecture("phi3", PARTS | FUSED, WINDOW),
}
LARGE_GEMMAS = {"gemma2": 46, "gemma3": 62}  # layers of the 27B ones, whose scores llama.cpp scales by width over heads


def architecture_of(header: Header) -> tuple[str, Architecture]:
    """The name of a file's architecture, and what it is here; InputError names the known ones."""
    fields = Fields(header.metadata, header.file, cure=CURE)
    parts = fields.integer("split.count", 1)
    if parts > 1:
        number = fields.integer("split.no", 0) + 1
        cure = "Join the parts into one file: llama-gguf-split --merge FIRST_PART OUT.gguf"
        raise fields.wrong("split.count", f"is part {number} of {parts} of a model", cure)
    name = fields.text("general.architecture")
    if name not in ARCHITECTURES:
        problem = f"architecture {quoted(name)} is not read from GGUF files"
        raise fields.wrong("general.architecture", problem, f"Known: {', '.join(ARCHITECTURES)}")
    return name, ARCHITECTURES[name]


def hf_config(file: Path) -> dict[str, Any]:
    """config.json of the model of a GGUF file.

    Raises:
      InputError: see `read_gguf_header`; an unknown architecture, a part of a split file, a key that is missing, of
        another type, out of range or not known; names the file and the key.
    """
    header = read_gguf_header(file)
    name, kind = architecture_of(header)
    values = _values(header, name, kind)
    named = {theirs: f"{name}.{own}" for own, theirs in (FIELDS | dict(kind.fields)).items()}
    try:
        config = config_from_hf(values, file)
    except InputError as error:
        key = named.get(error.field or "", error.field)
        raise InputError(error.problem, file=file, field=key, cure=CURE) from None
    return config_to_hf(config) | _token_ids(header)


def hf_generation(file: Path) -> dict[str, Any]:
    """generation_config.json of the model: the tokens that begin a text and end one."""
    header = read_gguf_header(file)
    out, turn = _token_ids(header), header.metadata.get("tokenizer.ggml.eot_token_id")
    if turn is not None and turn != out.get("eos_token_id"):
        out["eos_token_id"] = [i for i in (out.get("eos_token_id"), turn) if i is not None]
    return out


def _token_ids(header: Header) -> dict[str, Any]:
    """The special tokens that the metadata names, as fields of config.json."""
    found = {key: header.metadata.get(f"tokenizer.ggml.{own}") for key, own in TOKENS.items()}
    return {key: i for key, i in found.items() if i is not None}


def _values(header: Header, name: str, kind: Architecture) -> dict[str, Any]:
    """The fields of config.json that the metadata gives."""
    own = {k.removeprefix(f"{name}."): v for k, v in header.metadata.items() if k.startswith(f"{name}.")}
    fields = Fields(own, header.file, within=name, cure=CURE)
    known = {**FIELDS, **kind.fields}
    for key in own:
        if key not in known and key not in READ and key not in NO_MATTER:
            raise fields.wrong(key, "is not known, and may change what the model computes")
    if fields.integer("expert_count", 0) or not fields.flag("attention.causal", True):
        key = "expert_count" if own.get("expert_count") else "attention.causal"
        raise fields.wrong(key, f"is {own[key]}, which is not read")
    values: dict[str, Any] = {theirs: own[key] for key, theirs in known.items() if key in own}
    for key in FIELDS:
        if key not in own and key not in ("attention.head_count_kv", "rope.freq_base"):
            raise fields.wrong(key, "is missing")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError("the tensor is missing", file=header.file, field="token_embd.weight", cure=CURE)
    heads = fields.integer("attention.head_count", low=1)
    size = fields.integer("attention.key_length", None, low=1)
    width = fields.integer("embedding_length", low=1)
    size = width // heads if size is None else size
    if fields.integer("attention.value_length", size) != size:
        raise fields.wrong("attention.value_length", f"is not {size}, the length of keys, which is not read")
    values |= {
        "model_type": kind.model_type, "vocab_size": embedding.shape[0], "head_dim": size,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }  # fmt: skip
    if name == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if name == "phi3":
        values["pad_token_id"] = None
    if name in LARGE_GEMMAS:
        values |= _gemma(name, fields, size)
    return values | _rope(header, fields, kind, size)


def _gemma(name: str, fields: Fields, size: int) -> dict[str, Any]:
    """What llama.cpp knows of the Gemmas without being told."""
    large = fields.values["block_count"] == LARGE_GEMMAS[name]
    scalar = fields.values["embedding_length"] // fields.values["attention.head_count"] if large else size
    caps = {key: fields.values.get(key) for key in CAPS}
    if name == "gemma2":
        caps = {"attn_logit_softcapping": caps["attn_logit_softcapping"] or 50.0,
                "final_logit_softcapping": caps["final_logit_softcapping"] or 30.0}  # fmt: skip
    out: dict[str, Any] = {"query_pre_attn_scalar": scalar, **caps}
    pattern = fields.values.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):  # layer by layer
        out["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
        out["sliding_window_pattern"] = None
    return out


def _rope(header: Header, fields: Fields, kind: Architecture, size: int) -> dict[str, Any]:
    """The rotary settings: a scaling by name, or divisors of the frequencies that are stored as tensors."""
    known = ("none", "linear", "yarn", "longrope")
    scaling: str = fields.choice("rope.scaling.type", known, "none")
    rotated = fields.integer("rope.dimension_count", size, low=2, high=size)
    most, out = fields.integer("context_length", low=1), dict[str, Any]()
    if rotated != size:
        out["partial_rotary_factor"] = rotated / size
    original = fields.integer("rope.scaling.original_context_length", None, low=1)
    factor = fields.number("rope.scaling.factor", None, above=0)
    plain, short, long = (_divisors(header, name, rotated) for name in DIVISORS)
    if short is not None and long is not None:
        out["original_max_position_embeddings"] = original or most
        attention = fields.number("rope.scaling.attn_factor", None, above=0)
        more = {} if attention is None else {"attention_factor": attention}
        out["rope_scaling"] = {"type": "longrope", "short_factor": short, "long_factor": long, **more}
    elif plain is not None:
        base = fields.number("rope.freq_base", 10_000.0, above=1)
        out["rope_scaling"] = _llama3(header, plain, base, rotated)
    elif scaling == "linear" and factor is not None:
        out["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling == "yarn" and factor is not None:
        beta = {name: fields.number(f"rope.scaling.yarn_{name}", None, above=0) for name in ("beta_fast", "beta_slow")}
        more = {name: value for name, value in beta.items() if value is not None}
        length = original or round(most / factor)
        out["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": length,
            **more,
        }
    elif scaling != "none":
        raise fields.wrong("rope.scaling.type", f"is {scaling}, but what it needs is missing")
    return out


def _divisors(header: Header, name: str, rotated: int) -> list[float] | None:
    """A tensor of divisors of the frequencies, one for each."""
    if name not in header.tensors:
        return None
    entry = entry_of(header, name, header.tensors[name])
    if entry.shape != (rotated // 2,):
        problem = f"has shape {entry.shape}, the model has {rotated // 2} frequencies"
        raise InputError(problem, file=header.file, field=name, cure=CURE)
    return [float(value) for value in entry.read()]


def _llama3(header: Header, divisors: list[float], base: float, rotated: int) -> dict[str, Any]:
    """Llama 3.1's scaling, of which a GGUF file holds the divisors alone: the original length follows from one of
    them, with the published low and high factors, and has to give them all."""
    found, factor = np.asarray(divisors), max(divisors)
    waves = 2 * math.pi * base ** (np.arange(0, rotated, 2) / rotated)
    low, high = Rope.low_freq_factor, Rope.high_freq_factor
    between = (found > 1) & (found < factor)
    if between.any():
        share = (1 / found[between][0] - 1 / factor) / (1 - 1 / factor)
        original = round(waves[between][0] * (low + share * (high - low)))
    else:
        original = math.ceil(high * waves[found <= 1].max(initial=1.0))
    rope = Rope(base, "llama3", factor, original)
    if not np.allclose(llama3_divisors(rope, rotated), found, rtol=1e-4):
        problem = "scales the rotary frequencies in a way that is not Llama 3.1's"
        raise InputError(problem, file=header.file, field=DIVISORS[0], cure=CURE)
    return {
        "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original, "low_freq_factor": low,
        "high_freq_factor": high,
    }  # fmt: skip


def hf_entries(file: Path) -> dict[str, GgufEntry]:
    """Every tensor of a file under its Hugging Face name, or its own where it is none of the architecture's.

    Raises:
      InputError: see `entry_of`; the package gguf is not installed.
    """
    header = read_gguf_header(file)
    name, kind = architecture_of(header)
    gguf_package(file)
    heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    out: dict[str, GgufEntry] = {}
    for own, stored in header.tensors.items():
        if own in DIVISORS:
            continue
        part = own.split(".")[-2] if own.count(".") else ""
        more: dict[str, Any] = {}
        if kind.interleaved and part in heads:
            every = header.metadata[f"{name}.attention.head_count"]
            more["heads"] = header.metadata.get(f"{name}.{heads[part]}", every)
        if kind.offset and part.endswith("norm"):
            more["offset"] = kind.offset
        out[hf_name(own, kind)] = entry_of(header, own, stored, **more)
    return out


def hf_name(own: str, kind: Architecture) -> str:
    """The Hugging Face name of a tensor of a GGUF file; its own where it has none."""
    end, _, leaf = own.rpartition(".")
    if end in ENDS:
        return f"{ENDS[end]}.{leaf}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", end)
    if found is None or found[2] not in kind.parts:
        return own
    return f"model.layers.{found[1]}.{kind.parts[found[2]]}.{leaf}"


def gguf_name(name: str, file: Path) -> str:
    """What a GGUF file calls a tensor."""
    kind = architecture_of(read_gguf_header(file))[1]
    end, _, leaf = name.rpartition(".")
    if end in HF_ENDS:
        return f"{HF_ENDS[end]}.{leaf}"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", end)
    own = {theirs: ours for ours, theirs in kind.parts.items()}
    return f"blk.{found[1]}.{own[found[2]]}.{leaf}" if found and found[2] in own else name


def tell_size(file: Path, dtype: np.dtype, *, on_host: bool, int8: int = 0) -> None:
    """Say, before a number is made, what the file's tensors come to in a dtype.

    Args:
      on_host: whether they will lie in this machine's memory. int8: how many of the numbers take one byte each.

    Raises:
      InputError: they will, and it has no room for them.
    """
    header = read_gguf_header(file)
    size = dtype.itemsize * (sum(math.prod(one.shape) for one in header.tensors.values()) - int8) + int8
    name = f"int8 and {dtype.name}" if int8 else dtype.name
    free = available_memory()
    if on_host and free is not None and size > free:
        problem = f"its weights are {size / 1e6:.1f} MB in {name}, {free / 1e6:.1f} MB of memory are free"
        cure = "Load it in bfloat16 or int8 (fj.load with dtype), free memory, or take a smaller model"
        raise InputError(problem, file=file, cure=cure)
    kinds = sorted({entry_of(header, name, one).quantisation.name for name, one in header.tensors.items()})
    told = "%s: %.1f MB of %s become %.1f MB of %s"
    logging.getLogger("fusion_jax").warning(told, file, header.size / 1e6, ", ".join(kinds), size / 1e6, name)


def available_memory() -> int | None:
    """Bytes that the system can give to programs; None where it does not tell."""
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return None
