"""A training step of MK-TOD beside a plain one in PyTorch, on the same weights and the same turns.

    python experiments/benchmarks/mktod.py
    python experiments/benchmarks/mktod.py --width 512 --layers 6 --turns 4

Each turn has `top_k` entities of its own retrieved, a negative one and, for the contrastive loss, a passage without
entity. Ours is the step that training runs: it reads every passage once. The plain one (transformers' T5 and BERT)
reads the passages once for all of them together, again for each alone, and the context once more, as the loss is
written down; both then take an AdamW step of both models. Each side has a process of its own, so that its peak of
memory is its own. A table, and whether both have the same loss. Time: two minutes on 2 CPU cores.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fusion_jax.command_line import as_arguments, options_given
from fusion_jax.markdown import markdown_table
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment

MARGIN, RATE = 0.01, 1e-4
Side = Literal["both", "ours", "plain"]


@dataclass(frozen=True)
class Settings:
    """turns: of a step. own: entities of each turn. context, query, entity, response: tokens. repeats: of the clock,
    behind one step that warms up. side: what a process of this script measures. folder: of the models."""

    width: int = 256
    layers: int = 4
    turns: int = 2
    top_k: int = 6
    own: int = 8
    context: int = 200
    query: int = 128
    entity: int = 100
    response: int = 64
    repeats: int = 3
    seed: int = 0
    side: Side = "both"
    folder: str = ""

    def __post_init__(self) -> None:
        bounded(self, "width", "layers", "turns", "top_k", "context", "query", "entity", "response", "repeats", least=1)
        bounded(self, "own", least=self.top_k + 1)


def texts_of(s: Settings) -> dict[str, np.ndarray]:
    """The same random tokens for both sides: four fifths of each text exist, all of the response."""
    rng = np.random.default_rng(s.seed)

    def text(*shape: int) -> np.ndarray:
        ids = rng.integers(5, 180, shape).astype(np.int32)
        ids[..., shape[-1] - shape[-1] // 5 :] = -1
        return ids

    return {
        "context": text(s.turns, s.context), "query": text(s.turns, s.query), "read": text(s.own, s.entity),
        "queried": text(s.own, s.query), "response": rng.integers(5, 180, (s.turns, s.response)).astype(np.int32),
    }  # fmt: skip


def timed(s: Settings, step: Callable[[], float]) -> dict[str, float]:
    """The first loss, the median of the seconds of later steps, and the process's peak of memory in GiB."""
    first, seconds = step(), list[float]()
    for _ in range(s.repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"loss": first, "seconds": statistics.median(seconds), "peak GiB": peak}


def ours(s: Settings) -> dict[str, float]:
    """The step of `train.step.make_train_step`."""
    import jax
    import jax.numpy as jnp

    from fusion_jax.data.batches import Data, Example, buckets_for, collate
    from fusion_jax.dialogue.systems import System
    from fusion_jax.models.compute import Compute
    from fusion_jax.models.folder import load
    from fusion_jax.train.mktod import KnowledgeArrays, MktodSettings, mktod
    from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
    from fusion_jax.train.step import make_train_step

    made, folder = texts_of(s), Path(s.folder)
    joined = System(load(folder / "generator"), load(folder / "retriever")).joined
    optimizer = OptimizerSettings(RATE, "constant", warmup_ratio=0.0, weight_decay=0.01)
    loss = MktodSettings(variant="ctr", top_k=s.top_k, scale="condensed", margin=MARGIN)
    objective = mktod(loss, optimizer)
    beside = {"own": np.arange(s.own, dtype=np.int32), "old": np.zeros(s.own, bool)}
    data = Data([
        Example(((0, *row.tolist()),), (1,), i, beside={n: made[n][i] for n in ("context", "query")} | beside)
        for i, row in enumerate(made["response"])
    ])  # fmt: skip
    batch = collate(data.examples, buckets_for(data.extents), shapes=data.shapes)
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
    arrays = KnowledgeArrays(jnp.asarray(made["queried"]), jnp.asarray(made["read"]), jnp.zeros((36, 0), jnp.int32))
    chain = make_optimizer(optimizer, optimizer)
    step = make_train_step(joined.config, objective, chain, Compute())
    state = init_state(joined.params, chain)

    def one() -> float:
        nonlocal state
        state, metrics = step(state, batch, Pace(1000, RATE, RATE), None, arrays)
        return float(metrics["loss"])

    return timed(s, one)


