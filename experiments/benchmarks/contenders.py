"""What `speed.py` times, one contender a process: `python contenders.py NAME FOLDER RESULT STEPS`.

Every contender reads the same two checkpoints (policy and reference) and the same token ids from FOLDER and writes
{"seconds": [...], "first_loss": x, "peak_mib": y} to RESULT.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BETA, ALPHA, RATE = 0.1, 0.3, 1e-6
NEW_TOKENS, SAMPLES = 128, 5
Result = dict[str, Any]


def timed(step: Callable[[], float], steps: int) -> Result:
    """First loss, then seconds of each of `steps` calls after one more to warm up."""
    first = step()
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "first_loss": first}


def ids_of(folder: Path) -> np.ndarray:
    """int[B,3,T]: source chosen, target chosen, rejected; the first half of each row is its prompt."""
    return np.load(folder / "ids.npy", allow_pickle=False)


ROWS = {"wrpo": [0, 1, 2], "dpo": [1, 2], "dpo_norm": [1, 2], "infifpo": [1, 2], "sft": [1]}
"""Which of the rows (source's response, chosen, rejected) a job trains on."""


def values_of_sources(count: int) -> np.ndarray:
    """float32[B,2,3], log-probs per token of the two responses under three sources."""
    return -np.random.default_rng(1).uniform(8.5, 10.0, (count, 2, 3)).astype(np.float32)


def ours(folder: Path, steps: int, *, kind: str, in_step: bool = False, naive: bool = False) -> Result:
    """The project's own step, on the project's own data types; `naive`: the same with [B,T,V] logits."""
    import jax
    import jax.numpy as jnp

    import fusion_jax as fj
    from fusion_jax.data.batches import Data, Example, buckets_of, collate
    from fusion_jax.models.compute import Compute
    from fusion_jax.train import fused_objectives, objectives, scores
    from fusion_jax.train.fused_objectives import InfifpoSettings
    from fusion_jax.train.objectives import PairSettings, WrpoSettings
    from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
    from fusion_jax.train.step import make_score_step, make_train_step

    if naive:
        scores.linear_logprobs = _dense_logprobs
    rows = ids_of(folder)[:, ROWS[kind]]
    half = rows.shape[-1] // 2
    examples = [Example(tuple(map(tuple, r.tolist())), (half,) * len(r), i) for i, r in enumerate(rows)]
    if kind == "infifpo":
        examples = list(Data(examples).valued(values_of_sources(len(rows))).examples)
    batch = collate(examples, buckets_of(examples))
    model, reference = fj.load(folder / "policy"), fj.load(folder / "reference").params
    objective = {
        "wrpo": objectives.wrpo(WrpoSettings(beta=BETA, alpha=ALPHA, dynamic=False)),
        "dpo": objectives.pair(PairSettings(beta=BETA)),
        "dpo_norm": objectives.pair(PairSettings("dpo_norm", beta=BETA)),
        "infifpo": fused_objectives.infifpo(InfifpoSettings(beta=BETA)),
        "sft": objectives.sft(),
    }[kind]
    compute = Compute(remat="dots")
    if kind != "sft" and not in_step:
        frozen = make_score_step(model.config, compute)(reference, batch)
        batch = batch._replace(reference=np.asarray(frozen))
    optimizer = make_optimizer(OptimizerSettings())
    train = make_train_step(model.config, objective, optimizer, compute)
    state = init_state(model.params, optimizer)
    batches = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)

    def once() -> float:
        nonlocal state
        state, metrics = train(state, batches, Pace(100, RATE), reference if in_step else None)
        return float(metrics["loss"])

    return timed(once, steps)


def _dense_logprobs(hidden: Any, kernel: Any, labels: Any, **_: Any) -> Any:
    import jax
    import jax.numpy as jnp

    logprobs = jax.nn.log_softmax(jnp.einsum("...d,vd->...v", hidden, kernel))
    return jnp.take_along_axis(logprobs, labels[..., None], -1)[..., 0], None


