"""A recipe carried out: output folder, report, several devices, bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion_jax import InputError
from fusion_jax.merge import merge, methods, prepare
from fusion_jax.merge.executor import merging
from tests.merge.folders import CONFIG, INNER, LAYERS, VOCAB, make_models, read_model, tensors, ties, write_model
from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")


def varm(folder: Path, **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(folder / f"m{i}")} for i in (1, 2, 3)]
    return ties(folder, merge_method="varm", parameters=parameters) | {"models": models}


@pytest.fixture
def models(tmp_path):
    make_models(tmp_path, 3)
    return tmp_path


def test_output_is_a_folder_with_its_provenance(models):
    (models / "base/generation_config.json").write_text('{"eos_token_id": 2}')
    summary = merge(ties(models, dtype="bfloat16", seed=7), models / "out")
    config = json.loads((models / "out/config.json").read_text())
    assert config == CONFIG | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert (models / "out/generation_config.json").read_text() == '{"eos_token_id": 2}'
    lines = [json.loads(line) for line in (models / "out/tensors.jsonl").read_text().splitlines()]
    assert lines == summary.records and len(lines) == len(tensors(0))
    record = next(r for r in lines if r["name"] == "model.layers.1.mlp.up_proj.weight")
    assert record["parameters"]["density"] == [0.5] * 3 and record["shape"] == [INNER, 16]
    np.testing.assert_allclose(record["kept"], [0.5] * 3)
    moved = tensors(2)[record["name"]] - tensors(0)[record["name"]]
    np.testing.assert_allclose(record["norms"]["task_vectors"][1], np.linalg.norm(moved), rtol=1e-6)
    provenance = json.loads((models / "out/merge.json").read_text())
    assert provenance["recipe"]["seed"] == 7 and len(provenance["inputs"]) == 4
    report = (models / "out/report.md").read_text()
    assert f"| model.embed_tokens.weight | {VOCAB}×16 |" in report and "tensors.png" in report
    assert {p.name for p in models.iterdir()} == {"base", "m1", "m2", "m3", "out"}


def test_output_is_what_the_method_gives(models):
    merge(ties(models), models / "out")
    stack = {name: np.stack([tensors(i)[name] for i in (1, 2, 3)]) for name in tensors(0)}
    for name, value in read_model(models / "out").items():
        want = methods.ties(stack[name], tensors(0)[name], weight=0.4, density=0.5).tensor
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-7, err_msg=name)


def test_values_reach_their_files_by_name(models, monkeypatch):
    """Also where they come in another order than the files hold them."""
    merge(ties(models), models / "out", shard_bytes=4000)
    made = merging.merged_tensors
    monkeypatch.setattr(merging, "merged_tensors", lambda prepared, tensors, mesh: made(prepared, tensors[::-1], mesh))
    merge(ties(models), models / "turned", shard_bytes=4000)
    files = {p.name: p.read_bytes() for p in (models / "out").iterdir()}
    assert len(files) > 10 and files == {p.name: p.read_bytes() for p in (models / "turned").iterdir()}


def test_a_revision_is_told_as_asked_for_and_not_checked(models):
    given = ties(models)
    given["models"][0]["model"] += "@v2"
    merge(given, models / "out")
    inputs = json.loads((models / "out/merge.json").read_text())["inputs"]
    told = {Path(model).name: [key for key in one if "revision" in key] for model, one in inputs.items()}
    assert told == {"base": [], "m1": ["revision asked for, not checked"], "m2": [], "m3": []}
    assert inputs[str(models / "m1")][told["m1"][0]] == "v2"


def test_slices_stack_layers(models):
    sources = [("m1", [0, 2]), ("m2", [0, 3])]
    slices = [{"sources": [{"model": str(models / m), "layer_range": r}]} for m, r in sources]
    merge({"merge_method": "passthrough", "slices": slices}, models / "out")
    out = read_model(models / "out")
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer, (seed, source) in enumerate([(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]):
        np.testing.assert_array_equal(out[name.format(layer)], tensors(seed)[name.format(source)])
    assert json.loads((models / "out/config.json").read_text())["num_hidden_layers"] == 5 == LAYERS + 2


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(models):
    """Methods of each kind; split tensors of all of them are in test_task_vectors."""
    chosen = ["ties", "della", "sce", "karcher", "varm"]
    for method in chosen:
        given = ties(models, merge_method=method)
        known = {p.name for p in methods.METHODS[method].parameters}
        for one in given["models"]:
            one["parameters"] = {k: v for k, v in one["parameters"].items() if k in known}
        if method in ("linear", "karcher"):
            del given["base_model"]
        merge(given, models / f"{method}.one")
        (models / f"{method}.json").write_text(json.dumps(given))
    script = Path(__file__).with_name("on_all_devices.py")
    finished([str(script), str(models)], os.environ | virtual_devices(8))
    for method in chosen:
        one, eight = read_model(models / f"{method}.one"), read_model(models / f"{method}.eight")
        for name, value in one.items():
            np.testing.assert_allclose(eight[name], value, rtol=0, atol=2e-7, err_msg=f"{method} {name}")


def test_nan_is_told_with_its_tensor_and_nothing_is_left(models):
    bad = tensors(2)
    bad["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    write_model(models / "bad", bad)
    given = ties(models)
    given["models"][1]["model"] = str(models / "bad")
    with pytest.raises(InputError, match=r"bad/model.safetensors, field 'model.layers.1.mlp.up_proj.weight'.*NaN"):
        merge(given, models / "out")
    assert not (models / "out").exists() and not (models / ".out.unfinished").exists()


def test_a_norm_beyond_float32_stops_no_merge(models):
    """The square of a finite weight may be none; the merged weight is what counts."""
    name, large = "model.layers.1.mlp.up_proj.weight", tensors(2)
    large[name][3, 4] = 1e20
    write_model(models / "large", large)
    parts = [{"model": str(models / m), "parameters": {"weight": 0.5}} for m in ("m1", "large")]
    merge({"merge_method": "linear", "models": parts, "dtype": "float32"}, models / "out")
    assert read_model(models / "out")[name][3, 4] == np.float32(5e19)


@pytest.mark.parametrize("granularity", ["avg_param", "avg_item", "avg_model"])
def test_nan_under_varm_is_told_like_any_other(models, granularity):
    bad = tensors(2)
    bad["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    write_model(models / "bad", bad)
    given = varm(models, granularity=granularity)
    given["models"][1]["model"] = str(models / "bad")
    with pytest.raises(InputError, match=r"bad/model.safetensors, field 'model.layers.1.mlp.up_proj.weight'.*NaN"):
        merge(given, models / "out")


def test_overflow_of_the_output_dtype_is_told(models):
    given = ties(models, dtype="float16", parameters={"lambda": 1e8, "normalize": False})
    with pytest.raises(InputError, match=r"numbers that float16 does not hold.*Lower `lambda`"):
        merge(given, models / "out")
    assert not (models / ".out.unfinished").exists()


def test_other_architecture_is_refused(models):
    write_model(models / "other", tensors(1), num_attention_heads=4)
    given = ties(models)
    given["models"][0]["model"] = str(models / "other")
    with pytest.raises(InputError, match=r"other/config.json, field 'num_attention_heads': is 4, but 2 in"):
        prepare(given)


@pytest.mark.parametrize("granularity", ["avg_layer", "avg_model"])
def test_varm_weights_of_more_than_a_tensor(models, granularity):
    records = {r["name"]: r for r in merge(varm(models, granularity=granularity), models / "out").records}
    layer = [records[f"model.layers.1.mlp.{n}_proj.weight"]["coefficients"] for n in ("up", "down")]
    assert layer[0] == layer[1] and layer[0] != [1 / 3] * 3
    changes = [{n: v - tensors(0)[n] for n, v in tensors(i).items()} for i in (1, 2, 3)]
    kept = [n for n in changes[0] if granularity == "avg_model" or ".layers.1." in n]
    sums = [sum((c[n] ** 2).sum() if granularity == "avg_model" else (c[n] ** 2).mean() for n in kept) for c in changes]
    np.testing.assert_allclose(layer[0], np.asarray(sums) / sum(sums), rtol=1e-5)


def test_rules_on_varms_granularity_hold_tensor_by_tensor(models):
    mixed = {
        "granularity": [{"filter": "mlp", "value": "avg_layer"}, {"filter": "attn", "value": "avg_model"}, {"value": "avg_param"}],
        "softmax": [{"filter": "up_proj", "value": True}, {"value": False}], "temp": 1e-4,
    }  # fmt: skip
    found = coefficients(models, "mixed", **mixed)
    alone = {g: coefficients(models, g, granularity=g) for g in ("avg_layer", "avg_model", "avg_param")}
    soft = coefficients(models, "soft", granularity="avg_layer", softmax=True, temp=1e-4)
    assert len({tuple(x["model.layers.1.mlp.up_proj.weight"]) for x in (soft, *alone.values())}) == 4
    for name, values in found.items():
        kind = "avg_layer" if "mlp" in name else "avg_model" if "attn" in name else "avg_param"
        assert values == (soft if "up_proj" in name else alone[kind])[name], name


def coefficients(models: Path, out: str, **parameters: Any) -> dict[str, list[float]]:
    return {r["name"]: r["coefficients"] for r in merge(varm(models, **parameters), models / out).records}
