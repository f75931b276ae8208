"""Run by test_many_devices.py in its own process with 16 virtual devices: batches of less than 16, on one and on 16."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np

from fusion_jax.data.batches import Data, buckets_of
from fusion_jax.data.documents import encode_documents, plain_examples, text_documents
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import place_params
from fusion_jax.rewards.reward_model import score_responses
from fusion_jax.sampling.generate import generate
from fusion_jax.sharding import make_mesh
from fusion_jax.teachers.reading import teacher_rows
from fusion_jax.train.reference import sequence_logprobs
from tests.small import small_model

TEXTS = ["one two three", "What is 12 + 30?", "a", "Reverse a b c d e"]


def found(sizes: tuple[int, int, int] | None) -> dict[str, list[float]]:
    """Teachers, references, rewards and answers, of batches of 3 texts, on a mesh or without one."""
    mesh = None if sizes is None else make_mesh(*sizes)
    model = small_model(max_position_embeddings=64)
    model = dataclasses.replace(model, params=place_params(model.params, model.config, mesh))
    judge = small_model(num_labels=1, tie_word_embeddings=False)
    judge = dataclasses.replace(judge, params=place_params(judge.params, judge.config, mesh))
    compute = Compute(mesh, kernel="xla" if mesh is None else "splash-interpreted")
    texts = encode_documents(model.tokenizer, text_documents(TEXTS), max_length=64)
    rows, examples = teacher_rows(model, texts, 4, compute, batch_size=3)(range(4)), plain_examples(texts)
    answers = [{"prompt": t, "response": "42"} for t in TEXTS]
    return {
        "teacher": np.concatenate([r.logsumexp for r in rows]).tolist(),
        "reference": sequence_logprobs(
            model.params, model.config, Data(examples), compute, batch_size=3, buckets=buckets_of(examples)
        ).ravel().tolist(),
        "reward": [r["reward"] for r in score_responses(judge, answers, batch_size=3, mesh=mesh)],
        "answers": [
            float(sum(map(ord, a))) for (a,) in generate(model, TEXTS, max_new_tokens=3, batch_size=3, mesh=mesh)
        ],
    }  # fmt: skip


def main() -> None:
    assert jax.device_count() == 16
    json.dump([found(None), found((1, 16, 1))], sys.stdout)


if __name__ == "__main__":
    main()