def hand_torch(folder: Path, steps: int, *, kind: str, in_step: bool = False, official: bool = False) -> Result:
    """Plain PyTorch: one padded forward, log-softmax over everything, gather, AdamW, clipping.

    `official`: also what the published WRPO trainer adds to it (float32 copies of the logits, their mean as a metric);
    a re-creation from its description, not its code.
    """
    import torch
    from transformers import AutoModelForCausalLM

    def load(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)

    rows = ids_of(folder)[:, ROWS[kind]]
    count, groups, length = rows.shape
    tokens = torch.tensor(rows.swapaxes(0, 1).reshape(-1, length))
    scored = torch.arange(length - 1) >= length // 2 - 1
    policy, reference = load("policy").train(), load("reference").eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)

    def sums(model: Any) -> tuple[Any, Any]:
        logits = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[:, :-1]
        logits = logits.float().clone() if official else logits
        picked = torch.gather(logits.log_softmax(-1), 2, tokens[:, 1:, None])[..., 0]
        return (picked * scored).sum(-1).reshape(groups, count), logits

    def loss_of(chosen: Any, fixed: Any) -> Any:
        if kind == "sft":
            return -chosen.sum() / (count * int(scored.sum()))
        if kind in ("dpo_norm", "infifpo"):
            chosen, fixed = chosen / scored.sum(), fixed / scored.sum()
        if kind == "infifpo":
            sources = torch.tensor(values_of_sources(count)).permute(1, 0, 2)
            clipped = torch.stack([
                torch.maximum(sources[0], fixed[0, :, None]), torch.minimum(sources[1], fixed[1, :, None])
            ])  # fmt: skip
            far = (clipped.exp() - fixed.exp()[..., None]).abs().argmax(-1, keepdim=True)
            fixed = clipped.gather(-1, far)[..., 0]
        ratios = chosen - fixed
        better = ALPHA * ratios[0] + (1 - ALPHA) * ratios[1] if kind == "wrpo" else ratios[0]
        return -torch.nn.functional.logsigmoid(BETA * (better - ratios[-1])).mean()

    stored: Any = None
    if kind != "sft" and not in_step:
        with torch.no_grad():
            stored = sums(reference)[0]

    def once() -> float:
        fixed = stored
        if in_step:
            with torch.no_grad():
                fixed = sums(reference)[0]
        own, logits = sums(policy)
        loss = loss_of(own, fixed)
        if official:
            logits.detach()[: 2 * count].mean().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return timed(once, steps)


def word_tokenizer(folder: Path) -> Any:
    """The tokenizer of `prepare`, as `trl`'s trainers take it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="t000002", pad_token="t000000", bos_token=None
    )


def clock(seconds: list[float]) -> Any:
    """What tells a trainer's steps: it appends the seconds of each."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    return Clock()


def trl(folder: Path, steps: int, *, kind: str, in_step: bool = True) -> Result:
    """`trl`'s own trainer through its own loop, timed from step begin to step end."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = ids_of(folder)
    half = rows.shape[-1] // 2
    tokenizer, seconds = word_tokenizer(folder), list[float]()

    def words(ids: np.ndarray) -> str:
        return " ".join(f"t{i:06d}" for i in ids)

    records = []
    for source, target, rejected in rows:
        record = {"prompt": words(source[:half]) + " "}
        if kind == "dpo":
            record |= {"chosen": words(target[half:-1]) + " ", "rejected": words(rejected[half:-1]) + " "}
        else:
            record |= {"completion": words(target[half:-1]) + " "}
        records.append(record)
    data = datasets.Dataset.from_list(records * (steps + 2))
    shared = {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": len(rows), "max_steps": steps + 2,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None,
        "disable_tqdm": True, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    if kind == "dpo":
        reference = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
        config = DPOConfig(**shared, beta=BETA, precompute_ref_log_probs=not in_step)
        trainer = DPOTrainer(
            policy, reference, config, train_dataset=data, processing_class=tokenizer, callbacks=[clock(seconds)]
        )
    else:
        trainer = SFTTrainer(
            policy, SFTConfig(**shared), train_dataset=data, processing_class=tokenizer, callbacks=[clock(seconds)]
        )
    trainer.train()
    first = next(r["loss"] for r in trainer.state.log_history if "loss" in r)
    return {"seconds": seconds[2:], "first_loss": first}


def ours_generate(folder: Path, steps: int, *, samples: int) -> Result:
    """Greedy, or several samples a prompt, 64 tokens in and 128 out."""
    import fusion_jax as fj
    from fusion_jax.sampling.generate import generate_ids
    from fusion_jax.sampling.samplers import Sampler

    model = fj.load(folder / "policy")
    prompts = ids_of(folder)[:, 0, :64].tolist()

    def once() -> float:
        out = generate_ids(
            model.params, model.config, prompts, max_new_tokens=NEW_TOKENS, num_samples=samples,
            batch_size=len(prompts),
            sampler=Sampler(0.0 if samples == 1 else 0.8),
        )  # fmt: skip
        assert all(len(c.ids) == NEW_TOKENS for row in out for c in row)
        return float(sum(out[0][0].ids)) if samples == 1 else 0.0

    return timed(once, steps)


def torch_generate(folder: Path, steps: int, *, samples: int) -> Result:
    """`transformers`' own generation of the same."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).eval()
    prompts = torch.tensor(ids_of(folder)[:, 0, :64])
    how: dict[str, Any] = {"do_sample": False} if samples == 1 else {"do_sample": True, "temperature": 0.8, "top_k": 0}

    def once() -> float:
        with torch.no_grad():
            out = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
                num_return_sequences=samples, pad_token_id=0, eos_token_id=None, **how,
            )  # fmt: skip
        return float(out[0, 64:].sum()) if samples == 1 else 0.0

    return timed(once, steps)


