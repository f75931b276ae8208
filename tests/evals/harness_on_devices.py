"""Run by test_lm_eval.py in its own process with several virtual devices: the numbers of one device over a mesh."""

from __future__ import annotations

import json
import sys

import numpy as np

from fusion_jax.evals.harness.reading import Reader
from fusion_jax.evals.harness.scoring import Computing, loglikelihoods
from fusion_jax.evals.harness.writing import answers
from fusion_jax.sharding import make_mesh
from tests.small import small_model

ASKED = [
    ("What is 12 + 30?", " 42"), ("What is 12 + 30?", " 41 or so"), ("It", " is the sum of 3"), ("", "What is"),
    ("Sort d a c:", " a c d"), ("Sort d a c:", " d"), ("one two " * 30, "three"),
]  # fmt: skip


def main() -> None:
    model = small_model(initializer_range=0.3, num_key_value_heads=2, max_position_embeddings=64)
    reader = Reader(model.tokenizer)
    meshes = (None, make_mesh(2, 1, 2))
    scores = [np.asarray(loglikelihoods(model, reader.pairs(ASKED), Computing(mesh, batch_size=4))) for mesh in meshes]
    given = [(context, {"until": ["e"], "max_gen_toks": 12}) for context, _ in ASKED[2:5]]
    texts = [answers(model, reader, given, Computing(mesh, batch_size=4)) for mesh in meshes]
    json.dump({"scores": bool(np.allclose(*scores, atol=1e-4)), "answers": texts[0] == texts[1]}, sys.stdout)


if __name__ == "__main__":
    main()
