"""Files whose tensors hold several parameters, or more than weights: a family that says so, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion_jax import InputError
from fusion_jax.models.families import FAMILIES, llama
from fusion_jax.models.families.tensors import HfTensor, layers_of, llama_like_tensors
from fusion_jax.models.folder import load, logits, save
from fusion_jax.models.safetensors_io import open_folder
from fusion_jax.models.weights import slice_of
from tests.parity.checkpoints import write_checkpoint

ROWS = np.arange(24).reshape(2, 12) + 3
HEADS, DIM, WIDTH, INNER = 4, 12, 48, 80  # of "llama-mha"


def fused(config: Any) -> list[HfTensor]:
    """gate_up_proj of blocks one behind the other; query_key_value that goes by heads, [H, 3, h, D]."""
    separate = {f"{p}_proj" for p in "qkv"} | {"gate_proj", "up_proj"}
    out = [t for t in llama_like_tensors(config) if t.name.split(".")[-2] not in separate]
    for number, (_, stack, index) in enumerate(layers_of(config)):
        prefix = f"model.layers.{number}"
        for place, name in enumerate("qkv"):
            out.append(HfTensor(
                f"{prefix}.self_attn.query_key_value.weight", (stack, name, "kernel"), (index,), True,
                shape=(3 * WIDTH, WIDTH), view=(HEADS, 3, DIM, WIDTH), part=(slice(None), place),
            ))  # fmt: skip
        for place, name in enumerate(("gate", "up")):
            out.append(HfTensor(
                f"{prefix}.mlp.gate_up_proj.weight", (stack, name, "kernel"), (index,), True,
                shape=(2 * INNER, WIDTH), part=(slice(place * INNER, (place + 1) * INNER),),
            ))  # fmt: skip
    return out


def fuse(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = dict(tensors)
    for number in range(3):
        prefix = f"model.layers.{number}"
        qkv = [out.pop(f"{prefix}.self_attn.{p}_proj.weight").reshape(HEADS, 1, DIM, WIDTH) for p in "qkv"]
        out[f"{prefix}.self_attn.query_key_value.weight"] = np.concatenate(qkv, 1).reshape(3 * WIDTH, WIDTH)
        both = [out.pop(f"{prefix}.mlp.{p}_proj.weight") for p in ("gate", "up")]
        out[f"{prefix}.mlp.gate_up_proj.weight"] = np.concatenate(both)
    return out


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A Llama, and the same model in the files of a family that fuses tensors."""
    family = SimpleNamespace(from_hf=llama.from_hf, to_hf=llama.to_hf, tensors=fused, IGNORED=(r"\.vision_head\.",))
    monkeypatch.setitem(FAMILIES, "toy", family)
    write_checkpoint("llama-mha", tmp_path / "plain")
    (tmp_path / "fused").mkdir()
    values = json.loads((tmp_path / "plain/config.json").read_text()) | {"model_type": "toy"}
    (tmp_path / "fused/config.json").write_text(json.dumps(values))
    save_file(fuse(load_file(tmp_path / "plain/model.safetensors")), tmp_path / "fused/model.safetensors")
    return tmp_path


def test_parts_of_a_tensor_are_cut_and_put_together(folders):
    model = load(folders / "fused")
    np.testing.assert_array_equal(logits(model, ROWS), logits(load(folders / "plain"), ROWS))
    save(model, folders / "saved")
    before, after = (load_file(folders / name / "model.safetensors") for name in ("fused", "saved"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_a_device_reads_its_slice_of_a_part(folders):
    entries, model = open_folder(folders / "fused"), load(folders / "plain")
    index = (slice(12, 36), slice(24, 40))
    for tensor in fused(load(folders / "fused").config):
        if tensor.shape is not None:
            whole = np.asarray(model.params["layers"][tensor.path[1]]["kernel"][tensor.index])
            found = slice_of(entries[tensor.name], tensor, whole.shape, index, np.float32)
            np.testing.assert_array_equal(found, whole[index])


def test_leftovers_that_the_family_lists(folders):
    file = folders / "fused/model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.vision_head.weight": np.ones((3, 3), np.float32)}, file)
    assert load(folders / "fused").config.layers == 3
    save_file(tensors | {"model.speech_head.weight": np.ones((3, 3), np.float32)}, file)
    with pytest.raises(
        InputError, match=r"'model\.speech_head\.weight': is a weight that this architecture does not have"
    ):
        load(folders / "fused")


def test_shapes_of_fused_tensors_are_checked(folders):
    file = folders / "fused/model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    save_file(tensors | {name: tensors[name][:-1]}, file)
    with pytest.raises(InputError, match=r"has shape \(159, 48\), config.json gives \(160, 48\)"):
        load(folders / "fused")


def test_parts_that_do_not_cover_their_tensor(folders, monkeypatch):
    """A mistake of the family, not of the files."""
    model = load(folders / "fused")

    def apart(tensor: HfTensor) -> HfTensor:
        """The keys as tensors of their own, missing in the fused one."""
        if tensor.path[1] != "k":
            return tensor
        return replace(tensor, name=f"k.{tensor.path[-1]}.{tensor.index}", shape=None, view=None, part=())

    monkeypatch.setattr(FAMILIES["toy"], "tensors", lambda config: [apart(t) for t in fused(config)])
    with pytest.raises(ValueError, match=r"query_key_value.weight have 4608 numbers, the tensor 6912"):
        save(model, folders / "broken")
    assert not (folders / "broken").exists()
