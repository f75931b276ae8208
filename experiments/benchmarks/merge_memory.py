"""Memory of merges: a real one of large models, and what the TPU compiler plans for a slice.

    python experiments/benchmarks/merge_memory.py                          # four fine-tunes of 1.1B parameters, SCE
    python experiments/benchmarks/merge_memory.py --method ties --vocab 128256
    python experiments/benchmarks/merge_memory.py --tpu v5e:2x4            # 8B shapes on 8 chips; needs libtpu, no TPU

The models are synthetic (normal weights, bfloat16, Llama: D 2048, 22 layers, inner 5632, vocabulary 32,000; about 13 GB
on the disk with the output, in a temporary folder). Peak memory is that of the process of experiments/merge.py, the
pages of files that it has mapped included. On a slice each tensor is split over all chips; figures are of one chip,
arguments, outputs and temporaries of the compiled kernel of each shape of Llama-3-8B. Time: about 5 minutes on 2 cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.merge.methods import METHODS
from fusion_jax.models.safetensors_io import PlannedTensor, write_folder
from fusion_jax.settings import run as run_experiment

BF16 = np.dtype(ml_dtypes.bfloat16)
PARAMETERS: dict[str, dict[str, Any]] = {
    "sce": {"select_topk": 0.1}, "ties": {"weight": 0.25, "density": 0.5}, "della": {"weight": 0.25, "density": 0.5},
    "dare_ties": {"weight": 0.25, "density": 0.5}, "linear": {"weight": 0.25}, "model_stock": {},
    "task_arithmetic": {"weight": 0.25},
}  # fmt: skip
LLAMA_8B = {"embedding, head": (128256, 4096), "mlp": (14336, 4096), "query, output": (4096, 4096), "norm": (4096,)}


@dataclass(frozen=True)
class Settings:
    """models: fine-tunes beside the base. folder: where models are made and kept. tpu: a topology to compile for."""

    method: str = "sce"
    models: int = 4
    vocab: int = 32000
    folder: str = ""
    tpu: str = ""


def shapes_of(vocab: int) -> dict[str, tuple[int, ...]]:
    """A Llama of 1.1B parameters."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, 2048)}
    for i in range(22):
        layer = {"self_attn.q_proj": (2048, 2048), "self_attn.o_proj": (2048, 2048)}
        layer |= {"self_attn.k_proj": (256, 2048), "self_attn.v_proj": (256, 2048)}
        layer |= {"mlp.gate_proj": (5632, 2048), "mlp.up_proj": (5632, 2048), "mlp.down_proj": (2048, 5632)}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"model.layers.{i}.{name}_layernorm.weight": (2048,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (2048,), "lm_head.weight": (vocab, 2048)}


def make_model(folder: Path, seed: int, vocab: int) -> None:
    """Noise around a base that all models share; rows repeat every 64, which no method notices."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 22, "hidden_size": 2048,
        "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": vocab,
        "tie_word_embeddings": False,
    }  # fmt: skip

    def value(number: int, shape: tuple[int, ...]) -> np.ndarray:
        rows = (min(shape[0], 64), *shape[1:])
        base = np.random.default_rng([0, number]).standard_normal(rows, np.float32) * 0.02
        change = np.random.default_rng([seed, number]).standard_normal(rows, np.float32) * 0.002
        return np.resize((base + (seed > 0) * change).astype(BF16), shape)

    folder.mkdir(parents=True)
    planned = [
        PlannedTensor(name, BF16, shape, lambda i=i, shape=shape: value(i, shape))  # type: ignore[misc]
        for i, (name, shape) in enumerate(shapes_of(vocab).items())
    ]
    write_folder(folder, planned)
    (folder / "config.json").write_text(json.dumps(config))


def merge_large(s: Settings, folder: Path) -> dict[str, Any]:
    """Merge in a process of its own."""
    names = ["base", *(f"m{i + 1}" for i in range(s.models))]
    for seed, name in enumerate(names):
        if not (folder / name).exists():
            make_model(folder / name, seed, s.vocab)
    recipe = {
        "merge_method": s.method, "models": [{"model": str(folder / name)} for name in names[1:]],
        "parameters": PARAMETERS[s.method],
    } | ({} if METHODS[s.method].base == "none" else {"base_model": str(folder / "base")})  # fmt: skip
    (folder / "recipe.yml").write_text(json.dumps(recipe))
    script = str(Path(__file__).resolve().parents[1] / "merge.py")
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, script, str(folder / "recipe.yml"), "--out", str(folder / "out")])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError("failed", field=s.method)
    numbers = sum(int(np.prod(shape)) for shape in shapes_of(s.vocab).values())
    largest = s.vocab * 2048 * 2 * (s.models + 1)
    return {
        "method": s.method, "parameters of a model": f"{numbers / 1e9:.2f}B", "models": f"{s.models} and a base",
        "s": f"{time.perf_counter() - started:.0f}", "peak GB": f"{usage.ru_maxrss * 1024 / 1e9:.2f}",
        "inputs of the largest tensor, GB": f"{largest / 1e9:.2f}",
    }  # fmt: skip


def compiled(topology: str, method: str, models: int) -> list[dict[str, Any]]:
    """What the TPU compiler plans for each shape of Llama-3-8B, bfloat16 in and out, split over all chips."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices), ("chips",), axis_types=(AxisType.Auto,))
    rows = []
    for name, shape in LLAMA_8B.items():

        def kernel(stack: jax.Array, base: jax.Array | None) -> jax.Array:
            keys = {"keys": jax.random.split(jax.random.key(0), models)} if METHODS[method].random else {}
            return METHODS[method].function(stack, base, **keys, **PARAMETERS[method]).tensor.astype(jnp.bfloat16)

        split = NamedSharding(mesh, PartitionSpec("chips"))
        stack = jax.ShapeDtypeStruct(
            (models, *shape), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, "chips"))
        )
        base = None
        if METHODS[method].base != "none":
            base = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)
        program = jax.jit(kernel, out_shardings=split).lower(stack, base).compile()
        memory = program.memory_analysis()
        assert memory is not None
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        rows.append({
            "tensor": name, "shape": "×".join(map(str, shape)), "arguments MiB": memory.argument_size_in_bytes >> 20,
            "temporaries MiB": memory.temp_size_in_bytes >> 20, "all MiB": used >> 20,
        })  # fmt: skip
    return rows


def main(s: Settings) -> None:
    if s.method not in PARAMETERS:
        raise InputError(f"'{s.method}' is not measured", field="--method", cure=f"Known: {', '.join(PARAMETERS)}")
    if s.tpu:
        print(
            f"{s.method}, {s.models} models, {s.tpu}, one chip:\n" + markdown_table(compiled(s.tpu, s.method, s.models))
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(markdown_table([merge_large(s, Path(s.folder or temporary))]))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
