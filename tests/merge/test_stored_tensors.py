"""What a merge does with tensors that are no weights, with stored heads, and with the files beside the weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion_jax import InputError
from fusion_jax.merge import merge, prepare
from tests.merge.folders import LAYERS, make_models, tensors, ties, write_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def with_buffers(folder: Path, seed: int, **config: Any) -> str:
    mask = np.tril(np.ones((1, 1, 4, 4), bool))
    buffers: dict[str, np.ndarray] = {f"model.layers.{i}.attention.bias": mask for i in range(LAYERS)}
    buffers |= {f"model.layers.{i}.attention.masked_bias": np.float32(-np.inf)[None] for i in range(LAYERS)}
    buffers |= {f"model.layers.{i}.seen": np.asarray([10 * seed + i], np.int64) for i in range(LAYERS)}
    buffers |= {
        "embeddings.position_ids": np.arange(2**40, 2**40 + 4)[None],
        "model.layers.0.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    write_model(folder, {}, **config)
    save_file(tensors(seed) | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_buffers_are_copied_and_told(tmp_path):
    models = [with_buffers(tmp_path / f"m{i}", i) for i in (1, 2)]
    recipe = {"merge_method": "linear", "models": [{"model": m, "parameters": {"weight": 0.5}} for m in models]}
    summary = merge(recipe, tmp_path / "out", shard_bytes=4000)
    assert {r["name"] for r in summary.records} == set(tensors(0))
    out: dict[str, np.ndarray] = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        out |= load_file(file)
    given = load_file(tmp_path / "m1/model.safetensors")
    assert out.keys() == given.keys() - {"model.layers.0.rotary_emb.inv_freq"}
    for name in out.keys() - tensors(0).keys():
        assert out[name].dtype == given[name].dtype and out[name].tobytes() == given[name].tobytes(), name
    report = (tmp_path / "out/report.md").read_text()
    assert f"10 tensors that are no weights are copied from `{models[0]}`" in report
    assert f"{LAYERS} of them hold other numbers elsewhere, first `model.layers.0.seen` in `{models[1]}`" in report
    assert json.loads((tmp_path / "out/merge.json").read_text())["copied"]["embeddings.position_ids"] == models[0]


def test_buffers_follow_the_layers_that_are_stacked(tmp_path):
    models = [with_buffers(tmp_path / f"m{i}", i) for i in (1, 2)]
    ranges = [[0, 2], [1, 3]]
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in zip(models, ranges, strict=True)]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    out = load_file(tmp_path / "out/model.safetensors")
    assert [int(out[f"model.layers.{i}.seen"][0]) for i in range(4)] == [10, 11, 21, 22]
    assert "model.layers.4.seen" not in out


def test_packed_weights_are_refused(tmp_path):
    make_models(tmp_path)
    file = tmp_path / "m2/model.safetensors"
    for name, value, dtype in (
        ("model.layers.0.mlp.qweight", np.ones(3, np.int32), "I32"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((24, 16), np.int8), "I8"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((24, 16), ml_dtypes.float8_e4m3fn), "F8_E4M3"),
    ):
        values = load_file(file)
        raw = {**values, name: value.view(np.uint8) if value.dtype.itemsize == 1 else value}
        save_file(raw, file)
        content = file.read_bytes()
        if dtype != "I32":  # under the name of the dtype, of the same length of the header
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            header[name]["dtype"] = dtype
            new = json.dumps(header).encode()
            file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
        with pytest.raises(InputError, match=rf"m2/model.safetensors, field '{name}': has dtype {dtype}"):
            prepare(ties(tmp_path))
        save_file(values, file)


def linear(*models: Path) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models]}


def test_heads_as_they_are_stored(tmp_path):
    """Tied by config.json: a head of its own is merged, one that equals the embedding is the embedding."""
    equal = {i: tensors(i) | {HEAD: tensors(i)[EMBEDDING]} for i in (1, 2)}
    for i in (1, 2):
        write_model(tmp_path / f"own{i}", tensors(i), tie_word_embeddings=True)
        write_model(tmp_path / f"equal{i}", equal[i], tie_word_embeddings=True)
        write_model(
            tmp_path / f"only{i}", {n: v for n, v in equal[i].items() if n != EMBEDDING}, tie_word_embeddings=True
        )

    def merged(out: str, *models: str) -> tuple[dict[str, np.ndarray], bool]:
        merge(linear(*(tmp_path / m for m in models)), tmp_path / out)
        return load_file(tmp_path / out / "model.safetensors"), json.loads(
            (tmp_path / out / "config.json").read_text()
        )["tie_word_embeddings"]

    found, tied = merged("a", "own1", "own2")
    np.testing.assert_allclose(found[HEAD], (tensors(1)[HEAD] + tensors(2)[HEAD]) / 2, atol=1e-6)
    assert tied is False
    found, tied = merged("b", "equal1", "equal2")
    assert HEAD not in found and tied is True
    found, tied = merged("c", "only1", "equal2")
    np.testing.assert_allclose(found[EMBEDDING], (tensors(1)[EMBEDDING] + tensors(2)[EMBEDDING]) / 2, atol=1e-6)
    assert HEAD not in found and tied is True
    found, tied = merged("d", "equal1", "own2")
    np.testing.assert_allclose(found[HEAD], (tensors(1)[EMBEDDING] + tensors(2)[HEAD]) / 2, atol=1e-6)
    assert tied is False


def test_a_layers_output_is_no_head(tmp_path):
    """Tied models whose layers have a tensor that is called as some families call their head."""
    for i in (1, 2):
        values = {n: v for n, v in tensors(i).items() if n != HEAD}
        values |= {"model.layers.0.attention.output.weight": values[EMBEDDING] + 1}
        write_model(tmp_path / f"m{i}", values, tie_word_embeddings=True)
    merge(linear(tmp_path / "m1", tmp_path / "m2"), tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors").keys() == values.keys()
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "config.json",
            {"tie_word_embeddings": "no"},
            "config.json, field 'tie_word_embeddings': is 'no', not true or false",
        ),
        ("config.json", {"quantization_config": {"bits": 4}}, "field 'quantization_config': the model is quantised"),
        ("generation_config.json", {"eos_token_id": "2"}, "generation_config.json, field 'eos_token_id': is '2'"),
        ("generation_config.json", "{", "generation_config.json: is not JSON"),
        ("tokenizer_config.json", {"bos_token": 5}, "tokenizer_config.json, field 'bos_token': is 5"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: is not a JSON object"),
    ],
)
def test_files_beside_the_weights_are_checked(name, content, said, tmp_path):
    make_models(tmp_path)
    for model in ("base", "m1", "m2", "m3"):
        file = tmp_path / model / name
        old = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(content if isinstance(content, str) else json.dumps(old | content))
    with pytest.raises(InputError, match=said):
        merge(ties(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_files_that_never_end(tmp_path):
    make_models(tmp_path)
    os.mkfifo(tmp_path / "base/tokenizer.json")
    with pytest.raises(InputError, match=r"base/tokenizer.json: is no regular file"):
        merge(ties(tmp_path), tmp_path / "out")


def test_merged_folders_are_read_by_transformers_4(tmp_path):
    """A class and names that only transformers 5 has, and rotary settings in its form, are written in both."""
    make_models(tmp_path)
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = json.loads((tmp_path / "base/config.json").read_text())
    del config["rope_theta"]
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 5e5, **rope}}))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "extra_special_tokens": ["<a>"],
        "is_local": True,
        "bos_token": "<s>",
    }
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings))
    merge(ties(tmp_path), tmp_path / "out")
    out, written = (json.loads((tmp_path / f"out/{n}config.json").read_text()) for n in ("", "tokenizer_"))
    assert (out["rope_theta"], out["rope_scaling"], out["torch_dtype"]) == (5e5, rope, "float32")
    assert written == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "bos_token": "<s>",
    }
