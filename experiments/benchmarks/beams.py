"""Beam search beside transformers' in PyTorch: same checkpoints, prompts and machine, turn about in one process.

    python experiments/benchmarks/beams.py
    python experiments/benchmarks/beams.py --models bart --beams 10 --new-tokens 128

Needs requirements-test.txt. Models of random weights, float32: a Llama (4 layers, D 256, 8 heads, 4 for keys), a BART
(4 and 4 layers, D 256, 8 heads); V 8,192. Prompts of 16 to 64 tokens, drawn evenly, in one batch; length penalty 1,
early stopping off. The stop token is the one that most of the greedy continuations hold, so that hypotheses end at
different times. A row gives the median seconds of a search of all prompts, the ratio to ours, of how many prompts the
best hypotheses are the same tokens, and how many tokens those have. Time: about 5 minutes on 2 cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fusion_jax as fj
from fusion_jax.markdown import markdown_table
from fusion_jax.sampling.beam_search import BeamSearch, beam_search
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.settings import run as run_experiment

VOCAB, PAD, START = 8192, 0, 2
Search = Callable[[], list[list[int]]]


@dataclass(frozen=True)
class Settings:
    """Sizes of the searches; repeats: after one that is not timed."""

    models: tuple[str, ...] = ("llama", "bart")
    beams: tuple[int, ...] = (4, 10)
    prompts: int = 16
    new_tokens: int = 64
    repeats: int = 3
    seed: int = 0


def written(name: str, folder: Path) -> Any:
    """A checkpoint of random weights, as PyTorch's model."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ids: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": START}
    if name == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.1, **ids,
        ))  # fmt: skip
    else:
        model = BartForConditionalGeneration(BartConfig(
            vocab_size=VOCAB, d_model=256, encoder_layers=4, decoder_layers=4, encoder_ffn_dim=1024,
            decoder_ffn_dim=1024, encoder_attention_heads=8, decoder_attention_heads=8, max_position_embeddings=512,
            init_std=0.1, decoder_start_token_id=START, forced_eos_token_id=None, **ids,
        ))  # fmt: skip
    model.save_pretrained(folder)
    return model.eval()


def common(model: fj.Model, prompts: list[list[int]], s: Settings) -> int:
    """The token that most of the greedy continuations hold behind their first eighth."""
    found = generate_ids(
        model.params, model.config, prompts, max_new_tokens=s.new_tokens, batch_size=len(prompts)
    )  # fmt: skip
    held = Counter(token for (one,) in found for token in set(one.ids[s.new_tokens // 8 :]))
    return held.most_common(1)[0][0]


def ours(model: fj.Model, prompts: list[list[int]], beams: int, stop: int, s: Settings) -> Search:
    """The project's search."""

    def search() -> list[list[int]]:
        found = beam_search(
            model.params, model.config, prompts, BeamSearch(beams), max_new_tokens=s.new_tokens, stop_ids=[stop],
            batch_size=len(prompts),
        )  # fmt: skip
        return [best.ids for best, *_ in found]

    return search


def theirs(model: Any, prompts: list[list[int]], beams: int, stop: int, s: Settings) -> Search:
    """`transformers`' search, prompts padded to the longest."""
    import torch

    width, encoder = max(map(len, prompts)), model.config.is_encoder_decoder
    ids, mask = (torch.zeros((len(prompts), width), dtype=torch.long) for _ in range(2))
    for row, prompt in enumerate(prompts):
        here = slice(0, len(prompt)) if encoder else slice(width - len(prompt), width)
        ids[row, here], mask[row, here] = torch.tensor(prompt), 1

    def search() -> list[list[int]]:
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=s.new_tokens, num_beams=beams, do_sample=False,
                length_penalty=1.0, early_stopping=False, eos_token_id=stop, pad_token_id=PAD,
            )  # fmt: skip
        rows = out[:, 1 if encoder else width :].tolist()
        return [row[: row.index(stop)] if stop in row else row for row in rows]

    return search


def compared(name: str, beams: int, searches: dict[str, Search], repeats: int) -> list[dict[str, str]]:
    """Rows of the table: every search timed in turn."""
    found = {who: search() for who, search in searches.items()}
    same = sum(a == b for a, b in zip(*found.values(), strict=True))
    seconds: dict[str, list[float]] = {who: [] for who in searches}
    for _ in range(repeats):
        for who, search in searches.items():
            started = time.perf_counter()
            search()
            seconds[who].append(time.perf_counter() - started)
    median = {who: statistics.median(values) for who, values in seconds.items()}
    return [
        {
            "model": name, "beams": str(beams), "search": who, "median s": f"{median[who]:.2f}",
            "range": f"{min(seconds[who]):.2f}-{max(seconds[who]):.2f}",
            "times ours": f"{median[who] / median['ours']:.2f}", "same": f"{same} of {len(found['ours'])}",
            "tokens": str(sum(map(len, found[who]))),
        }
        for who in searches
    ]  # fmt: skip


def main(s: Settings) -> None:
    rng, rows = np.random.default_rng(s.seed), []
    lengths = np.linspace(16, 64, s.prompts).round().astype(int)
    prompts = [rng.integers(5, VOCAB, length).tolist() for length in lengths]
    with tempfile.TemporaryDirectory() as temporary:
        for name in s.models:
            folder = Path(temporary) / name
            model, loaded = written(name, folder), fj.load(folder)
            stop = common(loaded, prompts, s)
            for beams in s.beams:
                searches = {
                    "ours": ours(loaded, prompts, beams, stop, s),
                    "transformers": theirs(model, prompts, beams, stop, s),
                }  # fmt: skip
                rows += compared(name, beams, searches, s.repeats)
    print(markdown_table(rows))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
