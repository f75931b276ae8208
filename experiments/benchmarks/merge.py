"""Merges beside the mergekit package: the same folders and recipes, one after the other, in one run.

    python experiments/benchmarks/merge.py                               # base and three fine-tunes, 148M parameters
    python experiments/benchmarks/merge.py --case tensor                 # one tensor of 4096 x 4096, four models
    python experiments/benchmarks/merge.py --dtype bfloat16 --methods ties sce

Needs requirements-test.txt. Each contender is a process of its own that merges twice: "whole" is the process from its
start to the end of its first merge, imports and compilation included; "merge" is the second merge alone (mergekit's
first where that takes more than 20 s: it compiles nothing). Arithmetic is
in `dtype` on both sides. Outputs of methods that draw nothing are compared and the largest difference is shown; GB/s
counts the bytes of all inputs and of the output. Limits are measured first: writing to the disk and copying in memory.
Time: about an hour on 2 cores for all methods, nearly all of it mergekit's.
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
from typing import Any, Literal

import ml_dtypes
import numpy as np
import yaml

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.models.safetensors_io import PlannedTensor, open_folder, write_folder
from fusion_jax.settings import run as run_experiment

SELECTING = {"density": 0.5, "weight": 0.3}
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.3}, "slerp": {"t": 0.4}, "task_arithmetic": {"weight": 0.3}, "ties": SELECTING,
    "dare_ties": SELECTING, "dare_linear": SELECTING, "della": SELECTING, "breadcrumbs": SELECTING,
    "sce": {"select_topk": 0.1}, "model_stock": {}, "multislerp": {"weight": 0.3}, "karcher": {}, "arcee_fusion": {},
}  # fmt: skip
NO_BASE, PAIRWISE = ("linear", "karcher"), ("slerp", "arcee_fusion")
DRAWS = ("dare_ties", "dare_linear", "della")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Settings:
    """folder: where inputs are made (kept) and outputs go; a temporary one if empty. only: contenders that run."""

    case: Literal["folder", "tensor"] = "folder"
    methods: tuple[str, ...] = (
        "linear",
        "slerp",
        "task_arithmetic",
        "ties",
        "dare_ties",
        "della",
        "sce",
        "model_stock",
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    only: tuple[Literal["ours", "mergekit"], ...] = ("ours", "mergekit")
    folder: str = ""


def shapes_of(case: str) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama with 14 layers, D 768, vocabulary 32,000; or one tensor."""
    if case == "tensor":
        return {"model.layers.0.mlp.up_proj.weight": (4096, 4096)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 768)}
    for i in range(14):
        layer = {f"self_attn.{name}_proj": (768, 768) for name in "qkvo"}
        layer |= {"mlp.gate_proj": (2048, 768), "mlp.up_proj": (2048, 768), "mlp.down_proj": (768, 2048)}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"model.layers.{i}.{name}_layernorm.weight": (768,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (768,), "lm_head.weight": (32000, 768)}


def make_inputs(folder: Path, case: str, dtype: np.dtype) -> list[str]:
    """A base and its fine-tunes: normal weights of scale 0.02, changes of scale 0.002."""
    names = ["base", "m0", "m1", "m2", *(["m3"] if case == "tensor" else [])]
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM" if case == "folder" else "OneTensor"],
        "num_hidden_layers": 14 if case == "folder" else 1, "hidden_size": 768, "intermediate_size": 2048,
        "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32000, "tie_word_embeddings": False,
    }  # fmt: skip
    for number, name in enumerate(names):
        if (folder / name).exists():
            continue

        def value(tensor: int, shape: tuple[int, ...], number: int = number) -> np.ndarray:
            base = np.random.default_rng([0, tensor]).standard_normal(shape, np.float32) * 0.02
            change = np.random.default_rng([number, tensor]).standard_normal(shape, np.float32) * 0.002
            return (base + (number > 0) * change).astype(dtype)

        (folder / name).mkdir(parents=True)
        planned = [
            PlannedTensor(tensor, dtype, shape, lambda i=i, shape=shape: value(i, shape))  # type: ignore[misc]
            for i, (tensor, shape) in enumerate(shapes_of(case).items())
        ]
        write_folder(folder / name, planned)
        (folder / name / "config.json").write_text(json.dumps(config))
    return names[1:]


