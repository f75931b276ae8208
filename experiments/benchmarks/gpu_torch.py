"""The jobs of `gpu_ours` in plain PyTorch, as one would write them there: fused attention, `torch.compile` of each
block and of the head, fused AdamW over float32 weights; decoding with a static cache, compiled to a CUDA graph.

A response is a row with its prompt; the head sees the tokens that are scored alone.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks import gpu_shape
from experiments.benchmarks.gpu_shape import Shape

Row = dict[str, Any]


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.scale).to(x.dtype)


class Linear(nn.Linear):
    """Computes in the dtype of its input, whatever that of the weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B,H,T,h] by tables [T,h/2]; the halves of h are the two coordinates."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nn.Module):
    """One layer. With a cache, one token of each row behind those that are in it."""

    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        width, eps = model["hidden_size"], model["rms_norm_eps"]
        self.heads, self.kv_heads = model["num_attention_heads"], model["num_key_value_heads"]
        self.size = model["head_dim"]
        self.q, self.o = Linear(width, self.heads * self.size), Linear(self.heads * self.size, width)
        self.k, self.v = Linear(width, self.kv_heads * self.size), Linear(width, self.kv_heads * self.size)
        self.gate, self.up = Linear(width, model["intermediate_size"]), Linear(width, model["intermediate_size"])
        self.down = Linear(model["intermediate_size"], width)
        self.attention_norm, self.mlp_norm = RmsNorm(width, eps), RmsNorm(width, eps)

    def keep(self, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """A cache of the module's own, so that a CUDA graph finds it at one address."""
        for name in ("kept_k", "kept_v"):
            empty = torch.zeros(rows, self.kv_heads, tokens, self.size, dtype=dtype, device=device)
            self.register_buffer(name, empty, persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, place: Tensor | None = None) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (
            linear(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for linear in (self.q, self.k, self.v)
        )  # fmt: skip
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        if place is None:
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            self.kept_k.index_copy_(2, place, k)
            self.kept_v.index_copy_(2, place, v)
            seen = torch.arange(self.kept_k.shape[2], device=x.device) <= place
            a = F.scaled_dot_product_attention(
                q, self.kept_k, self.kept_v, attn_mask=seen[None, None, None], enable_gqa=True
            )
        x = x + self.o(a.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Tokens to hidden states [B,T,D] in `dtype`; the head is the embedding."""

    def __init__(self, model: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(model["vocab_size"], model["hidden_size"]) * 0.02)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model["num_hidden_layers"]))
        self.final_norm = RmsNorm(model["hidden_size"], model["rms_norm_eps"])
        self.dtype = dtype
        size = model["head_dim"]
        turns = 1.0 / model["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
        angles = torch.arange(model["max_position_embeddings"]).float()[:, None] * turns
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, place: Tensor | None = None) -> Tensor:
        x = F.embedding(tokens, self.embedding).to(self.dtype)
        places = slice(0, tokens.shape[1]) if place is None else place
        cos, sin = self.cos[places], self.sin[places]
        for block in self.blocks:
            x = block(x, cos, sin, place)
        return self.final_norm(x)


def logprobs_of(hidden: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
    """Log-probs [..., n] of labels int[..., n] under the head."""
    logits = F.linear(hidden, embedding.to(hidden.dtype)).float()
    return logits.gather(-1, labels) - logits.logsumexp(-1, keepdim=True)


class Job:
    """The model, its batch and its loss, on the device; `compiled` where there is a GPU."""

    def __init__(self, name: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.name, self.shape, self.device = name, shape, device_of()
        self.gpu = self.device.type == "cuda"
        with self.device:
            self.model = Llama(shape.model, torch.bfloat16 if self.gpu else torch.float32)
        self.logprobs: Callable[..., Tensor] = torch.compile(logprobs_of) if self.gpu else logprobs_of
        if self.gpu and name != "decoding":
            for block in self.model.blocks:
                block.compile()
        ids = gpu_shape.quads(shape) if name in ("wrpo", "scoring") else gpu_shape.texts(shape)
        self.ids = self.placed(ids.reshape(-1, ids.shape[-1])).long()
        entries, probs = gpu_shape.targets(shape)
        self.entries, self.probs = self.placed(entries).long(), self.placed(probs)
        self.reference = self.placed(gpu_shape.reference(shape))

    def placed(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def sequences(self) -> Tensor:
        """[quads, 3], the log-probs of the responses."""
        hidden = self.model(self.ids[:, :-1])[:, self.shape.half :]
        labels = self.ids[:, self.shape.half + 1 :, None]
        return self.logprobs(hidden, self.model.embedding, labels).sum((1, 2)).view(-1, 3)

    def loss(self) -> Tensor:
        if self.name == "wrpo":
            ratios = self.sequences() - self.reference
            better = gpu_shape.ALPHA * ratios[:, 0] + (1 - gpu_shape.ALPHA) * ratios[:, 1]
            return -F.logsigmoid(gpu_shape.BETA * (better - ratios[:, 2])).mean()
        labels = self.ids[:, 1:, None]
        if self.name == "distillation":
            labels = torch.cat([labels, self.entries], -1)
        found = self.logprobs(self.model(self.ids[:, :-1]), self.model.embedding, labels)
        language = -found[..., 0].mean()
        if self.name == "sft":
            return language
        fused = -(self.probs * found[..., 1:]).sum(-1).mean()
        return gpu_shape.WEIGHT * language + (1 - gpu_shape.WEIGHT) * fused

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def jobs(small: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    if not small and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU here")
    shape = gpu_shape.SMALL if small else gpu_shape.FULL
    return {
        **{name: partial(trained, name, shape) for name in ("sft", "wrpo", "distillation")},
        "scoring": partial(scored, shape),
        "decoding": partial(decoded, shape),
    }


def training(job: Job) -> Callable[[], float]:
    """A function that does one optimizer step and gives its loss."""
    parameters = list(job.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=gpu_shape.RATE, weight_decay=0.0, fused=job.gpu)

    def once() -> float:
        loss = job.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        job.wait()
        return float(loss.detach())

    return once


def trained(name: str, shape: Shape) -> Iterator[Row]:
    fresh()
    yield gpu_shape.timed(training(Job(name, shape)), shape.steps) | told(name, shape)


def scored(shape: Shape) -> Iterator[Row]:
    fresh()
    job = Job("scoring", shape)
    job.model.to(job.model.dtype)

    @torch.no_grad()
    def once() -> float:
        found = job.sequences()
        job.wait()
        return float(found[0, 0])

    yield gpu_shape.timed(once, shape.steps) | told("scoring", shape)


def decoded(shape: Shape) -> Iterator[Row]:
    """Greedy: the prompts are read into the caches, then a token of each row at a time."""
    fresh()
    yield gpu_shape.timed(decoding(Job("decoding", shape)), shape.steps) | told("decoding", shape)


def decoding(job: Job) -> Callable[[], float]:
    """A function that continues all prompts and gives the log-prob of the first continuation."""
    shape, model = job.shape, job.model.to(job.model.dtype).eval()
    for block in model.blocks:
        block.keep(shape.prompts, shape.prompt + shape.new, model.dtype, job.device)
    step = decoding_step(model)
    if job.gpu:
        step = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    ids = job.placed(gpu_shape.prompts(shape)).long()
    places = torch.arange(shape.prompt, shape.prompt + shape.new - 1, device=job.device)

    @torch.no_grad()
    def once() -> float:
        token, total = read(model, ids)
        for place in places.split(1):
            token, logprob = (x.clone() for x in step(token, place))
            total = total + logprob
        job.wait()
        return float(total[0])

    return once


def decoding_step(model: Llama) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def step(token: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        return greedy(model, model(token[:, None], place)[:, -1])

    return step


def greedy(model: Llama, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable token of hidden states [B,D], and its log-prob, both [B]."""
    best = F.linear(hidden, model.embedding).float().log_softmax(-1).max(-1)
    return best.indices, best.values


def read(model: Llama, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the caches with the prompts int[B,P]: the token that follows each, and its log-prob."""
    x, places = F.embedding(ids, model.embedding), torch.arange(ids.shape[1], device=ids.device)
    cos, sin = model.cos[places], model.sin[places]
    for block in model.blocks:
        y = block.attention_norm(x)
        k, v = (linear(y).unflatten(-1, (-1, block.size)).transpose(1, 2) for linear in (block.k, block.v))
        block.kept_k[:, :, : ids.shape[1]] = rotated(k, cos, sin)
        block.kept_v[:, :, : ids.shape[1]] = v
        x = block(x, cos, sin)
    return greedy(model, model.final_norm(x)[:, -1])


def fresh() -> None:
    """Forget the job before: its memory, and the most that it took."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def told(name: str, shape: Shape) -> Row:
    """What is told beside the seconds. FLOPs are counted by the plan of the same job."""
    from experiments.benchmarks.gpu_ours import work

    gpu = torch.cuda.is_available()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return work(name, shape) | {
        "by": "PyTorch", "device": torch.cuda.get_device_name() if gpu else "cpu",
        "versions": f"torch {torch.__version__}", "peak_bytes": torch.cuda.max_memory_allocated() if gpu else resident,
    }  # fmt: skip
