"""Model folders as other tools write them: heads stored or tied, buffers beside the weights, kinds that are not read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import fusion_jax as fj
from fusion_jax import InputError
from fusion_jax.models.folder import check_folder, load, logits, save
from tests.parity.checkpoints import write_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiler")

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
IDS = np.arange(12)[None] + 3


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def theirs(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def close(one: Any, other: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(one) - other).max() <= 1e-5 * np.abs(other).max())


def stored(folder: Path) -> tuple[bool, bool]:
    """Whether the files hold a head, and whether config.json ties it."""
    return HEAD in load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())[
        "tie_word_embeddings"
    ]


@pytest.mark.parametrize("name", ["llama-mha", "gemma2"])
def test_a_stored_head_that_differs_is_kept(name, tmp_path):
    write_checkpoint(name, tmp_path / "in", tie_word_embeddings=False)
    changes = {"tie_word_embeddings": None if name == "gemma2" else True}  # Gemma's own default is tied
    edit(tmp_path / "in/config.json", **changes)
    wanted = theirs(tmp_path / "in")
    model = load(tmp_path / "in")
    assert close(logits(model, IDS), wanted) and not model.config.head.tied
    save(model, tmp_path / "out")
    assert stored(tmp_path / "out") == (True, False) and close(theirs(tmp_path / "out"), wanted)
    assert not check_folder(tmp_path / "in").head.tied


def test_a_stored_head_that_is_the_embedding_is_tied(tmp_path):
    write_checkpoint("llama-gqa-tied", tmp_path / "in")
    wanted = theirs(tmp_path / "in")
    rewrite(tmp_path / "in", lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    model = load(tmp_path / "in")
    assert model.config.head.tied and close(logits(model, IDS), wanted)
    save(model, tmp_path / "out")
    assert stored(tmp_path / "out") == (False, True)
    rewrite(tmp_path / "in", lambda t: t.pop(EMBEDDING))  # the embedding under the head's name
    assert close(logits(load(tmp_path / "in"), IDS), wanted) and close(theirs(tmp_path / "in"), wanted)


def test_a_head_that_is_lost_is_told(tmp_path):
    write_checkpoint("llama-mha", tmp_path)
    rewrite(tmp_path, lambda t: t.pop(HEAD))
    with pytest.raises(
        InputError, match=r"'lm_head.weight': the weight is missing\. .*set tie_word_embeddings to true"
    ):
        load(tmp_path)
    edit(tmp_path / "config.json", tie_word_embeddings=None)  # Llama's own default is not tied
    with pytest.raises(InputError, match=r"'lm_head.weight': the weight is missing"):
        load(tmp_path)


def test_defaults_of_fields_that_are_left_out(tmp_path):
    """Mistral's key heads and window, Gemma-2's head size: of transformers' own classes, not of Llama's."""
    for name, family, options in (
        ("mistral-window", "mistral", {"num_key_value_heads": 8, "num_attention_heads": 8, "sliding_window": 4096}),
        ("gemma2", "gemma2", {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "hidden_size": 48}),
    ):
        write_checkpoint(name, tmp_path / family, **options)
        edit(tmp_path / family / "config.json", num_key_value_heads=None, sliding_window=None, head_dim=None)
        model = load(tmp_path / family)
        assert close(logits(model, IDS), theirs(tmp_path / family)) and 4096 in model.config.decoder[0].windows


def test_llama3_scaling_without_its_original_length(tmp_path):
    """The length is then that of the model."""
    write_checkpoint("llama-3.1", tmp_path)
    rope = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    edit(tmp_path / "config.json", rope_parameters=rope)
    assert close(logits(load(tmp_path), IDS), theirs(tmp_path))


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "model.rotary_emb.inv_freq": torch.ones(4),
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
    "model.position_ids": torch.arange(8)[None],
    "model.num_updates": torch.tensor(3),
    "seen": torch.ones(3, dtype=torch.uint8),
}


def test_buffers_do_not_block_loading(tmp_path):
    write_checkpoint("llama-mha", tmp_path)
    wanted = theirs(tmp_path)
    rewrite(tmp_path, lambda t: t.update(BUFFERS))
    assert close(logits(load(tmp_path), IDS), wanted)
    for name, value in (
        ("model.layers.0.self_attn.sinks", torch.ones(4)),
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(48)),
        ("model.layers.0.mlp.qweight", torch.ones(3, dtype=torch.int32)),
        ("model.layers.0.mlp.scale", torch.ones(3).to(torch.float8_e4m3fn)),
    ):
        rewrite(tmp_path, lambda t, name=name, value=value: t.update({name: value}))
        with pytest.raises(InputError, match=rf"'{name}': is a weight that this architecture does not have"):
            load(tmp_path)
        rewrite(tmp_path, lambda t, name=name: t.pop(name))


def test_quantised_weights_are_told(tmp_path):
    write_checkpoint("llama-mha", tmp_path)
    q = "model.layers.0.self_attn.q_proj.weight"
    for dtype, name in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        rewrite(tmp_path, lambda t, dtype=dtype: t.update({q: t[q].to(dtype)}))
        with pytest.raises(InputError, match=rf"'{q}': has dtype {name}.*dequantise"):
            load(tmp_path)
    edit(tmp_path / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match=r"config.json, field 'quantization_config': the model is quantised"):
        load(tmp_path)


def test_what_is_no_model_folder_is_told(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUL")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "note").write_text("x")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "no/base"}')
    gguf = r"holds a GGUF file, no Hugging Face model\. Give .*/m\.gguf"
    write_checkpoint("llama-mha", tmp_path / "good")
    cases = [
        ("m.gguf", "is (not )?a GGUF file"), ("", gguf), ("adapter", "'no/base' is no folder here"),
        ("loop", "cannot be opened"), ("x" * 300, "file name too long"), ("a\0b", "NUL"), ("note", "there is no such folder"),
        ("none", "there is no such folder"),
    ]  # fmt: skip
    recipe: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": 1.0}}
    for name, said in cases:
        path = str(tmp_path / name) if name else str(tmp_path)
        for use in (
            load, check_folder, lambda p: fj.merge.merge(recipe | {"models": [{"model": str(tmp_path / "good")}, {"model": p}]}, tmp_path / "out"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=said):
                use(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "good", "loop", "m.gguf", "note"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_files_that_are_no_files(name, tmp_path):
    write_checkpoint("llama-mha", tmp_path)
    for make, said in (
        (os.mkfifo, "is no regular file"),
        (os.mkdir, "is a folder"),
        (lambda p: p.symlink_to(p.name), "cannot be opened"),
    ):
        if (tmp_path / name).is_dir() and not (tmp_path / name).is_symlink():
            shutil.rmtree(tmp_path / name)
        else:
            (tmp_path / name).unlink(missing_ok=True)
        make(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: {said}"):
            load(tmp_path)


GENERATIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"eos_token_id": [1, 2], "pad_token_id": -1, "bos_token_id": 500, "temperature": 0.6, "top_k": 50, "do_sample": True}, None),
    ({"eos_token_id": None}, None), ({"eos_token_id": "2"}, "eos_token_id"), ({"eos_token_id": [2, "3"]}, "eos_token_id"),
    ({"eos_token_id": {"a": 1}}, "eos_token_id"), ({"eos_token_id": 1.5}, "eos_token_id"), ({"eos_token_id": True}, "eos_token_id"),
    ({"eos_token_id": [[2]]}, "eos_token_id"), ({"eos_token_id": [None]}, "eos_token_id"), ({"eos_token_id": 96}, "eos_token_id"),
    ({"eos_token_id": -1}, "eos_token_id"), ({"eos_token_id": 10**18}, "eos_token_id"), ({"pad_token_id": [0]}, "pad_token_id"),
    ({"bos_token_id": "1"}, "bos_token_id"), ({"temperature": "hot"}, "temperature"), ({"temperature": -1}, "temperature"),
    ({"top_k": 1.5}, "top_k"), ({"do_sample": "yes"}, "do_sample"), ({"max_length": [1]}, "max_length"),
]  # fmt: skip


def test_fields_of_generation_config(tmp_path):
    write_checkpoint("llama-mha", tmp_path)
    for values, field in GENERATIONS:
        (tmp_path / "generation_config.json").write_text(json.dumps(values))
        if field is None:
            assert load(tmp_path).generation == values
            continue
        with pytest.raises(InputError, match=rf"generation_config\.json, field '{field}': "):
            load(tmp_path)


@pytest.mark.parametrize(
    "name", ["llama-3.1", "llama-yarn", "llama-mha", "qwen2-windows", "gemma2", "qwen3-windows-yarn", "olmo2-yarn"]
)
def test_rotary_settings_are_saved_in_both_forms(name, tmp_path):
    """transformers 4 reads `rope_theta` and `rope_scaling`, transformers 5 also `rope_parameters`: whichever form came in.

    An old file without scaling says all in `rope_theta`, so it stays as it came.
    """
    write_checkpoint(name, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    values = json.loads((tmp_path / "new/config.json").read_text())
    rope = values.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    values |= {"rope_theta": theta, "rope_scaling": None if rope["rope_type"] == "default" else rope}
    (tmp_path / "old/config.json").write_text(json.dumps(values))
    wanted = theirs(tmp_path / "new")
    for form in ("new", "old"):
        model = load(tmp_path / form)
        save(model, tmp_path / f"{form}-saved")
        out = json.loads((tmp_path / f"{form}-saved/config.json").read_text())
        assert out["rope_theta"] == theta
        if form == "new" or values["rope_scaling"]:
            assert out["rope_parameters"]["rope_theta"] == theta
        else:
            assert "rope_parameters" not in out
        assert out["rope_scaling"] == values["rope_scaling"] and out["torch_dtype"] == out["dtype"] == "float32"
        assert (
            close(theirs(tmp_path / f"{form}-saved"), wanted)
            and load(tmp_path / f"{form}-saved").config == model.config
        )


@pytest.mark.parametrize("name", ["gemma3", "gemma3-kinds-yarn"])
def test_two_rotary_settings_are_saved_in_both_forms(name, tmp_path):
    """Of layers with and without a window: `rope_parameters` by kind, or `rope_theta`, `rope_local_base_freq` and
    `rope_scaling`, which scales the layers without."""
    write_checkpoint(name, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    values = json.loads((tmp_path / "new/config.json").read_text())
    kinds = values.pop("rope_parameters")
    full, local = kinds["full_attention"], kinds["sliding_attention"]
    theta = full.pop("rope_theta")
    values |= {"rope_theta": theta, "rope_scaling": full, "rope_local_base_freq": local["rope_theta"]}
    if name == "gemma3":
        del values["layer_types"]
        values["sliding_window_pattern"] = 6
    (tmp_path / "old/config.json").write_text(json.dumps(values))
    wanted = theirs(tmp_path / "new")
    for form in ("new", "old"):
        model = load(tmp_path / form)
        assert close(logits(model, IDS), wanted)
        save(model, tmp_path / f"{form}-saved")
        out = json.loads((tmp_path / f"{form}-saved/config.json").read_text())
        assert out["rope_theta"] == theta == out["rope_parameters"]["full_attention"]["rope_theta"]
        assert out["rope_local_base_freq"] == out["rope_parameters"]["sliding_attention"]["rope_theta"]
        assert out["rope_scaling"] == full
        assert close(theirs(tmp_path / f"{form}-saved"), wanted)
        assert load(tmp_path / f"{form}-saved").config == model.config
