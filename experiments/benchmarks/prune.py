"""A search for blocks: ours beside the official algorithm and a faster one in PyTorch, on a CPU.

    python experiments/benchmarks/prune.py
    python experiments/benchmarks/prune.py --contenders ours plain --layers 6 --blocks 2      # a smaller one

Shape: 12 layers of width 256 (8 heads, feed-forward 688), 8,192 entries, 8 rows of 256 tokens, 4 removals; float32,
random weights of which each block's output has its own scale, so that removals are not chosen among equals. Contenders:
  plain: the official algorithm written plainly: every candidate is a full forward pass of the blocks that are left;
  prefix: by hand, what stands before a candidate's block is computed once a step;
  ours: `fusion_jax.prune.search`.
Each runs in a process of its own, a whole search after one step that warms up. A row has its seconds on the clock and
of all processors together (which count where others use them, too), the GFLOPs that its algorithm needs and how many it
made a processor's second beside what a large matmul makes, and the peak memory beside that of one dense forward pass in
the same process. Time: 140 s on 2 free cores.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusion_jax.markdown import markdown_table
from fusion_jax.settings import run as run_experiment

Contender = Literal["plain", "prefix", "ours"]


@dataclass(frozen=True)
class Settings:
    """The shape, and who runs."""

    contenders: tuple[Contender, ...] = ("plain", "prefix", "ours")
    """Who runs, in this order."""
    layers: int = 12
    width: int = 256
    wide: int = 688
    vocab: int = 8192
    rows: int = 8
    tokens: int = 256
    blocks: int = 4
    """Removals."""
    states: int = 1
    """Candidates at once, ours alone."""
    logits: int = 1 << 20
    """Logits at once, ours alone."""
    batch: int = 8
    """Rows at once, of all."""
    threads: int = 2
    """Of PyTorch; ours takes those of the processor."""
    child: str = ""
    """One contender in this process, its result as JSON on the screen; for the program itself."""


def main(s: Settings) -> None:
    if s.child:
        print(json.dumps(MEASURED[s.child](s)))
        return
    found = {name: _in_a_process(s, name) for name in s.contenders}
    orders = {json.dumps(one["removed"]) for one in found.values()}
    print(markdown_table([_line(s, name, one) for name, one in found.items()]))
    print(f"\nremovals: {'the same' if len(orders) == 1 else 'NOT the same'}: {'; '.join(sorted(orders))}")
    if {"prefix", "ours"} <= found.keys():
        clock, work = (found["prefix"][name] / found["ours"][name] for name in ("seconds", "processor"))
        print(f"ours beside prefix: {clock:.2f} times as fast by the clock, {work:.2f} times by processors' seconds")
        least = flops(s, shared=True) / found["ours"]["matmul"]
        print(f"at the speed of a large matmul all FLOPs would take {least:.1f} processor's seconds")


def _line(s: Settings, name: str, found: dict[str, Any]) -> dict[str, str]:
    work = flops(s, shared=name != "plain") / 1e9
    return {
        "contender": name, "seconds": f"{found['seconds']:.1f}", "of processors": f"{found['processor']:.1f}",
        "GFLOPs needed": f"{work:,.0f}",
        "GFLOPs a processor's second": f"{work / found['processor']:.0f}",
        "of a large matmul": f"{found['matmul'] / 1e9:.0f}",
        "peak memory over a dense pass's": f"{found['peak'] / found['dense']:.2f} ({found['peak'] >> 20} MiB)",
    }  # fmt: skip


def _in_a_process(s: Settings, name: str) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    for field in dataclasses.fields(s):
        if field.name not in ("child", "contenders"):
            words += [f"--{field.name}", str(getattr(s, field.name))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def flops(s: Settings, *, shared: bool) -> float:
    """FLOPs of a search's matmuls: those of the blocks (attention's scores causal) and of the heads. Where prefixes are
    shared, candidate i of the n blocks that are left costs n - i of them, and the base all but the last."""
    tokens = s.rows * s.tokens
    attention = 2.0 * 4 * s.width**2 * tokens + 2.0 * s.width * s.tokens**2 * s.rows
    block = (attention + 2.0 * 3 * s.width * s.wide * tokens) / 2
    head, blocks, heads = 2.0 * s.vocab * s.width * tokens, 0.0, 0
    for gone in range(s.blocks):
        left = 2 * s.layers - gone
        blocks += left * (left - 1) / 2 + left - 1 if shared else left * (left - 1)
        heads += left
    return blocks * block + heads * head


def model_values(s: Settings) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": s.width, "intermediate_size": s.wide, "num_hidden_layers": s.layers,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": s.width // 8, "vocab_size": s.vocab,
        "max_position_embeddings": s.tokens, "tie_word_embeddings": True,
    }  # fmt: skip


def weights(s: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a Hugging Face folder."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 0.05) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    yield "model.embed_tokens.weight", normal(s.vocab, s.width)
    for layer in range(s.layers):
        name, scales = f"model.layers.{layer}", rng.uniform(0.01, 0.1, 2)
        for one in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{one}.weight", np.ones(s.width, np.float32)
        for one in "qkv":
            yield f"{name}.self_attn.{one}_proj.weight", normal(s.width, s.width)
        yield f"{name}.self_attn.o_proj.weight", normal(s.width, s.width, scale=scales[0])
        for one in ("gate", "up"):
            yield f"{name}.mlp.{one}_proj.weight", normal(s.wide, s.width)
        yield f"{name}.mlp.down_proj.weight", normal(s.width, s.wide, scale=scales[1])
    yield "model.norm.weight", np.ones(s.width, np.float32)


def text(s: Settings) -> np.ndarray:
    return np.random.default_rng(1).integers(0, s.vocab, (s.rows, s.tokens)).astype(np.int32)


def timed(
    search: Callable[[int], list[str]], dense: Callable[[], Any], matmul: Callable[[], Any], s: Settings
) -> dict[str, Any]:
    """Seconds of a search behind one step that warms up, the memory's peak after a dense pass and at the end."""
    dense()
    whole = peak()
    search(1)
    start, used = time.perf_counter(), time.process_time()
    removed = search(s.blocks)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    reached, best = peak(), float("inf")
    for _ in range(5):
        used = time.process_time()
        matmul()
        best = min(best, time.process_time() - used)
    memory = {"dense": whole, "peak": reached}
    return {"seconds": seconds, "processor": processor, "removed": removed, "matmul": 2.0 * 2048**3 / best, **memory}


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(s: Settings) -> dict[str, Any]:
    import tempfile

    import jax
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    import fusion_jax as fj
    from fusion_jax.models.compute import Compute
    from fusion_jax.models.decoder import forward, head_kernel
    from fusion_jax.ops.linear_logprobs import linear_logprobs
    from fusion_jax.prune.scoring import How, Text, score
    from fusion_jax.prune.search import search

    with tempfile.TemporaryDirectory() as folder:
        save_file(dict(weights(s)), Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(model_values(s)))
        model = fj.load(folder)
    rows, how = Text(text(s)), How(Compute(logits=s.logits), s.batch, s.states)

    @jax.jit
    def losses(params: Any, tokens: Any) -> Any:
        hidden = forward(params, model.config, tokens)
        return linear_logprobs(hidden, head_kernel(params, model.config), jnp.roll(tokens, -1, 1))[0]

    def removals(count: int) -> list[str]:
        scorer = partial(score, model.params, model.config, rows, how=how)
        steps = search(scorer, model.config, count)
        return [f"{block.part} {block.layer}" for step in steps for block in step.chosen]

    x = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    dense = partial(losses, model.params, rows.rows)
    return timed(removals, lambda: dense().block_until_ready(), lambda: product(x, x).block_until_ready(), s)


