"""Kernels in int8: what loading rounds, that everything computes with the rounded weights and nothing else, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cache_teacher, generate
from fusion_jax import InputError
from fusion_jax.data.batches import Data, Example
from fusion_jax.jsonl import read_jsonl
from fusion_jax.models.compute import Compute
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import load, logits, save
from fusion_jax.models.parameters import abstract_params, int8_specs
from fusion_jax.ops.int8 import is_int8, rounded
from fusion_jax.sampling.generate import generate_ids
from fusion_jax.teachers.reading import make_topk_step
from fusion_jax.train import objectives
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_logits import LENGTHS, tokens
from tests.programs import finished
from tests.small import attempt, small_folder, virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")


def restored(model):
    """The same model with the rounded kernels as float32 arrays."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), model.params, is_leaf=is_int8)
    return dataclasses.replace(model, params=params)


def test_every_output_has_a_scale_of_its_own():
    """Leading axes are kept, of layers and of experts; an output of zeros stays zero; no error is above half a step."""
    kernel = np.random.default_rng(0).normal(size=(2, 3, 8, 5)).astype(np.float32) * np.logspace(-3, 3, 5)
    kernel[1, 2, :, 4] = 0
    found = rounded(kernel)
    assert found.values.dtype == np.int8 and found.scale.shape == (2, 3, 1, 5) and found.scale.dtype == np.float32
    assert (found.scale.astype(jnp.bfloat16).astype(np.float32) == found.scale).all()
    back = np.asarray(found.astype(jnp.float32))
    assert (np.abs(back - kernel) <= 0.502 * found.scale).all() and (back[1, 2, :, 4] == 0).all()


OTHERS = ("gpt-neox", "mpt", "gemma3", "qwen3-moe-some-plain", "deepseek-v2")


@pytest.fixture(scope="module", params=["phi3-window-gqa", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def models(request, tmp_path_factory):
    """A model as its files have it, and in int8."""
    folder = tmp_path_factory.mktemp("int8") / request.param
    write_checkpoint(request.param, folder)
    return load(folder), load(folder, dtype="int8")


def test_layers_kernels_are_rounded_and_nothing_else(models):
    plain, int8 = models
    for (path, whole), found in zip(
        jax.tree_util.tree_leaves_with_path(plain.params), jax.tree.leaves(int8.params, is_leaf=is_int8), strict=True
    ):
        names = [key.key for key in path]
        if names[0].startswith("layers") and names[-1] == "kernel" and "router" not in names:
            wanted = rounded(np.asarray(whole))
            np.testing.assert_array_equal(found.values, wanted.values)
            np.testing.assert_array_equal(found.scale, wanted.scale)
        else:
            assert found.dtype == whole.dtype
            np.testing.assert_array_equal(found, whole)
    assert "float32/int8" in repr(int8) and repr(plain).split("parameters")[0] == repr(int8).split("parameters")[0]


def test_logits_generation_and_teaching_are_those_of_the_rounded_weights(models):
    plain, int8 = models
    wanted, rows = restored(int8), tokens()
    read = jax.jit(lambda params: logits(dataclasses.replace(int8, params=params), rows, LENGTHS))
    found, expected, whole = (np.asarray(read(m.params)) for m in (int8, wanted, plain))
    mask = np.arange(40) < LENGTHS[:, None]
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected - whole)[mask].max() > 1e-3 * np.abs(expected).max()
    prompts = [rows[0, :9].tolist(), rows[1, :4].tolist()]
    one, other = (generate_ids(m.params, m.config, prompts, max_new_tokens=6, batch_size=2) for m in (int8, wanted))
    for (a,), (b,) in zip(one, other, strict=True):
        assert a.ids == b.ids and a.logprob == pytest.approx(b.logprob, abs=1e-3)
    step = make_topk_step(int8.config, Compute(), 5, 96)
    (top, scored), (best, scores) = (step(m.params, rows, rows, LENGTHS) for m in (int8, wanted))
    np.testing.assert_allclose(top.logprobs[mask], best.logprobs[mask], atol=1e-4)
    np.testing.assert_allclose(scored[mask], scores[mask], atol=1e-4)


def test_training_and_saving_are_refused(tmp_path):
    small_folder(tmp_path / "small")
    model = load(tmp_path / "small", dtype="int8")
    with pytest.raises(InputError, match=r"weights in int8 cannot be saved: .*Load the model without dtype=\"int8\""):
        save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    data = Data([Example(((3, 4, 5),), (1,), i) for i in range(4)])
    with pytest.raises(InputError, match="weights in int8 cannot be trained"):
        optimise(model, data, objectives.sft(), TrainSettings(batch_size=2, micro_batches=1), None)


def test_loading_never_holds_the_model_in_full_precision(tmp_path):
    """Beside what it returns: no more than a few times the largest tensor, of 24 layers' 168."""
    folder = small_folder(
        tmp_path, hidden_size=128, intermediate_size=512, num_hidden_layers=24, num_attention_heads=4, head_dim=32
    )
    model = load(folder, dtype="int8")  # imports, caches
    largest, whole = 4 * 128 * 512, sum(4 * x.size for x in jax.tree.leaves(model.params, is_leaf=is_int8))
    kept = sum(x.nbytes for x in jax.tree.leaves(model.params))
    del model
    tracemalloc.start()
    try:
        loaded = load(folder, dtype="int8")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept == sum(x.nbytes for x in jax.tree.leaves(loaded.params)) < 0.3 * whole
    assert peak < kept + 8 * largest < 0.5 * whole, (peak, kept, largest, whole)


def test_half_the_bytes_of_bfloat16():
    config = config_from_hf(
        {"model_type": "llama", "vocab_size": 64, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
         "num_attention_heads": 4}
    )  # fmt: skip
    sizes = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_params(config, jnp.bfloat16, int8=int8)))
        for int8 in (False, True)
    ]
    assert sizes[1] < 0.53 * sizes[0]


def test_a_router_is_left_as_it_is():
    specs = {"layers": {"router": {"kernel": object()}}, "head": {"kernel": object()}}
    config = config_from_hf({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
                             "num_hidden_layers": 1, "num_attention_heads": 1})  # fmt: skip
    assert int8_specs(specs, config) == specs


def test_generate_and_teachers_take_the_setting(tmp_path):
    folder, texts, out = small_folder(tmp_path / "small"), tmp_path / "texts.txt", tmp_path / "answers.jsonl"
    attempt(
        generate,
        ["--model", str(folder), "--weights", "int8", "--prompt", "1 2 3", "--out", str(out), "--max-new-tokens", "3"],
    )
    assert len(read_jsonl(out)) == 1
    texts.write_text("one two three four five\nsix seven eight\n")
    stores = []
    for weights in ("stored", "int8"):
        store = tmp_path / weights
        attempt(
            cache_teacher,
            ["--model", str(folder), "--texts", str(texts), "--out", str(store), "--weights", weights, "--k", "3"],
        )
        stores.append(json.loads((store / "store.json").read_text()))
    assert stores[0].pop("model") != stores[1].pop("model") and stores[0] == stores[1]


@pytest.mark.slow
def test_every_mesh_loads_and_writes_what_one_device_does(tmp_path):
    """8 virtual devices, in a process of its own."""
    folder = small_folder(tmp_path, num_key_value_heads=2, num_hidden_layers=3)
    script = Path(__file__).with_name("int8_on_devices.py")
    found = json.loads(finished([str(script), str(folder)], os.environ | virtual_devices(8)).splitlines()[-1])
    assert len(found) == 3 and all(found.values()), found