def recipe_of(method: str, folder: Path, models: list[str], dtype: str) -> dict[str, Any]:
    """One recipe for both; mergekit computes in `dtype`."""
    chosen = models[:1] if method in PAIRWISE else models
    per_model = {k: v for k, v in PARAMETERS[method].items() if k in ("weight", "density")}
    recipe: dict[str, Any] = {
        "merge_method": method, "dtype": dtype,
        "models": [{"model": str(folder / name), "parameters": per_model} for name in chosen],
        "parameters": {k: v for k, v in PARAMETERS[method].items() if k not in per_model},
    }  # fmt: skip
    if method not in NO_BASE:
        recipe["base_model"] = str(folder / "base")
    if method == "slerp":
        recipe["models"].append({"model": recipe["base_model"]})
    if method == "sce":
        recipe["parameters"]["sce_variant"] = "mergekit"
    return recipe


def run_child(contender: str, recipe: dict[str, Any], folder: Path) -> dict[str, float]:
    """Merge twice in a process of its own: seconds of each merge and of the process to its first, and peak memory."""
    ours = recipe | {"math_dtype": recipe["dtype"]}
    theirs = recipe | {"parameters": {k: v for k, v in recipe["parameters"].items() if k != "sce_variant"}}
    path = folder / f"{contender}.yml"
    path.write_text(yaml.safe_dump(ours if contender == "ours" else theirs))
    script = Path(__file__).with_name("merge_contenders.py")
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, str(script), contender, str(path), str(folder / f"out-{contender}")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    out, err = process.communicate()
    if process.returncode:
        raise InputError(f"failed:\n{err[-2000:]}", field=contender)
    result = json.loads(out.splitlines()[-1])
    return result | {"whole": result["first ended"] - started}


def difference(folder: Path) -> float:
    """The largest difference between both outputs."""
    ours, theirs = (open_folder(folder / f"out-{name}") for name in ("ours", "mergekit"))
    worst = 0.0
    for name, entry in ours.items():
        a, b = entry.mapped().astype(np.float32), theirs[name].mapped().astype(np.float32)
        worst = max(worst, float(np.abs(a - b).max()))
    return worst


def limits(folder: Path) -> str:
    """GB/s of writing a file to the disk and of copying in memory."""
    block = np.ones(256 << 20, np.uint8)
    started = time.perf_counter()
    with open(folder / "probe", "wb") as out:
        for _ in range(4):
            out.write(block.data)
        out.flush()
        os.fsync(out.fileno())
    disk = 4 * block.nbytes / (time.perf_counter() - started)
    (folder / "probe").unlink()
    target = np.empty_like(block)
    target[...] = block
    started = time.perf_counter()
    for _ in range(4):
        target[...] = block
    memory = 8 * block.nbytes / (time.perf_counter() - started)
    return f"Limits: writing to the disk {disk / 1e9:.2f} GB/s, copying in memory {memory / 1e9:.1f} GB/s (one core)."


def main(s: Settings) -> None:
    for method in s.methods:
        if method not in PARAMETERS:
            raise InputError(f"'{method}' is not timed", field="--methods", cure=f"Known: {', '.join(PARAMETERS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(s.folder or temporary)
        models = make_inputs(folder / f"{s.case}-{s.dtype}", s.case, DTYPES[s.dtype])
        size = sum(int(np.prod(shape)) for shape in shapes_of(s.case).values()) * DTYPES[s.dtype].itemsize
        print(limits(folder), flush=True)
        rows = []
        for method in s.methods:
            recipe = recipe_of(method, folder / f"{s.case}-{s.dtype}", models, s.dtype)
            found: dict[str, dict[str, float]] = {name: run_child(name, recipe, folder) for name in s.only}
            inputs = len(recipe["models"]) + (method not in NO_BASE and method != "slerp")
            rows.append(line(method, found, (inputs + 1) * size, folder))
            print(json.dumps(rows[-1]), flush=True)
    print(markdown_table(rows))


def line(method: str, found: dict[str, dict[str, float]], moved: int, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {"method": method}
    for name, one in found.items():
        row |= {f"{name} whole s": f"{one['whole']:.1f}", f"{name} merge s": f"{one['second']:.2f}",
                f"{name} peak MiB": f"{one['peak_mib']:.0f}"}  # fmt: skip
    if len(found) == 2:
        ours, theirs = found["ours"], found["mergekit"]
        row["ratio whole"] = f"{theirs['whole'] / ours['whole']:.1f}"
        row["ratio merge"] = f"{theirs['second'] / ours['second']:.1f}"
        row["difference"] = "drawn" if method in DRAWS else f"{difference(folder):.1e}"
    if "ours" in found:
        row["ours GB/s"] = f"{moved / found['ours']['second'] / 1e9:.2f}"
    return row


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
