"""Families that transformers has no class for: Llama's weights packed and renamed as theirs are published give Llama's
logits. InternLM2's layout is that of its own `modeling_internlm2.py` as other engines document it: wqkv by heads of keys,
[q ... q k v] each; w1 gates, w3 goes up, w2 down. Baichuan's is that of vLLM and of the published index files: W_pack
[3 D, D] is queries, keys and values one behind the other, all else has Llama's names. Of Baichuan 2 the reference divides
the rows of the head by their L2 norm; of 13B it is a forward pass in NumPy and float64, written from the description of
ALiBi (arXiv 2108.12409) and of the head (arXiv 2309.10305).
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fusion_jax.models.folder import load, logits, save
from fusion_jax.sampling.generate import generate_ids
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_generation import NEW, STOP, theirs_greedy
from tests.parity.test_logits import LENGTHS, assert_close, cached_equals_uncached, tokens
from tests.quick import FAST
from tests.small import compiled

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
    assert_close(compiled(logits, ours, rows, LENGTHS)[mask], expected[mask])
    save(ours, tmp_path / "saved")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "saved"))
    assert before.keys() == after.keys() and all(before[key].tobytes() == after[key].tobytes() for key in before)
    again = json.loads((tmp_path / "saved/config.json").read_text())
    assert (
        again["auto_map"]
        and again["rope_scaling"] == json.loads((tmp_path / "hf/config.json").read_text())["rope_scaling"]
    )


BAICHUAN: dict[str, dict[str, Any]] = {
    "7b": {"z_loss_weight": 0}, "first 7b": {},
    "13b": {"max_position_embeddings": None, "z_loss_weight": 0, "rms_norm_eps": 1e-5},
    "first 13b": {"max_position_embeddings": None},
}  # fmt: skip
HEADS = 6


def as_baichuan(folder, **changes) -> dict[str, np.ndarray]:
    """A Llama folder rewritten as one of Baichuan; its tensors."""
    old, new = load_file(folder / "model.safetensors"), {}
    for name, value in old.items():
        if "q_proj" in name:
            parts = [old[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            new[name.replace("q_proj", "W_pack")] = np.concatenate(parts)
        elif not re.search(r"[kv]_proj", name):
            new[name] = value
    save_file(new, folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for name in ("rope_parameters", "head_dim", "mlp_bias", "attention_bias", "pretraining_tp", "num_key_value_heads"):
        values.pop(name, None)
    values |= {
        "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "model_max_length": 64,
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"}, **changes,
    }  # fmt: skip
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return new


def slopes(heads: int) -> list[float]:
    """Geometric, from 2^(-8/n) down to 2^-8 for n heads, a power of two; for the heads beyond, every other one of 2n."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    whole = 1 << (heads.bit_length() - 1)
    return slopes(whole) + slopes(2 * whole)[0::2][: heads - whole]


def written_out(weights: dict[str, np.ndarray], row: np.ndarray, *, normalised: bool, eps: float) -> np.ndarray:
    """Logits [T,V] of one row by a Baichuan 13B in float64."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    size, length = weights["model.embed_tokens.weight"].shape[1], len(row)
    apart = np.arange(length)[None, :] - np.arange(length)[:, None]  # of a key from a query: 0 or less where it is seen
    bias = np.where(apart <= 0, np.asarray(slopes(HEADS))[:, None, None] * apart, -np.inf)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]

    x = weights["model.embed_tokens.weight"][row]
    for layer in range(3):
        at = f"model.layers.{layer}"
        packed = norm(x, f"{at}.input_layernorm") @ weights[f"{at}.self_attn.W_pack.weight"].T
        q, k, v = packed.reshape(length, 3, HEADS, -1).transpose(1, 2, 0, 3)
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(size / HEADS) + bias)
        y = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + y.transpose(1, 0, 2).reshape(length, size) @ weights[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm")
        gate, up = (y @ weights[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{at}.mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    head = head / np.linalg.norm(head, axis=1, keepdims=True) if normalised else head
    return norm(x, "model.norm") @ head.T


@pytest.fixture(params=["7b", "13b", *(pytest.param(n, marks=pytest.mark.slow) for n in ("first 7b", "first 13b"))])
def baichuan(request, tmp_path):
    """Its name, its folder, and the Llama with the same weights and head."""
    theirs = write_checkpoint(
        "llama-mha", tmp_path / "hf", num_attention_heads=HEADS, num_key_value_heads=HEADS, rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
    )  # fmt: skip
    as_baichuan(tmp_path / "hf", **BAICHUAN[request.param])
    if "first" not in request.param:
        with torch.no_grad():
            theirs.lm_head.weight.copy_(torch.nn.functional.normalize(theirs.lm_head.weight))
    return request.param, tmp_path / "hf", theirs


def test_baichuan_is_llama_in_another_layout_or_has_alibi(baichuan, tmp_path):
    name, folder, theirs = baichuan
    ours, rows, mask = load(folder), tokens(), np.arange(40) < LENGTHS[:, None]
    normalised = "first" not in name
    assert ours.config.head.normalised == normalised
    found = compiled(logits, ours, rows, LENGTHS)
    if "7b" in name:
        with torch.no_grad():
            expected = theirs(torch.tensor(rows), attention_mask=torch.tensor(mask, dtype=torch.long)).logits.numpy()
        assert_close(found[mask], expected[mask])
    else:
        weights = load_file(folder / "model.safetensors")
        for ours_of, row, length in zip(found, rows, LENGTHS, strict=True):
            eps = BAICHUAN[name].get("rms_norm_eps", 1e-6)
            expected = written_out(weights, row[:length], normalised=normalised, eps=eps)
            assert_close(ours_of[:length], expected)
    cached_equals_uncached(ours, rows)

    save(ours, tmp_path / "saved")
    before, after = (load_file(tmp_path / one / "model.safetensors") for one in ("hf", "saved"))
    assert before.keys() == after.keys() and all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert json.loads((tmp_path / "saved/config.json").read_text())["auto_map"]
    save(dataclasses.replace(ours, hf_config={}), tmp_path / "new")
    again = load(tmp_path / "new")
    assert again.config == ours.config
    np.testing.assert_array_equal(compiled(logits, again, rows[:1]), compiled(logits, ours, rows[:1]))


@pytest.mark.slow
def test_baichuan_decodes_what_its_logits_say(baichuan):
    """Greedy tokens: those of the Llama, or of the whole text read anew."""
    name, folder, theirs = baichuan
    ours, prompts = load(folder), [row[:n].tolist() for row, n in zip(tokens(), (9, 14, 4), strict=True)]
    out = generate_ids(ours.params, ours.config, prompts, max_new_tokens=NEW, stop_ids=[STOP], batch_size=4)
    texts = [prompt + one.ids + [STOP] * one.finished for prompt, (one,) in zip(prompts, out, strict=True)]
    rows = np.asarray([text + [0] * (32 - len(text)) for text in texts])
    whole = np.asarray(jax.jit(lambda rows: jax.nn.log_softmax(logits(ours, rows)), compiler_options=FAST)(rows))
    for prompt, text, (completion,), logprobs in zip(prompts, texts, out, whole, strict=True):
        if "7b" in name:
            assert completion.ids == [t for t in theirs_greedy(theirs, prompt) if t != STOP]
        ids, scores = text[len(prompt) :], logprobs[len(prompt) - 1 : len(text) - 1]
        assert scores.argmax(-1).tolist() == ids
        assert completion.logprob == pytest.approx(scores[np.arange(len(ids)), ids].sum(), abs=1e-3)
