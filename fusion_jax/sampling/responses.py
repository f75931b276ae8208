"""Responses of a model to prompts, as the records that the later stages read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusion_jax.arguments import records
from fusion_jax.jsonl import Record
from fusion_jax.models.folder import Model
from fusion_jax.sampling.generate import SampleSettings, decoding_mesh, generate


def sample_responses(
    model: Model,
    name: str,
    prompts: Sequence[Record],
    settings: SampleSettings,
    *,
    seed: int,
    chat: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Record]:
    """`num_samples` responses to every prompt: the prompt's record with `source_model`, `sample` and `response`; chat:
    see `generate`."""
    texts = generate(
        model, [p["prompt"] for p in records(prompts, "prompts")], max_new_tokens=settings.max_new_tokens, seed=seed,
        temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k, min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty, stop=settings.stop_strings, beams=settings.search or 1,
        num_samples=settings.num_samples, chat=chat, batch_size=settings.batch_size,
        mesh=decoding_mesh(model.config, settings.mesh_tensor), progress=progress,
    )  # fmt: skip
    return [
        {**prompt, "source_model": name, "sample": number, "response": text.strip()}
        for prompt, samples in zip(prompts, texts, strict=True)
        for number, text in enumerate(samples)
    ]
