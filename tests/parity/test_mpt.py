"""What MPT has besides: a feed-forward of any width, positions far from each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fusion_jax.models.folder import load, logits
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_logits import assert_close, tokens


def test_another_expansion_ratio(tmp_path):
    """transformers computes with 4 whatever the file says: of a model whose upper half of the feed-forward is zero, the
    lower half is one of ratio 2."""
    theirs, half = write_checkpoint("mpt", tmp_path), 2 * 48
    file, kept = tmp_path / "model.safetensors", {}
    for name, value in load_file(file).items():
        value = value[:half] if "up_proj" in name else value[:, :half] if "down_proj" in name else value
        kept[name] = np.ascontiguousarray(value)
    save_file(kept, file, {"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"expansion_ratio": 2}))
    rows = tokens()[:1]
    with torch.no_grad():
        for block in theirs.transformer.blocks:
            block.ffn.up_proj.weight[half:] = 0
        expected = theirs(torch.tensor(rows)).logits.numpy()
    assert_close(np.asarray(logits(load(tmp_path), rows)), expected)


@pytest.mark.slow
def test_far_positions(tmp_path):
    """900 tokens. transformers adds the bias of the last query to the scores of all, and takes the softmax in float32 also
    in a model of float64: at -450, the first query's, float32 has steps of 3e-5."""
    theirs = write_checkpoint("mpt-clipped-6-heads", tmp_path, max_seq_len=1024, num_hidden_layers=2).double()
    rows = np.random.default_rng(1).integers(3, 96, (1, 900))
    with torch.no_grad():
        expected = theirs(torch.tensor(rows)).logits.numpy()
    found = np.asarray(logits(load(tmp_path), rows))
    assert np.abs(found - expected).max() <= 3e-5 * np.abs(expected).max()
