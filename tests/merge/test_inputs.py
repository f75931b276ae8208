"""Folders that a merge reads: what they leave out, what does not fit together, what the output takes from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from experiments import merge as merge_program
from fusion_jax import InputError
from fusion_jax.merge import merge, prepare
from fusion_jax.models.families import FAMILIES, llama
from fusion_jax.models.folder import load
from fusion_jax.models.safetensors_io import open_folder
from tests.merge.folders import LAYERS, VOCAB, WIDTH, make_models, read_model, tensors, ties, write_model

pytestmark = pytest.mark.usefixtures("quick_compiler")

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def models(tmp_path):
    make_models(tmp_path, 3)
    return tmp_path


def linear(models: Path, *names: str, **changes: Any) -> dict[str, Any]:
    listed = [{"model": str(models / name)} for name in names]
    return {"merge_method": "linear", "models": listed, "parameters": {"weight": 1.0}, **changes}


def stacked(models: Path, **changes: Any) -> dict[str, Any]:
    """Layers of m1, then of m3."""
    sources = [("m1", [0, 2]), ("m3", [1, 3])]
    slices = [{"sources": [{"model": str(models / m), "layer_range": r}]} for m, r in sources]
    return {"merge_method": "passthrough", "slices": slices, **changes}


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def write_words(folder: Path, words: list[str]) -> None:
    vocabulary = {word: i for i, word in enumerate(words)}
    Tokenizer(WordLevel(vocabulary, unk_token=words[0])).save(str(folder / "tokenizer.json"))


WORDS = [f"w{i}" for i in range(VOCAB)]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"head_dim": WIDTH // 2}, None),
        ({"num_key_value_heads": None}, None),
        ({"head_dim": 4}, "field 'head_dim': is 4, but 8 in"),
        ({"num_key_value_heads": 1}, "field 'num_key_value_heads': is 1, but 2 in"),
        ({"hidden_act": "gelu"}, "field 'hidden_act': is 'gelu', but None in"),
    ],
)  # fmt: skip
def test_numbers_that_follow_may_be_left_out(models, changes, refused):
    edit(models / "m1", **changes)
    if refused is None:
        assert len(prepare(ties(models)).plan.tensors) == len(tensors(0))
        return
    with pytest.raises(InputError, match=rf"m1/config.json, {refused}"):
        prepare(ties(models))


def test_fields_that_a_family_renames_are_compared_and_written_under_its_names(models, tmp_path, monkeypatch):
    own = {
        "num_attention_heads": "n_heads",
        "hidden_size": "dim",
        "tie_word_embeddings": "tied",
        "num_hidden_layers": "depth",
    }
    family = SimpleNamespace(from_hf=llama.from_hf, to_hf=llama.to_hf, tensors=llama.tensors, IGNORED=(), NAMES=own)
    monkeypatch.setitem(FAMILIES, "toy", family)
    for name in ("base", "m1", "m2", "m3"):
        values = json.loads((models / name / "config.json").read_text())
        renamed = {own.get(key, key): value for key, value in values.items()}
        (models / name / "config.json").write_text(json.dumps({**renamed, "model_type": "toy"}))
    edit(models / "m1", head_dim=WIDTH // 2)  # follows from dim and n_heads
    merge(ties(models), tmp_path / "merged")
    written = json.loads((tmp_path / "merged/config.json").read_text())
    assert not own.keys() & written.keys() and (written["tied"], written["depth"]) == (False, LAYERS)
    assert load(tmp_path / "merged").config.layers == LAYERS
    edit(models / "m1", n_heads=4, head_dim=None)
    with pytest.raises(InputError, match=r"m1/config.json, field 'n_heads': is 4, but 2 in"):
        prepare(ties(models))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tensors_of_one_number_are_merged(tmp_path, dtype):
    for name, number in (("base", 1.0), ("m1", 2.5), ("m2", 3.5)):
        write_model(tmp_path / name, tensors(0) | {"model.layers.0.scale": np.asarray(number, dtype)})
    merge(linear(tmp_path, "m1", "m2"), tmp_path / "mean")
    assert read_model(tmp_path / "mean")["model.layers.0.scale"] == 3.0
    given = linear(tmp_path, "m1", "m2", base_model=str(tmp_path / "base"), merge_method="task_arithmetic")
    merge(given, tmp_path / "sum")
    assert read_model(tmp_path / "sum")["model.layers.0.scale"] == 5.0


def test_float64_is_saved_as_float32(tmp_path):
    for seed in (1, 2):
        write_model(tmp_path / f"m{seed}", tensors(seed, np.dtype(np.float64)))
    merge(linear(tmp_path, "m1", "m2"), tmp_path / "out")
    assert {e.dtype for e in open_folder(tmp_path / "out").values()} == {np.dtype(np.float32)}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    found = read_model(tmp_path / "out")[EMBEDDING]
    np.testing.assert_allclose(found, (tensors(1)[EMBEDDING] + tensors(2)[EMBEDDING]) / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("source", ["union", "m1", "m3"])
def test_stacked_layers_with_a_vocabulary(models, source):
    only_m1, only_m3 = [*WORDS[:-1], "one"], [*WORDS[:-1], "three"]
    write_words(models / "m1", only_m1)
    write_words(models / "m3", only_m3)
    merge(stacked(models, tokenizer_source=source if source == "union" else str(models / source)), models / "out")
    out, ids = read_model(models / "out"), {"one": VOCAB - 1, "three": VOCAB}
    ids = {"union": ids, "m1": {"one": VOCAB - 1}, "m3": {"three": VOCAB - 1}}[source]
    for name, own in ((EMBEDDING, 1), ("lm_head.weight", 3)):
        assert len(out[name]) == VOCAB + (source == "union")
        np.testing.assert_array_equal(out[name][: VOCAB - 1], tensors(own)[name][:-1])
        for word, i in ids.items():  # a token of one model alone has that model's row
            np.testing.assert_array_equal(out[name][i], tensors({"one": 1, "three": 3}[word])[name][-1])


def test_a_bias_of_one_model_with_a_vocabulary(models):
    bias = np.arange(VOCAB, dtype=np.float32)
    write_model(models / "biased", tensors(1) | {"lm_head.bias": bias})
    for name in ("biased", "m3"):
        write_words(models / name, WORDS)
    merge(linear(models, "biased", "m3", tokenizer_source="union"), models / "out")
    np.testing.assert_array_equal(read_model(models / "out")["lm_head.bias"], bias)


def test_a_vocabulary_larger_than_the_embedding_is_refused(models):
    write_words(models / "m1", [f"w{i}" for i in range(60)])
    edit(models / "m1", vocab_size=60)
    write_words(models / "m2", WORDS)
    with pytest.raises(
        InputError, match=rf"m1/config.json, field 'vocab_size': is 60, but {EMBEDDING} has {VOCAB} rows"
    ):
        prepare(linear(models, "m1", "m2", tokenizer_source="union"))


def test_ids_of_tokens_are_those_of_the_vocabulary(models):
    for name in ("base", "m1", "m2", "m3"):
        write_words(models / name, WORDS)
    edit(models / "base", eos_token_id=2, pad_token_id=3)
    edit(models / "m1", eos_token_id=7, bos_token_id=6)
    (models / "base/generation_config.json").write_text('{"eos_token_id": 2, "pad_token_id": 3, "temperature": 0.6}')
    merge(ties(models, tokenizer_source=str(models / "m1")), models / "out")
    config, generation = (json.loads((models / f"out/{n}config.json").read_text()) for n in ("", "generation_"))
    assert generation == {"eos_token_id": 7, "bos_token_id": 6, "temperature": 0.6}
    assert (config["eos_token_id"], config["bos_token_id"], "pad_token_id" in config) == (7, 6, False)
    (models / "m1/generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.1}')
    merge(ties(models, tokenizer_source=str(models / "m1")), models / "again")
    generation = json.loads((models / "again/generation_config.json").read_text())
    assert generation == {"eos_token_id": [7, 8], "bos_token_id": 6, "temperature": 0.6}


def test_kinds_of_stacked_layers(models):
    edit(models / "m1", layer_types=["a", "b", "c"])
    with pytest.raises(InputError, match=r"m3/config.json, field 'layer_types': is not there"):
        merge(stacked(models), models / "out")
    assert not (models / ".out.unfinished").exists()
    edit(models / "m3", layer_types=["d", "e", "f"])
    merge(stacked(models), models / "out")
    assert json.loads((models / "out/config.json").read_text())["layer_types"] == ["a", "b", "e", "f"]


def test_a_lost_head_is_told(models):
    write_model(models / "lost", {n: v for n, v in tensors(1).items() if n != "lm_head.weight"})
    with pytest.raises(InputError, match=r"lost, field 'lm_head.weight': is missing, and by config.json"):
        prepare(linear(models, "lost", "m2"))


def test_ids_that_clash_are_counted_in_the_report(models):
    for name in ("base", "m1", "m2", "m3"):
        write_words(models / name, WORDS)
    write_words(models / "m2", [*WORDS[:5], "other", *WORDS[6:]])
    merge(ties(models), models / "out")
    assert f"1 of {VOCAB} in `{models / 'm2'}`, the first 5 ('other', 'w5'" in (models / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("method", "own", "shared", "said"),
    [
        ("della", {"weight": 1.0, "density": [0.5, 0.5, 0.95]}, {}, r"'epsilon': density 0.95 with epsilon 0.15 .*layers.2"),
        ("linear", {"weight": [1.0, 1.0, -1.0]}, {"weight": 1.0}, r"'weight': weights \[-1.0, 1.0\] sum to 0.*layers.2"),
        ("varm", {}, {"temp": 0, "softmax": True}, r"'temp': 0.0 is not above 0 \(tensor model.embed_tokens"),
        ("varm", {}, {"granularity": "avg_item", "merge_type": "default"}, "'merge_type': signed changes"),
        ("varm", {}, {"granularity": "avg_model", "temp": 0}, "'temp': 0.0 is not above 0"),
        ("karcher", {}, {"max_iter": 1e12}, r"max_iter': 1e\+12 is out of range"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_go_together_are_told_first(models, method, own, shared, said):
    listed = [{"model": str(models / "m1"), "parameters": own}, {"model": str(models / "m2")}]
    base = {} if method == "linear" else {"base_model": str(models / "base")}
    recipe = models / "recipe.yml"
    if method == "della":
        shared = {"weight": 1.0, "density": 0.5}
    recipe.write_text(json.dumps({"merge_method": method, "models": listed, "parameters": shared, **base}))
    with pytest.raises(InputError, match=rf"recipe.yml, field .*{said}"):
        prepare(recipe)


@pytest.mark.parametrize("index", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "5"])
def test_broken_indexes_are_told(models, index):
    (models / "m1/model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"m1/model.safetensors.index.json: (is a broken index|lists 1)"):
        prepare(ties(models))


def test_a_template_too_long_for_a_path_is_told(models):
    with pytest.raises(InputError, match=r"'chat_template': .* is no chat template"):
        prepare(ties(models, chat_template="x" * 5000))


@pytest.mark.parametrize(("devices", "said"), [(0, "'devices': are none"), (99, "'devices': there are .*, not 99")])
def test_devices_that_are_not_there(models, devices, said):
    (models / "recipe.yml").write_text(json.dumps(ties(models)))
    with pytest.raises(InputError, match=said):
        merge_program.main(merge_program.Settings(str(models / "recipe.yml"), devices=devices))
