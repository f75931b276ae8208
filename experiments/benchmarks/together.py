"""Cool-Fusion beside the plain decoding of one model, and beside the algorithm written plainly in PyTorch.

    python experiments/benchmarks/together.py                              # the three miniatures, 2 CPU cores
    python experiments/benchmarks/together.py --models FOLDER1 FOLDER2 --prompts 8

Prints, for the same prompts: tokens a second of each model alone and of all together, in each model's own tokens;
passes through a model for each token that it commits; and the time of a program that keeps nothing between tokens (the
text encoded anew, every candidate a forward pass of its own), on as many prompts as `--plain`, with whether the texts
agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_jax.cool.settings import CoolSettings
from fusion_jax.cool.sources import Source, read_prompts, sources_of
from fusion_jax.cool.texts import Held
from fusion_jax.cool.together import Written, write
from fusion_jax.cool.words import common, finished
from fusion_jax.markdown import markdown_table
from fusion_jax.models.folder import load
from fusion_jax.options import Models
from fusion_jax.runs.checks import model_name
from fusion_jax.runs.together import steps_told
from fusion_jax.sampling.ids import generate_ids
from fusion_jax.settings import bounded
from fusion_jax.settings import run as run_experiment
from fusion_jax.zoo import model_path
from fusion_jax.zoo.problems import problems
from fusion_jax.zoo.tasks import SKILLS


@dataclass(frozen=True)
class Settings:
    """Models, and how many prompts each way answers."""

    models: Models = ("zoo:llama-source", "zoo:qwen-source", "zoo:gemma-source")
    """Models that write together."""
    prompts: int = 64
    """Prompts that are answered at once."""
    plain: int = 4
    """Prompts for the plain program in PyTorch; 0: none."""
    segments: int = 16
    """Segments of an answer at most."""
    repeats: int = 3
    """Measurements, of which the fastest counts."""
    chat: bool = True
    """Whether prompts go through each model's chat template."""

    def __post_init__(self) -> None:
        bounded(self, "prompts", "segments", "repeats", least=1)
        bounded(self, "plain", least=0)


