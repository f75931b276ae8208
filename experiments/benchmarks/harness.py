"""lm-eval's `hf` backend (PyTorch) beside ours: the same checkpoint, tasks and machine, one after the other.

    python experiments/benchmarks/harness.py
    python experiments/benchmarks/harness.py --model FOLDER --per-skill 8 --num-fewshot 4

Needs lm-eval, torch and accelerate. Tasks: the zoo's, of which each skill has `per-skill` questions; the requests of a
task are answered by one backend, then by the other, in turn, in float32. A row gives the CPU seconds of all threads for
the first time (ours with compilation), the median of `repeats` other times, and the largest difference of a
log-probability; of answers, how many are the same text. Without --model, a Llama of random weights: 4 layers, D 256.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fusion_jax.errors import InputError
from fusion_jax.evals.harness.zoo_tasks import zoo_tasks
from fusion_jax.markdown import markdown_table
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, load, save
from fusion_jax.models.parameters import init_params
from fusion_jax.options import ModelPath, Names
from fusion_jax.settings import run as run_experiment
from fusion_jax.zoo import model_path


@dataclass(frozen=True)
class Settings:
    """What is compared; repeats: after the first time."""

    model: ModelPath = ""
    tasks: Names = ("zoo_choices", "zoo_texts", "zoo_answers")
    per_skill: int = 8
    num_fewshot: int = 4
    batch_size: int = 16
    repeats: int = 1
    seed: int = 0


def random_model() -> Model:
    """A Llama whose distributions are far from even, with a tokenizer of the zoo."""
    tokenizer = load(model_path("zoo:target")).tokenizer
    assert tokenizer is not None
    config = config_from_hf({
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 688,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
        "initializer_range": 0.1, "tie_word_embeddings": True,
    })  # fmt: skip
    return Model(config, init_params(config, jax.random.key(0)), tokenizer)


def requests_of(task: dict[str, Any], s: Settings) -> tuple[str, list[Any]]:
    """The kind of a task's requests, and these."""
    from lm_eval.tasks import TaskManager

    (found,) = TaskManager(include_defaults=False).load([task])["tasks"].values()
    found.set_config(key="num_fewshot", value=0 if task["output_type"] == "loglikelihood_rolling" else s.num_fewshot)
    found.set_fewshot_seed(seed=s.seed)
    found.build_all_requests(rank=0, world_size=1)
    return found.instances[0].request_type, found.instances


def compared(name: str, kind: str, requests: list[Any], backends: dict[str, Any], repeats: int) -> list[dict[str, str]]:
    """Rows of the table."""
    seconds: dict[str, list[float]] = {who: [] for who in backends}
    found = dict[str, list[Any]]()
    for _ in range(1 + repeats):
        for who, backend in backends.items():
            started = time.process_time()
            found[who] = getattr(backend, kind)(requests, disable_tqdm=True)
            seconds[who].append(time.process_time() - started)
    again = {who: statistics.median(times[1:] or times) for who, times in seconds.items()}
    return [
        {
            "task": name, "requests": str(len(requests)), "backend": who, "first CPU s": f"{seconds[who][0]:.1f}",
            "again CPU s": f"{again[who]:.1f}", "times ours": f"{again[who] / again['ours']:.2f}",
            "agreement": agreement(kind, *found.values()),
        }
        for who in backends
    ]  # fmt: skip


def agreement(kind: str, ours: list[Any], theirs: list[Any]) -> str:
    """How far apart the results are."""
    if kind == "generate_until":
        return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} the same"
    of: Callable[[Any], float] = (lambda one: one[0]) if kind == "loglikelihood" else float
    return f"{max(abs(of(a) - of(b)) for a, b in zip(ours, theirs, strict=True)):.1e} apart"


def main(s: Settings) -> None:
    from fusion_jax.evals.harness.backend import FusionLM

    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise InputError("the hf backend is not installed", cure="pip install 'lm-eval[hf]'") from error

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows = list[dict[str, str]]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = model_path(s.model) if s.model else Path(temporary) / "model"
        if not s.model:
            save(random_model(), folder)
        model = load(folder, dtype="float32")
        backends = {
            "ours": FusionLM(dataclasses.replace(model), batch_size=s.batch_size, dtype="float32"),
            "hf": HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=s.batch_size),
        }
        for name in s.tasks:
            rows += compared(name, *requests_of(zoo_tasks(s.per_skill, seed=s.seed)[name], s), backends, s.repeats)
    print(markdown_table(rows))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
