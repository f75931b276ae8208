"""A small model with a tokenizer and small data, made in a second: for tests of whole programs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.jsonl import Record, write_jsonl
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, save
from fusion_jax.models.parameters import init_params
from fusion_jax.settings import run as run_experiment
from fusion_jax.zoo.tasks import SKILLS, corpus, mixture
from fusion_jax.zoo.tokenizers import train_tokenizer

ROOT = Path(__file__).parents[1]


def small_model(**changes: Any) -> Model:
    """Random weights, 2 layers of width 32, a byte-level tokenizer. changes: of config.json; num_labels makes it a
    classifier."""
    tokenizer = train_tokenizer("byte_bpe", "headers", 340, corpus(0, 20))
    kind = "LlamaForSequenceClassification" if "num_labels" in changes else "LlamaForCausalLM"
    config = config_from_hf({
        "model_type": "llama", "architectures": [kind], "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "max_position_embeddings": 128, "tie_word_embeddings": True, **changes,
    })  # fmt: skip
    return Model(config, init_params(config, jax.random.key(0)), tokenizer)


def compiled(
    read: Callable[..., jax.Array], model: Model, *given: Any, options: dict[str, Any] | None = None, **named: Any
) -> np.ndarray:
    """`logits` or `classify` as one program, which compiles in half the time of all its operations one by one.

    options: of the compiler.
    """

    def whole(params: Any) -> jax.Array:
        return read(dataclasses.replace(model, params=params), *given, **named)

    found = jax.jit(whole, compiler_options=options)
    return np.asarray(found(model.params))


def doubled(read: Callable[..., jax.Array], model: Model, *given: Any) -> np.ndarray:
    """`compiled` in float64, where two forms of one model differ by rounding of 1e-15, whatever the machine."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), model.params)
        return compiled(read, dataclasses.replace(model, params=params), *given)


def changed(
    config: ModelConfig, *, attention: dict[str, Any] | None = None, stack: dict[str, Any] | None = None, **model: Any
) -> ModelConfig:
    """A model of one stack with other parts. attention, stack: fields of those records; model: of the model's."""
    one = config.decoder[0]
    one = dataclasses.replace(one, attention=dataclasses.replace(one.attention, **(attention or {})), **(stack or {}))
    return dataclasses.replace(config, decoder=(one,), **model)


def small_folder(path: Path, **changes: Any) -> Path:
    """`small_model` as a folder."""
    save(small_model(**changes), path)
    return path


def pairs(count: int) -> list[Record]:
    """Right against wrong answers."""
    prompts = mixture(dict.fromkeys(SKILLS, -(-count // len(SKILLS))), split="train", seed=0)[:count]
    return [
        {"prompt_id": p["prompt_id"], "prompt": p["prompt"], "chosen": p["answer"], "rejected": f"not {p['answer']}"}
        for p in prompts
    ]


def even_pairs(count: int) -> list[Record]:
    """Right against wrong answers of one length, so that a run compiles few programs; at most 56."""
    letters = "abcdfghjkm"
    rows = [f"{a} {b} {c}" for a, b, c in zip(letters * 6, letters[3:] * 8, letters[::-1] * 6)]
    return [{"prompt": f"Reverse {r}", "chosen": r[::-1], "rejected": f"not {r}"} for r in rows[:count]]


def quads(count: int) -> list[Record]:
    """Quadruples of the official schema."""

    def say(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    return [
        {
            "prompt_id": p["prompt_id"], "prompt": {"role": "user", "content": p["prompt"]},
            "chosen": [say(f"The answer is {p['chosen']}."), say(p["chosen"])], "rejected": [say(p["rejected"])],
        }
        for p in pairs(count)
    ]  # fmt: skip


def responses(count: int) -> list[Record]:
    """Of two sources, a right and a wrong answer each, of different rewards."""
    return [
        {
            "prompt_id": p["prompt_id"], "prompt": p["prompt"], "answer": p["chosen"], "source_model": source,
            "sample": sample, "response": p["chosen"] if right else f"{p['rejected']} {source}",
            "reward": 0.5 + 0.3 * right + 0.01 * (source == "b"), "domain": "even" if number % 2 else "odd",
        }
        for number, p in enumerate(pairs(count))
        for source in ("a", "b")
        for sample, right in enumerate((True, False))
    ]  # fmt: skip


def write(path: Path, records: list[Record]) -> Path:
    write_jsonl(path, records)
    return path


def virtual_devices(count: int) -> dict[str, str]:
    """The environment of a process with so many virtual devices, beside the flags that are set."""
    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={count}"]
    return {"XLA_FLAGS": " ".join(filter(None, flags))}


def script(experiment: str, *args: str) -> list[str]:
    return [str(ROOT / "experiments" / f"{experiment}.py"), *args]


def command(experiment: str, *args: str) -> list[str]:
    return [sys.executable, *script(experiment, *args)]


def run(experiment: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """An experiment as a user runs it."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command(experiment, *args), cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def attempt(module: Any, args: list[str]) -> None:
    """An experiment in this process."""
    presets = getattr(module, "PRESETS", None)
    run_experiment(module.Settings, module.main, presets=presets, description="", args=args)


def fails(module: Any, args: list[str], capsys: pytest.CaptureFixture[str], *wanted: str) -> str:
    """Run an experiment in this process; it must end with exit code 2 and one line that holds all of `wanted`."""
    with pytest.raises(SystemExit) as stopped:
        attempt(module, args)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    line = " ".join(captured.err.split())
    for text in wanted:
        assert text in line, (text, line)
    assert "Traceback" not in line
    return line