def main(s: Settings) -> None:
    models = {model_name(path): load(model_path(path)) for path in s.models}
    sources = sources_of(models, chat=s.chat)
    prompts = [p["prompt"] for p in problems("skills", -(-s.prompts // len(SKILLS)), split="test", seed=0)][: s.prompts]
    how = CoolSettings(mode="cool", max_segments=s.segments, batch_size=s.prompts)
    read = list(zip(*(read_prompts(source, prompts, s.chat) for source in sources), strict=True))
    seconds, written = fastest(lambda: [one for _, one in sorted(write(sources, read, how))], s.repeats)
    told = [steps_told(one, list(models)) for one in written]
    lines = []
    for number, source in enumerate(sources):
        alone, count = alone_of(source, [held[number].tokens.ids for held in read], written, number, s.repeats)
        own = sum(one["tokens"][source.name] for one in told)
        passes = sum(one["passes"][source.name] for one in told)
        lines.append({
            "model": source.name, "alone, tokens/s": f"{count / alone:.0f}",
            "together, tokens/s": f"{own / seconds:.0f}",
            "ratio": f"{own / seconds / (count / alone):.3f}", "passes a token": f"{passes / max(own, 1):.2f}",
        })  # fmt: skip
    print(markdown_table(lines))
    print(f"{len(prompts)} prompts together: {seconds:.2f} s; {sum(len(o.steps) for o in written)} segments")
    if s.plain:
        beside(sources, read[: s.plain], dict(zip(models, s.models)), how, s.repeats)


def fastest(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of the fastest of several calls behind one that compiles, and what the last gave."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        found.append(time.perf_counter() - start)
    return min(found), result


def alone_of(
    source: Source, prompts: Sequence[Sequence[int]], written: Sequence[Written], number: int, repeats: int
) -> tuple[float, int]:
    """Seconds and tokens of a model's own decoding: as many tokens of each prompt as the answers have on average."""
    length = max(round(float(np.mean([one.tokens[number] for one in written]))), 1)
    how = source.model.how

    def call() -> Any:
        return generate_ids(
            source.model.params, how.config, prompts, max_new_tokens=length, mesh=how.mesh, dtype=how.dtype,
            batch_size=len(prompts),
        )  # fmt: skip

    seconds, out = fastest(call, repeats)
    return seconds, sum(len(row[0].ids) for row in out)


def beside(
    sources: Sequence[Source], prompts: Sequence[Any], paths: dict[str, str], how: CoolSettings, repeats: int
) -> None:
    """The plain program on the same prompts, and ours on these alone."""
    seconds, ours = fastest(lambda: [one.text for _, one in sorted(write(sources, prompts, how))], repeats)
    torch_models = [torch_model(paths[source.name]) for source in sources]
    plainly(sources, torch_models, prompts[0], how)
    start = time.perf_counter()
    plain = [plainly(sources, torch_models, held, how) for held in prompts]
    took = time.perf_counter() - start
    same = sum(a == b for a, b in zip(ours, plain, strict=True))
    print(
        f"{len(prompts)} prompts: ours {seconds:.2f} s, plainly in PyTorch {took:.2f} s: {took / seconds:.1f} times; "
        f"{same} of {len(prompts)} texts the same"
    )


def torch_model(path: str) -> Any:
    """The model by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(model_path(path), **kind).eval()


def plainly(sources: Sequence[Source], models: Sequence[Any], prompts: Sequence[Held], s: CoolSettings) -> str:
    """The text that models write behind a prompt, a segment at a time: the definition, without any cache."""
    written = ""
    for _ in range(s.max_segments):
        offered = (proposed(sources, models, number, prompts, written, s) for number in range(len(sources)))
        offers = [one for one in dict.fromkeys(offered) if one[0] or one[1]]
        if not offers:
            break
        readers = list(zip(sources, models, prompts, strict=True))
        scores = [np.mean([perplexity(*reader, written, *offer) for reader in readers]) for offer in offers]
        text, end = offers[int(np.argmin(scores))]
        written += text
        if end:
            break
    return written


def proposed(
    sources: Sequence[Source], models: Sequence[Any], number: int, prompts: Sequence[Held], written: str,
    s: CoolSettings,
) -> tuple[str, bool]:  # fmt: skip
    """What one model would write next, and whether the answer ends there."""
    source, model = sources[number], models[number]
    ids = [*bos(source, prompts[number]), *source.words.encode([prompts[number].prompt + written])[0].ids]
    base, new, said = source.words.decode([ids])[0], list[int](), ""
    for _ in range(s.segment_tokens):
        logits = forward(model, [*ids, *new])[-1]
        logits[source.forbidden] = -np.inf
        token = int(logits.argmax())
        if token in source.ends:
            return said, True
        new.append(token)
        said = finished(source.words.decode([[*ids, *new]])[0][len(base) :])
        starts = common([
            [place - len(left) for place in one.words.starts(left + written + said) if place > len(left)]
            for one, left in zip(sources, [held.prompt[held.left :] for held in prompts])
        ])  # fmt: skip
        behind = [place for place in starts if len(written) < place < len(written + said)]
        if behind:
            return said[: behind[0] - len(written)], False
    return said, False


def bos(source: Source, held: Held) -> tuple[int, ...]:
    """What stands before the tokens of a prompt."""
    return held.tokens.ids[: len(held.tokens.ids) - len(source.words.encode([held.prompt])[0].ids)]


def perplexity(source: Source, model: Any, held: Held, written: str, text: str, end: bool) -> float:
    """exp of the mean negative log-probability of a segment's tokens."""
    (tokens,) = source.words.encode([held.prompt + written + text])
    before = bos(source, held)
    ids = [*before, *tokens.ids, *([source.end] if end else [])]
    new = (n for n, place in enumerate(tokens.ends) if place > len(held.prompt + written))
    first = len(before) + next(new, len(tokens.ids))
    logits = forward(model, ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(
        -1, keepdims=True
    )
    found = [logprobs[place - 1, ids[place]] for place in range(first, len(ids))]
    return float(np.exp(min(-np.mean(found), 80.0)))


def forward(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits float32[T,V] of one text."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].float().numpy()


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
