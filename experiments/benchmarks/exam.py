"""KCA's exam beside the published loop in PyTorch: the same model, the same questions, one run.

    python experiments/benchmarks/exam.py                                  # a random Llama, 2 CPU cores
    python experiments/benchmarks/exam.py --model FOLDER --questions 64

The published loop reads one prompt at a time, header, five exemplars and question, computes the logits of every
position and compares four of the last one. Prints questions a second of both, the ratio, and how many predictions are
equal; of those that are not, by how much the two letters differ in log-probability.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.together import fastest
from fusion_jax.kca.exam import ExamSettings, sit
from fusion_jax.kca.papers import Paper, asked
from fusion_jax.kca.records import LETTERS, ExamItem
from fusion_jax.markdown import markdown_table
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model, check_folder, load, save
from fusion_jax.models.parameters import init_params
from fusion_jax.options import ModelPath
from fusion_jax.sampling.ids import decoding_mesh
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.zoo import facts, model_path
from fusion_jax.zoo.tokenizers import train_tokenizer


@dataclass(frozen=True)
class Settings:
    """A model and how many questions it is asked."""

    model: ModelPath = ""
    """Model to ask; without, a Llama of random weights."""
    questions: int = 192
    """Questions."""
    batch_size: int = 64
    """Questions at once."""
    width: int = 256
    """Of the random model."""
    layers: int = 6
    """Of the random model."""
    vocabulary: int = 32_000
    """Of the random model, as large as Llama's."""
    repeats: int = 3
    """Measurements of this project's exam, of which the fastest counts."""

    def __post_init__(self) -> None:
        bounded(self, "questions", "batch_size", "layers", "repeats", least=1)
        bounded(self, "width", least=32)
        bounded(self, "vocabulary", least=2000)


def main(s: Settings) -> None:
    items, paper = questions(s.questions), Paper()
    with tempfile.TemporaryDirectory() as made:
        folder = model_path(s.model) if s.model else random_model(s, Path(made), [paper.before(5), *map(asked, items)])
        mesh, how = decoding_mesh(check_folder(folder)), ExamSettings(batch_size=s.batch_size)
        model = load(folder, mesh=mesh)
        ours, found = fastest(lambda: sit(model, items, paper, how, mesh=mesh)[0], s.repeats)
        theirs, scores, tokens = one_by_one(folder, model.tokenizer, [paper.before(5) + asked(item) for item in items])
    own = np.asarray([one.logprobs for one in found if one is not None])
    equal = own.argmax(-1) == scores.argmax(-1)
    apart = np.abs(own - (scores - np.logaddexp.reduce(scores, -1, keepdims=True)))
    rows = [("published loop in PyTorch", theirs), ("here", ours)]
    print(markdown_table([
        {"exam": name, "seconds": f"{seconds:.2f}", "questions/s": f"{len(items) / seconds:.1f}"}
        for name, seconds in rows
    ]))  # fmt: skip
    print(
        f"{theirs / ours:.1f} times as fast; {equal.sum()} of {len(items)} predictions equal; log-probs of the letters "
        f"differ by {apart.max():.1e} at most; {np.mean(tokens):.0f} tokens a prompt"
    )
    for number in np.flatnonzero(~equal):
        second, first = np.sort(own[number])[-2:]
        print(f"question {number + 1}: {first - second:.1e} between the two letters")


def questions(count: int) -> list[ExamItem]:
    """Questions about people of an invented world."""
    made = facts.world(0, facts.WorldSettings(people=max(-(-count // 6), 8), tested=max(-(-count // 6), 8)))
    people = [*made.train, *made.tested]
    items = [item for one in people for item in made.tests(made.note(one.name))]
    return [ExamItem(one.question, one.options, LETTERS[one.answer]) for one in items[:count]]


def random_model(s: Settings, folder: Path, texts: Sequence[str]) -> Path:
    """A Llama of random weights with a tokenizer of these texts."""
    tokenizer = train_tokenizer("byte_bpe", "inst", 1000, texts)
    heads = max(s.width // 64, 1)
    config = config_from_hf({
        "model_type": "llama", "vocab_size": s.vocabulary, "hidden_size": s.width, "num_hidden_layers": s.layers,
        "intermediate_size": 8 * s.width // 3, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": 64, "max_position_embeddings": 2048, "initializer_range": 0.1,
    })  # fmt: skip
    save(Model(config, init_params(config, jax.random.key(0)), tokenizer), folder)
    return folder


def one_by_one(folder: Path, tokenizer: Any, prompts: Sequence[str]) -> tuple[float, np.ndarray, list[int]]:
    """Seconds, letters' logits [n,4] and tokens of each prompt by transformers, as published."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    letters = [tokenizer(f" {letter}")["input_ids"][-1] for letter in LETTERS]

    def read(prompt: str) -> tuple[np.ndarray, int]:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        return logits[letters].double().numpy(), ids.shape[1]

    read(prompts[0])
    start = time.perf_counter()
    found = [read(prompt) for prompt in prompts]
    return time.perf_counter() - start, np.stack([logits for logits, _ in found]), [count for _, count in found]


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