def torch_search(s: Settings, *, shared: bool) -> dict[str, Any]:
    """The same model by hand in PyTorch: fused attention, no gradients; every candidate from the start, or from the
    state before its block."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(s.threads)
    held = {name: torch.from_numpy(value) for name, value in weights(s)}
    tokens, heads, size = torch.from_numpy(text(s)).long(), 8, s.width // 8
    places = torch.arange(s.tokens)[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([one, one], 1) for one in (places.cos(), places.sin()))
    table = held["model.embed_tokens.weight"]

    def turned(x: Any) -> Any:
        return x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin

    def block(kind: str, layer: int, x: Any) -> Any:
        name = f"model.layers.{layer}"
        if kind == "mlp":
            y = F.rms_norm(x, (s.width,), held[f"{name}.post_attention_layernorm.weight"], 1e-6)
            gate, up = (F.linear(y, held[f"{name}.mlp.{one}_proj.weight"]) for one in ("gate", "up"))
            return x + F.linear(F.silu(gate) * up, held[f"{name}.mlp.down_proj.weight"])
        y = F.rms_norm(x, (s.width,), held[f"{name}.input_layernorm.weight"], 1e-6)
        q, k, v = (
            F.linear(y, held[f"{name}.self_attn.{one}_proj.weight"]).unflatten(-1, (heads, size)).transpose(1, 2)
            for one in "qkv"
        )
        mixed = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        return x + F.linear(mixed.transpose(1, 2).flatten(-2), held[f"{name}.self_attn.o_proj.weight"])

    def loss(x: Any) -> float:
        hidden = F.rms_norm(x, (s.width,), held["model.norm.weight"], 1e-6)
        each = [F.cross_entropy(F.linear(h[:-1], table), ids[1:]) for h, ids in zip(hidden, tokens)]
        return float(torch.stack(each).double().mean())

    def through(blocks: Sequence[tuple[str, int]], x: Any) -> Any:
        for one in blocks:
            x = block(*one, x)
        return x

    def removals(count: int) -> list[str]:
        left = [(kind, layer) for layer in range(s.layers) for kind in ("attention", "mlp")]
        out = []
        for _ in range(count):
            scores, x = {}, F.embedding(tokens, table)
            for place, one in enumerate(left):
                scores[one] = loss(through(left[place + 1 :] if shared else [b for b in left if b != one], x))
                x = block(*one, x) if shared and place + 1 < len(left) else x
            chosen = min(sorted(left), key=scores.__getitem__)
            left.remove(chosen)
            out.append(" ".join(map(str, chosen)))
        return out

    x = torch.ones(2048, 2048)
    with torch.inference_mode():
        everything = [(kind, layer) for layer in range(s.layers) for kind in ("attention", "mlp")]
        return timed(removals, lambda: loss(through(everything, F.embedding(tokens, table))), lambda: x @ x, s)


MEASURED: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "plain": lambda s: torch_search(s, shared=False),
    "prefix": lambda s: torch_search(s, shared=True),
    "ours": ours,
}


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
