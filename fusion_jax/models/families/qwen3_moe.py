"""Qwen3-MoE: Qwen3's attention with routed experts in all layers, or in all but some that have a plain feed-forward;
every run of layers of one kind is a stack."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

from fusion_jax.errors import quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import Mlp, ModelConfig
from fusion_jax.models.families.common import (
    WIDTH,
    Defaults,
    experts_from_hf,
    llama_like_from_hf,
    llama_like_to_hf,
    window_of,
)
from fusion_jax.models.families.tensors import PARTS, HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(max_positions=32768, kv_heads=4)
IGNORED: tuple[str, ...] = ()
EXPERT = "mlp.experts.{}"
NAMES_OF_TENSORS = Names(
    parts={**PARTS, "router": "mlp.gate"},
    experts={name: f"{EXPERT}.{name}_proj" for name in ("gate", "up", "down")},
)


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    (stack,), biased = model.decoder, fields.flag("attention_bias", False)
    attention = replace(stack.attention, biases="qkvo" if biased else "", qk_norm=stack.norm)
    window = window_of(fields) if fields.flag("use_sliding_window", False) else 0
    runs = [(sparse, len(list(some))) for sparse, some in groupby(_sparse(fields, model.layers))]
    kinds = {True: _experts(fields, stack.mlp), False: stack.mlp}
    stacks = tuple(
        replace(stack, layers=n, attention=attention, mlp=kinds[sparse], windows=(window,) * n if window else ())
        for sparse, n in runs
    )
    return replace(model, decoder=stacks)


def _sparse(fields: Fields, layers: int) -> list[bool]:
    """Which layers have experts: every `decoder_sparse_step`-th, those of `mlp_only_layers` left out."""
    every, plain = fields.integer("decoder_sparse_step", 1, low=1), fields.items("mlp_only_layers", [])
    for one in plain:
        if isinstance(one, bool) or not isinstance(one, int):
            raise fields.wrong("mlp_only_layers", f"holds {quoted(one)}, not a layer's number")
    some = fields.integer(_count(fields), 128) > 0
    return [some and number not in plain and (number + 1) % every == 0 for number in range(layers)]


def _count(fields: Fields) -> str:
    """The field that says how many experts there are: transformers 5 renames it."""
    return "num_experts" if fields.values.get("num_experts") is not None else "num_local_experts"


def _experts(fields: Fields, plain: Mlp) -> Mlp:
    experts = experts_from_hf(fields, _count(fields), absent=128, chosen=8)
    if experts is None:
        return plain
    width = fields.integer("moe_intermediate_size", 768, low=1, high=4 * WIDTH)
    normalised = fields.flag("norm_topk_prob", False)
    return replace(plain, width=width, experts=replace(experts, normalised=normalised))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    first, every = config.decoder[0], [stack for stack in config.decoder for _ in range(stack.layers)]
    sparse = next((stack.mlp for stack in config.decoder if stack.mlp.experts), first.mlp)
    plain = next((stack.mlp for stack in config.decoder if not stack.mlp.experts), first.mlp)
    experts, window = sparse.experts, max(first.windows, default=0)
    own = {
        "intermediate_size": plain.width, "moe_intermediate_size": sparse.width,
        "num_experts": experts.count if experts else 0, "num_experts_per_tok": experts.chosen if experts else 1,
        "norm_topk_prob": bool(experts and experts.normalised), "decoder_sparse_step": 1,
        "mlp_only_layers": [number for number, stack in enumerate(every) if not stack.mlp.experts],
        "attention_bias": bool(first.attention.biases), "use_sliding_window": bool(window),
        "sliding_window": window or None,
    }  # fmt: skip
    return llama_like_to_hf(config, "Qwen3Moe") | own


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, NAMES_OF_TENSORS)
