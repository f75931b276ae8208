"""A step of distillation beside trl's and the published FuseChat step: the same models, tokens and machine, one run.

    python experiments/benchmarks/distil.py --vocab 8192 32768

Needs requirements-test.txt. Models: Llama, 4 layers, D 256, 8 heads (4 for keys), teacher and student of one
vocabulary; 8 examples of 256 tokens, half of them prompt; float32; AdamW and clipping included. Stored: the teacher's
10 most probable entries are read from memory; a step makes its batch of them. The FuseChat step is re-created from its
description: the collator makes dense distributions [B,T,V], the loss is 0.9 times the cross-entropy of the text plus
0.1 times that of the distributions, over the whole of the logits. In the step: the teacher is asked in every step;
trl's GKDTrainer compares all V entries by forward KL, ours the 10 most probable, so that their losses differ.
Each contender runs in a process of its own; a row gives the median step, its ratio to ours, the first loss (stored ones
agree to 1e-4, or the program ends with an error) and the peak memory of the process.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.contenders import RATE, Result, clock, prepare, timed, word_tokenizer
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.settings import run as run_experiment

K, WEIGHT, BATCH, TOKENS = 10, 0.9, 8, 256
HALF = TOKENS // 2


@dataclass(frozen=True)
class Settings:
    """vocab: entries. steps: that are timed. only: contenders whose names contain it."""

    vocab: tuple[int, ...] = (8192, 32768)
    steps: int = 5
    only: str = ""


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tokens_of(folder: Path) -> np.ndarray:
    """int[B,T], the chosen responses behind their prompts."""
    return np.load(folder / "ids.npy", allow_pickle=False)[:, 1]


def targets_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's entries of every token: ids int32[B,T,K], log-probs float32[B,T,K]."""
    file = folder / "targets.npz"
    if not file.exists():
        import torch
        from transformers import AutoModelForCausalLM

        teacher = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32).eval()
        with torch.no_grad():
            logprobs = teacher(torch.tensor(tokens_of(folder))).logits.log_softmax(-1)
        top = logprobs.topk(K, -1)
        np.savez(file, ids=top.indices.numpy().astype(np.int32), logprobs=top.values.numpy())
    with np.load(file, allow_pickle=False) as found:
        return found["ids"], found["logprobs"]


def ours(folder: Path, steps: int, *, live: bool = False) -> Result:
    """The project's own batches and step; live: the teacher's rows are computed in every step."""
    import jax
    import jax.numpy as jnp

    import fusion_jax as fj
    from fusion_jax.data.batches import Example, Targets, buckets_of, collate
    from fusion_jax.models.compute import Compute
    from fusion_jax.teachers.reading import make_topk_step
    from fusion_jax.teachers.settings import FusionSettings
    from fusion_jax.train import objectives
    from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
    from fusion_jax.train.step import make_train_step

    rows, (ids, logprobs) = tokens_of(folder), targets_of(folder)
    model, compute = fj.load(folder / "policy"), Compute(remat="dots")
    objective = objectives.fusion(FusionSettings(weight=WEIGHT, kind="kl" if live else "ce", pivot=False))
    optimizer = make_optimizer(OptimizerSettings())
    train = make_train_step(model.config, objective, optimizer, compute)
    state = init_state(model.params, optimizer)
    teacher, ask = None, None
    if live:
        teacher = fj.load(folder / "reference")
        ask = make_topk_step(teacher.config, compute, K, teacher.config.vocab_size)
    lengths, labels = np.full(BATCH, TOKENS, np.int32), np.roll(rows, -1, 1)

    def once() -> float:
        nonlocal state
        entries, values = ids, logprobs
        if ask is not None and teacher is not None:
            asked = (jnp.asarray(x) for x in (rows, labels, lengths))
            top, _ = jax.device_get(ask(teacher.params, *asked))
            entries, values = top.ids, top.logprobs
        probs = np.exp(values - values.max(-1, keepdims=True))
        probs = probs / probs.sum(-1, keepdims=True)
        probs[:, : HALF - 1] = 0.0
        examples = [
            Example((tuple(row.tolist()),), (HALF,), i, targets=Targets(entries[i, :-1], probs[i, :-1], np.float32(0)))
            for i, row in enumerate(rows)
        ]
        batch = collate(examples, buckets_of(examples))
        state, metrics = train(state, jax.tree.map(lambda x: jnp.asarray(x)[None], batch), Pace(100, RATE))
        return float(metrics["loss"])

    return timed(once, steps)


