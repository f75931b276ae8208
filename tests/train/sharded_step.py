"""Run by test_sharding.py in its own process with 8 virtual devices: one step on several meshes against one device."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.batches import Example, Targets, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import Embed, Head, rewarding
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.lora import Lora, init_adapters
from fusion_jax.models.parameters import init_params, place_params
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.sharding import make_mesh
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train import objectives
from fusion_jax.train.objectives import RewardSettings, WrpoSettings
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, paces
from fusion_jax.train.step import make_train_step, shard_batch

GEMMA = config_from_hf({
    "model_type": "gemma2", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64,
    "sliding_window": 5, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8,
    "hidden_activation": "silu", "tie_word_embeddings": False, "initializer_range": 0.3,
})  # fmt: skip
CONFIG = dataclasses.replace(GEMMA, embed=Embed())
T5 = config_from_hf({
    "model_type": "t5", "vocab_size": 256, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "feed_forward_proj": "gated-gelu",
})  # fmt: skip
BART = config_from_hf({
    "model_type": "bart", "vocab_size": 256, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
    "init_std": 0.3,
})  # fmt: skip
EXPERTS = config_from_hf({
    "model_type": "qwen3_moe", "vocab_size": 256, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "num_experts": 6,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "mlp_only_layers": [1], "initializer_range": 0.3,
})  # fmt: skip
LATENT = config_from_hf({
    "model_type": "deepseek_v2", "vocab_size": 256, "hidden_size": 32, "moe_intermediate_size": 16,
    "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "max_position_embeddings": 64, "initializer_range": 0.3,
})  # fmt: skip
ALIBI = config_from_hf({
    "model_type": "mpt", "vocab_size": 256, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64,
    "initializer_range": 0.3,
})  # fmt: skip  # not clipped: a gradient jumps where a value lies on the limit but for rounding
ALIBI = dataclasses.replace(ALIBI, head=Head(normalised=True))
OTHERS = {"t5": T5, "bart": BART, "experts": EXPERTS, "latent": LATENT, "alibi": ALIBI}
LORA = Lora(4, 8.0)


def quadruples(rng):
    rows = [tuple(tuple(rng.integers(0, 256, n)) for n in rng.integers(8, 30, 3)) for _ in range(16)]
    return [Example(r, (4, 4, 4), i, reference=(-20.0, -21.0, -22.0)) for i, r in enumerate(rows)]


def fused(rng):
    """Texts with sparse targets of 5 entries a token."""
    out = []
    for i, n in enumerate(rng.integers(8, 30, 16)):
        ids = np.stack([rng.permutation(256)[:5] for _ in range(n - 1)]).astype(np.int32)
        targets = Targets(ids, rng.dirichlet(np.ones(5), n - 1).astype(np.float32), np.float32(0.1))
        out.append(Example((tuple(rng.integers(0, 256, n)),), (1,), i, targets=targets))
    return out


def judged(rng):
    """Pairs of whole conversations, scored where they end."""
    rows = [tuple(tuple(rng.integers(0, 256, n)) for n in rng.integers(8, 30, 2)) for _ in range(16)]
    return [Example(pair, tuple(len(row) - 1 for row in pair), i) for i, pair in enumerate(rows)]


def translated(rng):
    """An encoder's tokens, the decoder's first one and what follows."""
    rows = [tuple(rng.integers(0, 256, n + m)) for n, m in rng.integers(2, 20, (16, 2))]
    return [Example((row,), (1 + len(row) // 2,), i) for i, row in enumerate(rows)]


def batch(kind):
    makers = {"fusion": fused, "reward": judged, "t5": translated, "bart": translated, "lora": judged}
    examples = makers.get(kind, quadruples)(np.random.default_rng(0))
    flat = collate(examples, buckets_of(examples))
    return jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), flat)


def run(config, kind, mesh, params):
    settings = OptimizerSettings(learning_rate=0.01, warmup_ratio=0.0)
    optimizer, pace = make_optimizer(settings), paces(settings, 4)
    objective = {
        "fusion": objectives.fusion(FusionSettings(0.5)), "reward": objectives.rewards(RewardSettings()),
        "t5": objectives.sft(), "bart": objectives.sft(), "lora": objectives.sft(),
    }.get(kind, objectives.wrpo(WrpoSettings(beta=1.0)))  # fmt: skip
    compute, lora = Compute(mesh, jnp.float32, "full"), LORA if kind == "lora" else None
    step = make_train_step(config, objective, optimizer, compute, router_weight=0.1, lora=lora, in_step=False)
    params, start = place_params(params, config, mesh), None
    if lora is not None:
        adapters, start = init_adapters(config, lora, 3, mesh), params
        params = jax.tree.map(lambda x: x + 0.01 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), adapters)
        params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, adapters)
    state = init_state(params, optimizer, mesh)
    state, metrics = step(state, shard_batch(batch(kind), mesh), pace(0), start)
    # Adam's first moment after one step is (1 - beta1) times the clipped gradient.
    moments = [m.mu for m in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(m, "mu")]
    gradient = jax.device_get(moments[0])
    state, second = step(state, shard_batch(batch(kind), mesh), pace(1), start)
    values = {k: float(v) for k, v in metrics.items() if k != "bad"} | {"second": float(second["loss"])}
    spread = sorted({len(x.sharding.device_set) for x in jax.tree.leaves(state.opt_state)})
    return values, gradient, spread


def decoded() -> list[bool]:
    """Whether greedy tokens of three prompts are those of one device: latents whole on each of four, heads over them."""
    out, prompts = [], [[5, 6, 7, 8], [9], [10, 11]]
    for config in (EXPERTS, LATENT):
        params = init_params(config, jax.random.key(1))
        alone, many = (
            generate_ids(place_params(params, config, mesh), config, prompts, max_new_tokens=6, mesh=mesh)
            for mesh in (None, make_mesh(2, 1, 4))
        )
        out.append([one.ids for (one,) in alone] == [one.ids for (one,) in many])
    return out


def main() -> None:
    results = {}
    runs = (
        (True, "wrpo", ((8, 1, 1), (1, 2, 4))), (False, "wrpo", ((1, 8, 1), (2, 2, 2))), (False, "fusion", ((2, 2, 2),)),
        (True, "reward", ((2, 2, 2),)), (False, "t5", ((2, 2, 2),)), (True, "bart", ((1, 2, 4),)),
        (False, "experts", ((1, 8, 1), (1, 2, 4))), (False, "latent", ((1, 8, 1), (1, 2, 4))), (False, "alibi", ((2, 2, 2),)),
        (True, "lora", ((1, 2, 4), (2, 4, 1))),
    )  # fmt: skip
    for tied, kind, shapes in runs:
        config = OTHERS.get(kind, CONFIG)
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, tied=tied))
        config = rewarding(config) if kind == "reward" else config
        params = init_params(config, jax.random.key(1))
        single, gradient, _ = run(config, kind, None, params)
        scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))
        for shape in shapes:
            values, other, spread = run(config, kind, make_mesh(*shape), params)
            results[f"{kind} {tied} {shape}"] = {
                "values": max(abs(values[k] - single[k]) / max(abs(single[k]), 1e-3) for k in single),
                "gradient": max(
                    float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other))
                ) / scale,
                "devices": spread,
            }  # fmt: skip
    json.dump(results | {"decoded": decoded()}, sys.stdout)


if __name__ == "__main__":
    main()