def ours_files(folder: Path, steps: int) -> Result:
    """Load a folder, save it."""
    import jax

    import fusion_jax as fj

    def once() -> float:
        model = fj.load(folder / "policy")
        jax.block_until_ready(model.params)
        fj.save(model, folder / "copy", overwrite=True)
        return 0.0

    return timed(once, steps)


def torch_files(folder: Path, steps: int) -> Result:
    """The same with `transformers`."""
    import torch
    from transformers import AutoModelForCausalLM

    def once() -> float:
        AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).save_pretrained(folder / "copy-hf")
        return 0.0

    return timed(once, steps)


def prepare(folder: Path, vocab: int) -> None:
    """The two checkpoints (written by `transformers`), the token ids and a word-level tokenizer for them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "reference")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.005 * torch.randn_like(parameter))
    model.save_pretrained(folder / "policy")
    ids = np.random.default_rng(0).integers(3, vocab, (8, 3, 256))
    ids[:, :, :128] = ids[:, :1, :128]
    ids[:, :, -1] = 2
    np.save(folder / "ids.npy", ids, allow_pickle=False)
    tokenizer = Tokenizer(models.WordLevel({f"t{i:06d}": i for i in range(vocab)}, unk_token="t000000"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


CONTENDERS: dict[str, Callable[[Path, int], Result]] = {
    "sft ours": lambda f, n: ours(f, n, kind="sft"),
    "sft jax with [B,T,V]": lambda f, n: ours(f, n, kind="sft", naive=True),
    "sft torch": lambda f, n: hand_torch(f, n, kind="sft"),
    "sft trl": lambda f, n: trl(f, n, kind="sft"),
    "dpo ours": lambda f, n: ours(f, n, kind="dpo"),
    "dpo jax with [B,T,V]": lambda f, n: ours(f, n, kind="dpo", naive=True),
    "dpo torch": lambda f, n: hand_torch(f, n, kind="dpo"),
    "dpo trl precomputed": lambda f, n: trl(f, n, kind="dpo", in_step=False),
    "dpo ours in-step": lambda f, n: ours(f, n, kind="dpo", in_step=True),
    "dpo torch in-step": lambda f, n: hand_torch(f, n, kind="dpo", in_step=True),
    "dpo trl": lambda f, n: trl(f, n, kind="dpo"),
    "dpo_norm ours": lambda f, n: ours(f, n, kind="dpo_norm"),
    "dpo_norm torch": lambda f, n: hand_torch(f, n, kind="dpo_norm"),
    "infifpo ours": lambda f, n: ours(f, n, kind="infifpo"),
    "infifpo torch": lambda f, n: hand_torch(f, n, kind="infifpo"),
    "wrpo ours": lambda f, n: ours(f, n, kind="wrpo"),
    "wrpo torch": lambda f, n: hand_torch(f, n, kind="wrpo"),
    "wrpo ours in-step": lambda f, n: ours(f, n, kind="wrpo", in_step=True),
    "wrpo torch in-step": lambda f, n: hand_torch(f, n, kind="wrpo", in_step=True),
    "wrpo official re-created": lambda f, n: hand_torch(f, n, kind="wrpo", in_step=True, official=True),
    "greedy ours": lambda f, n: ours_generate(f, n, samples=1),
    "greedy transformers": lambda f, n: torch_generate(f, n, samples=1),
    "5 samples ours": lambda f, n: ours_generate(f, n, samples=SAMPLES),
    "5 samples transformers": lambda f, n: torch_generate(f, n, samples=SAMPLES),
    "load+save ours": ours_files,
    "load+save transformers": torch_files,
}


def main(name: str, folder: str, result: str, steps: str) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if name == "prepare":
        prepare(Path(folder), int(steps))
        return
    out = CONTENDERS[name](Path(folder), int(steps))
    out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(result).write_text(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