def fusechat(folder: Path, steps: int) -> Result:
    """The published step: a collator that writes every distribution out, losses over whole logits."""
    import torch
    from transformers import AutoModelForCausalLM

    rows, (ids, logprobs) = tokens_of(folder), targets_of(folder)
    student = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0)
    vocab, tokens = student.config.vocab_size, torch.tensor(rows)
    labels = torch.where(torch.arange(TOKENS) < HALF, -100, tokens)

    def collated() -> Any:
        dense = torch.zeros(BATCH, TOKENS, vocab)
        return dense.scatter_(-1, torch.tensor(ids, dtype=torch.long), torch.tensor(logprobs).softmax(-1))

    def once() -> float:
        target = collated()
        logits = student(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        text = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocab), labels[:, 1:].reshape(-1))
        scored = (labels[:, 1:] != -100).float()
        each = -(target[:, :-1] * logits[:, :-1].log_softmax(-1)).sum(-1)
        loss = WEIGHT * text + (1 - WEIGHT) * (each * scored).sum() / scored.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return timed(once, steps)


def gkd(folder: Path, steps: int) -> Result:
    """trl's trainer for distillation on given texts, through its own loop; beta 0 is forward KL."""
    import warnings

    import datasets
    import torch
    from transformers import AutoModelForCausalLM

    warnings.simplefilter("ignore")
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokens = torch.tensor(tokens_of(folder))
    labels = torch.where(torch.arange(TOKENS) < HALF, -100, tokens)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("policy", "reference")
    )
    seconds = list[float]()

    def collated(features: Any) -> dict[str, Any]:
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}

    config = GKDConfig(
        output_dir=str(folder / "gkd"), per_device_train_batch_size=BATCH, max_steps=steps + 2, learning_rate=RATE,
        lmbda=0.0, beta=0.0, logging_steps=1, save_strategy="no", report_to=[], lr_scheduler_type="constant",
        warmup_steps=0, use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"messages": [{"role": "user", "content": "t000003"}]}] * BATCH * (steps + 2))
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=config, data_collator=collated, train_dataset=data,
        processing_class=word_tokenizer(folder), callbacks=[clock(seconds)],
    )  # fmt: skip
    trainer.train()
    first = next(r["loss"] for r in trainer.state.log_history if "loss" in r)
    return {"seconds": seconds[2:], "first_loss": first}


CONTENDERS: dict[str, Callable[[Path, int], Result]] = {
    "stored: ours": ours,
    "stored: FuseChat's step": fusechat,
    "in the step: ours": lambda folder, steps: ours(folder, steps, live=True),
    "in the step: trl GKD": gkd,
}


def child(name: str, folder: Path, steps: int) -> Result:
    """A contender in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.distil", "--child", name, str(folder), str(steps)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"failed:\n{done.stderr[-2000:]}", field=name)
    return json.loads((folder / "result.json").read_text()) if name != "prepare" else {}


def run_child(name: str, folder: Path, steps: int) -> None:
    """What `child` starts."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if name == "prepare":
        prepare(folder, steps)
        targets_of(folder)
        return
    out = CONTENDERS[name](folder, steps)
    (folder / "result.json").write_text(json.dumps({**out, "peak_mib": peak_mib()}))


def main(s: Settings) -> None:
    rows: list[dict[str, str]] = []
    for vocab in s.vocab:
        with tempfile.TemporaryDirectory() as temporary:
            folder, base = Path(temporary), dict[str, Result]()
            child("prepare", folder, vocab)
            for name in (n for n in CONTENDERS if s.only in n):
                out, kind = child(name, folder, s.steps), name.split(":")[0]
                first = base.setdefault(kind, out)
                if kind == "stored" and abs(out["first_loss"] - first["first_loss"]) > 1e-4:
                    raise InputError(f"starts at {out['first_loss']}, ours at {first['first_loss']}", field=name)
                median, best = (statistics.median(one["seconds"]) for one in (out, first))
                rows.append({
                    "V": str(vocab), "contender": name, "median s": f"{median:.3f}",
                    "times ours": f"{median / best:.2f}",
                    "range": f"{min(out['seconds']):.3f}-{max(out['seconds']):.3f}",
                    "first loss": f"{out['first_loss']:.5f}", "peak MiB": f"{out['peak_mib']:.0f}",
                    "memory over ours": f"{out['peak_mib'] / first['peak_mib']:.2f}",
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    print(markdown_table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        run_experiment(Settings, main, description=__doc__ or "")