def plain(s: Settings) -> dict[str, float]:
    """The loss as it is written down, in PyTorch, every text read where it is asked for."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional
    from transformers import BertConfig, BertModel, T5ForConditionalGeneration

    torch.set_num_threads(2)
    folder = Path(s.folder)
    made = {name: torch.tensor(value, dtype=torch.long) for name, value in texts_of(s).items()}
    t5 = T5ForConditionalGeneration.from_pretrained(folder / "generator").eval()  # ours has no dropout here either
    stored = load_file(folder / "retriever" / "model.safetensors")
    bert = BertModel(BertConfig.from_pretrained(folder / "retriever"), add_pooling_layer=False).eval()
    bert.load_state_dict({name: x for name, x in stored.items() if not name.startswith("projection.")})
    head = torch.nn.Linear(*stored["projection.weight"].shape[::-1])
    head.load_state_dict({name: stored[f"projection.{name}"] for name in ("weight", "bias")})
    groups = [list(t5.parameters()), [*bert.parameters(), *head.parameters()]]
    adam = [torch.optim.AdamW(group, lr=RATE, weight_decay=0.01) for group in groups]
    labels = made["response"]

    def vector(ids: torch.Tensor) -> torch.Tensor:
        hidden = bert(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long()).last_hidden_state[:, 0]
        return functional.normalize(torch.tanh(head(hidden)), dim=-1)

    def logprobs(passages: torch.Tensor) -> torch.Tensor:
        """[B,T] of the response behind passages [B,P,S]."""
        flat = passages.reshape(-1, passages.shape[-1])
        hidden = t5.encoder(input_ids=flat.clamp(min=0), attention_mask=(flat >= 0).long()).last_hidden_state
        hidden = hidden.reshape(len(passages), -1, hidden.shape[-1])
        mask = (passages >= 0).reshape(len(passages), -1).long()
        logits = t5(encoder_outputs=(hidden,), attention_mask=mask, labels=labels).logits
        return functional.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]

    def one() -> float:
        scores = vector(made["query"]) @ vector(made["queried"]).T
        order = torch.argsort(scores.detach(), dim=-1, descending=True, stable=True)
        chosen = torch.cat([order[:, : s.top_k], order[:, -1:]], 1)
        context = made["context"][:, None].expand(-1, chosen.shape[1], -1)
        passages = torch.cat([context, made["read"][chosen]], -1)
        nll = -logprobs(passages).mean()
        each = torch.stack([logprobs(passages[:, i : i + 1]) for i in range(chosen.shape[1])], 1)
        prior = functional.log_softmax(scores.gather(1, chosen), -1)
        mml = -torch.logsumexp(prior + each.sum(-1), -1).mean() / labels.shape[1]
        bare = torch.cat([made["context"], torch.full_like(made["read"][chosen[:, 0]], -1)], -1)[:, None]
        gain = logprobs(bare).mean(-1, keepdim=True) - each[:, :3].mean(-1) + MARGIN
        loss = nll + mml + functional.relu(gain).sum(-1).mean()
        loss.backward()
        for optimizer, group in zip(adam, groups):
            torch.nn.utils.clip_grad_norm_(group, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return float(loss)

    return timed(s, one)


def in_process(s: Settings, side: Side) -> dict[str, float]:
    """What another process of this script measures."""
    asked = replace(s, side=side)
    words = [word for option, _ in options_given(asked, Settings()) for word in as_arguments(option)]
    found = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def main(s: Settings) -> None:
    if s.side != "both":
        print(json.dumps(ours(s) if s.side == "ours" else plain(s)))
        return
    from fusion_jax.models.folder import save
    from fusion_jax.runs.dialogue_data import miniature_system

    with tempfile.TemporaryDirectory() as folder:
        system = miniature_system(s.seed, s.width, s.layers, 128)
        save(system.generator, Path(folder) / "generator")
        save(system.retriever, Path(folder) / "retriever")
        sides: tuple[Side, ...] = ("ours", "plain")
        found = {side: in_process(replace(s, folder=folder), side) for side in sides}
    lines = [{"step": side} | {name: f"{value:.4f}" for name, value in one.items()} for side, one in found.items()]
    print(markdown_table(lines))
    ratio = found["plain"]["seconds"] / found["ours"]["seconds"]
    apart = abs(found["plain"]["loss"] - found["ours"]["loss"])
    print(f"plain / ours: {ratio:.2f} in time; the first losses differ by {apart:.1e}")


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
