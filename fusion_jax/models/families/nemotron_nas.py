"""Nemotron-NAS (Llama-3_1-Nemotron-51B, Llama-3_3-Nemotron-Super-49B, Ultra-253B): Llama's body whose layers differ in
their heads of keys, in the width of their feed-forward, and in which of the two they have.

`block_configs` has for each layer `attention` and `ffn`. Both have `no_op`; n_heads_in_group is how many queries share
a key, and the width is 2/3 * ffn_mult * hidden_size, cut to a whole number and filled up to a multiple of 256. What is
written is what these read: vLLM (vllm/model_executor/models/nemotron_nas.py), llama.cpp's conversion (class DeciModel:
`n_heads_in_group` and `ffn_mult` of null are blocks that are gone, `replace_with_linear` has to be there, `ffn_mult` is
a float) and the published configuration class, which rounds ffn_mult to 6 digits. Two of them compute something else
where some blocks are gone: see `prune.nemotron`. vLLM takes that class from the folder, transformers the model's too:
those of `models/decilm/` are written beside the weights.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.models import decilm
from fusion_jax.models.config import Attention, ModelConfig, Part, Stack
from fusion_jax.models.families import llama
from fusion_jax.models.families.common import WIDTH
from fusion_jax.models.families.tensors import llama_like_tensors

IGNORED: tuple[str, ...] = ()
LACKS = True
BESIDE = tuple(Path(decilm.__file__).with_name(f"{name}_decilm.py") for name in ("configuration", "modeling"))
AUTO_MAP = {
    "AutoConfig": "configuration_decilm.DeciLMConfig", "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
}  # fmt: skip
MULTIPLE = 256
READ = ("no_op", "n_heads_in_group", "ffn_mult")
ATTENTION = {
    "window_length": None, "num_sink_tokens": None, "sparsify": None, "replace_with_linear": False,
    "unshifted_sink": False, "use_prefill_window_in_sink_attention": False,
}  # fmt: skip
FFN = {"sparsify": None, "replace_with_linear": False}
"""What the other fields of a block have to be; anything else would change what is computed."""

tensors = llama_like_tensors


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts: a stack for each run of layers that are alike."""
    usual = {"intermediate_size": MULTIPLE, "num_key_value_heads": None}
    model = llama.from_hf(replace(fields, values={**fields.values, **usual}))
    blocks = fields.items("block_configs")
    if len(blocks) != model.layers:
        problem = f"describes {len(blocks)} layers, {fields.called('num_hidden_layers')} is {model.layers}"
        raise fields.wrong("block_configs", problem)
    every = [_layer(fields, number, model) for number in range(model.layers)]
    return replace(model, decoder=tuple(replace(one, layers=len(list(some))) for one, some in groupby(every)))


def _layer(fields: Fields, number: int, model: ModelConfig) -> Stack:
    name, stack = f"block_configs.{number}", replace(model.decoder[0], layers=1)
    block = replace(fields, values={name: fields.items("block_configs")[number]}).object(name)
    attention, ffn = block.object("attention"), block.object("ffn")
    parts: dict[Part, Fields] = {"attention": attention, "mlp": ffn}
    lacks = [part for part, own in parts.items() if own.flag("no_op", False)]
    for own in (attention, ffn):
        others = [name for name in own.values if name not in READ and own.values[name] not in (None, False)]
        if others:
            raise own.wrong(others[0], f"{quoted(own.values[others[0]])} is not supported", "Take a model without it")
    return replace(
        stack, lacks=frozenset(lacks),
        attention=stack.attention if "attention" in lacks else _attention(attention, stack.attention),
        mlp=stack.mlp if "mlp" in lacks else replace(stack.mlp, width=_width(ffn, model.width)),
    )  # fmt: skip


def _attention(fields: Fields, whole: Attention) -> Attention:
    group = fields.integer("n_heads_in_group", low=1, high=whole.heads)
    if whole.heads % group:
        raise fields.wrong("n_heads_in_group", f"is {group}, which does not divide num_attention_heads, {whole.heads}")
    return replace(whole, kv_heads=whole.heads // group)


def _width(fields: Fields, hidden: int) -> int:
    width = width_of(fields.number("ffn_mult", above=0, high=1e6), hidden)
    if not 0 < width <= 4 * WIDTH:
        raise fields.wrong("ffn_mult", f"gives a feed-forward of width {width}, out of the range from 1 to {4 * WIDTH}")
    return width


def width_of(ffn_mult: float, hidden: int) -> int:
    """The width of a feed-forward."""
    width = int(2 * ffn_mult * hidden / 3)
    return width + -width % MULTIPLE


def ffn_mult_of(width: int, hidden: int) -> float:
    """What gives this width, also where a reader rounds it to 6 digits.

    Raises:
      InputError: nothing does.
    """
    for wanted in (width, width - MULTIPLE // 2):  # exactly it, or amid the widths that are filled up to it
        found = round(3 * wanted / (2 * hidden), 6)
        if width_of(found, hidden) == width:
            return found
    problem = f"no ffn_mult gives a feed-forward of width {width}, which is no multiple of {MULTIPLE}"
    raise InputError(problem, field="intermediate_size", cure="Export it in another form")


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    out = {**llama.to_hf(config), "architectures": ["DeciLMForCausalLM"], "auto_map": AUTO_MAP}
    out |= {"intermediate_size": None, "num_key_value_heads": None}
    for rope in config.positions.ropes[:1]:
        if rope.kind == "llama3":  # where llama.cpp looks for it
            out["original_max_position_embeddings"] = rope.original_max_positions
    return out | {"block_configs": [_block(config, one) for one in config.decoder for _ in range(one.layers)]}


def _block(config: ModelConfig, stack: Stack) -> dict[str, Any]:
    attention, mlp = stack.attends, "mlp" not in stack.lacks
    group = stack.attention.heads // stack.attention.kv_heads if attention else None
    return {
        "attention": {"no_op": not attention, "n_heads_in_group": group, **ATTENTION},
        "ffn": {"no_op": not mlp, "ffn_mult": ffn_mult_of(stack.mlp.width, config.width) if mlp else None, **FFN},
    }
