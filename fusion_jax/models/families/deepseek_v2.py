"""DeepSeek-V2 and V2-Lite: latent attention, first layers with a plain feed-forward and then routed experts beside
shared ones, of which a token may be held to some groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Attention, Experts, Latent, ModelConfig
from fusion_jax.models.families.common import (
    WIDTH,
    Defaults,
    default_of,
    experts_from_hf,
    llama_like_from_hf,
    llama_like_to_hf,
    max_positions_of,
    share_of_head,
)
from fusion_jax.models.families.rotary import rope_from_hf
from fusion_jax.models.families.tensors import PARTS, HfTensor, Names, llama_like_tensors
from fusion_jax.ops.rotary import Rope, mscale

DEFAULTS = Defaults(max_positions=2048)
IGNORED: tuple[str, ...] = ()
_ATTENTION = {
    "q_down": "q_a_proj", "q_down_norm": "q_a_layernorm", "q_up": "q_b_proj", "kv_down": "kv_a_proj_with_mqa",
    "kv_down_norm": "kv_a_layernorm", "kv_up": "kv_b_proj",
}  # fmt: skip
NAMES_OF_TENSORS = Names(
    parts={
        **PARTS, **{ours: f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()}, "router": "mlp.gate",
        **{f"shared_{name}": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
    },
    experts={name: f"mlp.experts.{{}}.{name}_proj" for name in ("gate", "up", "down")},
)  # fmt: skip


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts. Both latents' norms have the eps that transformers gives them."""
    fields.choice("scoring_func", ("softmax",), "softmax")
    if fields.flag("norm_topk_prob", False):
        raise fields.wrong("norm_topk_prob", "weights that are divided by their sum are not supported")
    if fields.integer("moe_layer_freq", 1) != 1:
        raise fields.wrong("moe_layer_freq", "layers without experts between those with some are not supported")
    rope = rope_from_hf(fields, max_positions_of(fields, DEFAULTS))
    model = llama_like_from_hf(fields, DEFAULTS, [rope], _attention(fields, rope))
    plain = replace(model.decoder[0].mlp, bias=fields.flag("mlp_bias", False))
    sparse = replace(
        plain, width=fields.integer("moe_intermediate_size", 1407, low=1, high=WIDTH), experts=_experts(fields)
    )
    first = min(fields.integer("first_k_dense_replace", 0), model.layers)
    kinds = [(first, plain), (model.layers - first, sparse)]
    return replace(model, decoder=tuple(replace(model.decoder[0], layers=n, mlp=mlp) for n, mlp in kinds if n))


def _attention(fields: Fields, rope: Rope) -> Attention:
    heads, width = fields.integer("num_attention_heads", low=1, high=WIDTH), fields.integer("hidden_size", low=1)
    if fields.integer("num_key_value_heads", heads, low=1) != heads:
        raise fields.wrong("num_key_value_heads", f"is not num_attention_heads, {heads}, as in latent attention")
    share_of_head(fields, heads, width)
    latent = Latent(
        kv_rank=fields.integer("kv_lora_rank", 512, low=1, high=WIDTH),
        rope_dim=fields.integer("qk_rope_head_dim", 64, low=1, high=WIDTH),
        nope_dim=fields.integer("qk_nope_head_dim", 128, low=1, high=WIDTH),
        value_dim=fields.integer("v_head_dim", 128, low=1, high=WIDTH),
        q_rank=fields.integer("q_lora_rank", default_of(fields, "q_lora_rank", 1536), low=1, high=WIDTH),
    )
    if latent.rope_dim % 2:
        raise fields.wrong("qk_rope_head_dim", f"is {latent.rope_dim}; a rotary embedding needs an even number")
    size, factor = latent.nope_dim + latent.rope_dim, mscale(rope, rope.mscale_all_dim)
    biases = ("ko" if latent.q_rank is None else "qko") if fields.flag("attention_bias", False) else ""
    scale = size**-0.5 * factor**2 if rope.mscale_all_dim else None
    return Attention(heads, heads, size, scale, biases=biases, rotary_pairs=True, latent=latent)


def _experts(fields: Fields) -> Experts:
    experts = experts_from_hf(fields, "n_routed_experts", absent=64)
    if experts is None:
        raise fields.wrong("n_routed_experts", "is 0, where experts are needed")
    experts = replace(
        experts, scale=fields.number("routed_scaling_factor", 1.0, above=0, high=1e6),
        shared=fields.integer("n_shared_experts", 2, low=1, high=64),
    )  # fmt: skip
    if fields.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy") == "greedy":
        return experts
    groups = fields.integer("n_group", low=1, high=experts.count)
    if experts.count % groups:
        raise fields.wrong("n_group", f"is {groups}, which does not divide n_routed_experts, {experts.count}")
    best = fields.integer("topk_group", low=1, high=groups)
    if best * experts.count // groups < experts.chosen:
        raise fields.wrong("topk_group", f"is {best}, groups with too few experts for num_experts_per_tok")
    return replace(experts, groups=groups, top_groups=best)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    attention, first, last = config.decoder[0].attention, config.decoder[0], config.decoder[-1]
    latent, experts = attention.latent, last.mlp.experts or Experts(1, 1, shared=1)
    assert latent is not None
    groups = {"n_group": experts.groups, "topk_group": experts.top_groups}
    own = {
        "head_dim": latent.rope_dim, "kv_lora_rank": latent.kv_rank, "q_lora_rank": latent.q_rank,
        "qk_rope_head_dim": latent.rope_dim, "qk_nope_head_dim": latent.nope_dim, "v_head_dim": latent.value_dim,
        "attention_bias": "o" in attention.biases, "mlp_bias": first.mlp.bias,
        "first_k_dense_replace": sum(stack.layers for stack in config.decoder if stack.mlp.experts is None),
        "moe_intermediate_size": last.mlp.width, "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.chosen, "n_shared_experts": experts.shared, "norm_topk_prob": False,
        "routed_scaling_factor": experts.scale, "scoring_func": "softmax", "moe_layer_freq": 1,
        "topk_method": "greedy" if experts.groups == 1 else "group_limited_greedy", **groups,
    }  # fmt: skip
    return llama_like_to_hf(config, "DeepseekV2") | own


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, NAMES_OF_TENSORS)
