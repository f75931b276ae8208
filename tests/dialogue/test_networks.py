"""MK-TOD's networks against golden numbers: T5 1.0 and 1.1, fusion in decoder, the retriever, buckets of distances."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import fusion_jax as fj
from fusion_jax.dialogue.passages import Passages, read, together
from fusion_jax.dialogue.retrieval import pick, vectors
from fusion_jax.losses import divide, weighted
from fusion_jax.models.compute import Compute
from fusion_jax.models.decoder import forward, head_kernel
from fusion_jax.models.folder import Model, load, save
from fusion_jax.ops.biases import Bucketed
from tests.dialogue.golden import section

CLOSE = {"rtol": 0, "atol": 2e-5}


def folder(path, case: dict[str, Any], config: dict[str, Any], rename=lambda name: name) -> Model:
    """The weights of a golden model as a Hugging Face folder, loaded."""
    path.mkdir()
    weights = {
        rename(name): np.asarray(one["values"], np.float32).reshape(one["shape"])
        for name, one in case["weights"].items()
    }
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return load(path)


def t5(path, name: str) -> tuple[Model, dict[str, Any]]:
    case = section(name)
    own = case["config"]
    newer = name.endswith("1")
    config = {
        "model_type": "t5", "vocab_size": own["vocab_size"], "d_model": own["d_model"], "d_kv": own["d_kv"],
        "d_ff": own["d_ff"], "num_layers": own["layers"], "num_heads": own["heads"],
        "relative_attention_num_buckets": own["relative_attention_num_buckets"],
        "relative_attention_max_distance": own["relative_attention_max_distance"],
        "layer_norm_epsilon": own["layer_norm_epsilon"], "feed_forward_proj": "gated-gelu" if newer else "relu",
        "tie_word_embeddings": not newer, "decoder_start_token_id": own["decoder_start"], "pad_token_id": own["pad"],
    }  # fmt: skip
    return folder(path / name, case, config), case


def logits_of(model: Model, texts: Passages, rows: np.ndarray) -> jax.Array:
    hidden = read(model.params, model.config, texts, Compute())
    states = forward(model.params, model.config, jnp.asarray(rows), encoded=together(hidden, texts.exists))
    return jnp.einsum("btd,vd->btv", states, head_kernel(model.params, model.config), precision="highest")


def loss_of(logits: jax.Array, labels: np.ndarray) -> float:
    kept = labels >= 0
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(np.maximum(labels, 0))[..., None], 2)[..., 0]
    return float(divide(weighted(each, jnp.asarray(kept, jnp.float32))))


def shifted(labels: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(labels), 1), int), np.maximum(labels[:, :-1], 0)], 1)


@pytest.mark.parametrize("name", ["tiny_t5_v1_0", "tiny_t5_v1_1"])
def test_golden_t5_and_fusion_in_decoder(tmp_path, name):
    model, case = t5(tmp_path, name)
    if name.endswith("1"):
        assert not model.config.head.tied and "head" in model.params
    labels = np.asarray(case["labels"])
    ids, mask = np.asarray(case["input_ids"]), np.asarray(case["attention_mask"])
    found = fj.logits(model, ids, mask.sum(1), decoder_tokens=shifted(labels))
    np.testing.assert_allclose(found, case["logits"], **CLOSE)
    np.testing.assert_allclose(loss_of(found, labels), case["loss"], **CLOSE)
    fid = case["fid"]
    tokens, exists = (jnp.asarray(fid[key])[None] for key in ("passages", "passage_mask"))
    texts = Passages(tokens, exists > 0, jnp.ones(tokens.shape[:2], bool))
    labels = np.asarray(fid["labels"])
    found = logits_of(model, texts, shifted(labels))
    np.testing.assert_allclose(found, fid["logits"], **CLOSE)
    np.testing.assert_allclose(loss_of(found, labels), fid["loss"], **CLOSE)
    swapped = Passages(tokens[:, ::-1], exists[:, ::-1] > 0, texts.entities)
    np.testing.assert_allclose(logits_of(model, swapped, shifted(labels)), found, rtol=0, atol=1e-6)
    one = Passages(jnp.asarray(ids)[:, None], jnp.asarray(mask)[:, None] > 0, jnp.ones((len(ids), 1), bool))
    plain = np.asarray(case["labels"])
    np.testing.assert_allclose(logits_of(model, one, shifted(plain)), case["logits"], **CLOSE)


def test_golden_retriever_as_a_folder(tmp_path):
    case = section("tiny_retriever")
    own = case["config"]
    config = {
        "model_type": "bert", "vocab_size": own["vocab_size"], "hidden_size": own["hidden_size"],
        "num_hidden_layers": own["layers"], "num_attention_heads": own["heads"],
        "intermediate_size": own["intermediate_size"], "max_position_embeddings": own["max_position_embeddings"],
        "type_vocab_size": own["type_vocab_size"], "layer_norm_eps": own["layer_norm_eps"], "projection_dim": 4,
    }  # fmt: skip
    model = folder(tmp_path / "one", case, config, lambda name: name.replace("head.", "projection."))
    save(model, tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config == model.config and again.config.head.projected == 4
    mask = np.asarray(case["attention_mask"])
    tokens = jnp.asarray(np.where(mask > 0, case["input_ids"], -1))
    for one in (model, again):
        found = vectors(one.params, one.config, tokens, Compute())
        np.testing.assert_allclose(found, case["embedding"], **CLOSE)
        np.testing.assert_allclose(found[1:] @ found[0], case["score_row0_vs_rows12"], **CLOSE)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, **CLOSE)
    cut = vectors(model.params, model.config, tokens[:2, :5], Compute())
    np.testing.assert_allclose(cut, case["embedding"][:2], **CLOSE)


def test_golden_buckets_of_distances():
    table = jnp.arange(32, dtype=jnp.float32)[:, None]
    cases = section("t5_relative_buckets_32_128")
    ahead = jnp.asarray([case["relative_position_memory_minus_query"] for case in cases])
    for name, causal in (("bidirectional", False), ("causal", True)):
        found = Bucketed(table, 128, causal)(jnp.zeros_like(ahead), ahead)[0]
        assert found.tolist() == [case[name] for case in cases]


def test_golden_top_k_and_negative():
    for case in section("top_k_and_negative"):
        scores = jnp.asarray([case["scores"]], jnp.float32)
        found = pick(scores, jnp.ones(scores.shape, bool), case["k"], negative=True)
        best = found.places[0][found.exists[0] & ~found.negative]
        worst = found.places[0][found.exists[0] & found.negative]
        assert best.tolist() == case["selected"]
        assert worst.tolist() == ([] if case["negative"] is None else [case["negative"]])
