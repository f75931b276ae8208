"""Families that transformers has no class for: Llama's weights packed and renamed as theirs are published give Llama's
logits. InternLM2's layout is that of its own `modeling_internlm2.py` as other engines document it: wqkv by heads of keys,
[q ... q k v] each; w1 gates, w3 goes up, w2 down.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fusion_jax.models.folder import load, logits, save
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_logits import LENGTHS, assert_close, tokens

INTERNLM2 = {
    "model.embed_tokens": "model.tok_embeddings", "lm_head": "output", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
}  # fmt: skip


def as_internlm2(folder, heads: int, kv_heads: int) -> None:
    """A Llama folder rewritten as one of InternLM2."""
    old, new = load_file(folder / "model.safetensors"), {}
    for name, value in old.items():
        if re.search(r"self_attn\.[kv]_proj", name):
            continue
        if "self_attn.q_proj" in name:
            parts = [old[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            q, k, v = (
                x.reshape(kv_heads, -1, x.shape[0] // n, *x.shape[1:])
                for x, n in zip(parts, (heads, kv_heads, kv_heads))
            )
            packed = np.concatenate([q, k, v], 1).reshape(-1, *value.shape[1:])
            new[name.replace("self_attn.q_proj", "attention.wqkv")] = np.ascontiguousarray(packed)
            continue
        for theirs, ours in INTERNLM2.items():
            name = name.replace(theirs, ours)
        new[name] = value
    save_file(new, folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    values = json.loads(file.read_text())
    rope = values.pop("rope_parameters")
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    values |= {
        "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": values.pop("attention_bias"),
        "rope_theta": rope["rope_theta"], "rope_scaling": scaling,
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    }  # fmt: skip
    for name in ("head_dim", "mlp_bias", "pretraining_tp"):
        values.pop(name, None)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(("changes", "rope"), [
    ({"num_key_value_heads": 2}, "default"), ({"num_key_value_heads": 4, "attention_bias": True}, "default"),
    ({"num_key_value_heads": 1, "max_position_embeddings": 16, "tie_word_embeddings": True}, "dynamic"),
], ids=["gqa", "mha bias", "mqa dynamic tied"])  # fmt: skip
def test_internlm2_is_llama_in_another_layout(changes, rope, tmp_path):
    scaled = {} if rope == "default" else {"factor": 2.0}
    theirs = write_checkpoint(
        "llama-mha", tmp_path / "hf", rope_parameters={"rope_theta": 1e6, "rope_type": rope, **scaled}, **changes
    )
    as_internlm2(tmp_path / "hf", 4, changes["num_key_value_heads"])
    ours, rows = load(tmp_path / "hf"), tokens()
    assert ours.config.model_type == "internlm2"
    mask = np.arange(40) < LENGTHS[:, None]
    with torch.no_grad():
        expected = theirs(torch.tensor(rows), attention_mask=torch.tensor(mask, dtype=torch.long)).logits.numpy()
    assert_close(np.asarray(logits(ours, rows, LENGTHS))[mask], expected[mask])
    save(ours, tmp_path / "saved")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "saved"))
    assert before.keys() == after.keys() and all(before[key].tobytes() == after[key].tobytes() for key in before)
    again = json.loads((tmp_path / "saved/config.json").read_text())
    assert (
        again["auto_map"]
        and again["rope_scaling"] == json.loads((tmp_path / "hf/config.json").read_text())["rope_scaling"]
    )
