"""Run by test_generate.py in its own process with 8 virtual devices: the same tokens on several meshes."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params, parameter_specs
from fusion_jax.sampling.generate import generate_ids
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sharding import make_mesh, named

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
})  # fmt: skip


T5 = config_from_hf({
    "model_type": "t5", "vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
})  # fmt: skip


def main() -> None:
    sizes = ((2, 2, 2),)
    same = {f"{config.model_type} {size}": same_tokens(config, size) for config in (CONFIG, T5) for size in sizes}
    json.dump(same, sys.stdout)


def same_tokens(config, size) -> bool:
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 128, n).tolist() for n in (3, 9, 14)]

    def tokens(mesh):
        placed = params
        if mesh is not None:
            specs = parameter_specs(config)
            placed = jax.tree.map(lambda x, s: jax.device_put(x, named(mesh, s.axes, s.shape)), params, specs)
        out = generate_ids(
            placed, config, prompts, max_new_tokens=8, sampler=Sampler(1.0, 0.9), num_samples=2, stop_ids=[2],
            batch_size=4, mesh=mesh,
        )  # fmt: skip
        return [[c.ids for c in row] for row in out]

    return tokens(make_mesh(*size)) == tokens(None)


if __name__ == "__main__":
    main()
