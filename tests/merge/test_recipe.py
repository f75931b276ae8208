"""Recipes: gradients and rules (golden), published merges in mergekit's YAML, layer plans, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusion_jax.errors import InputError
from fusion_jax.merge import METHODS
from fusion_jax.merge.recipes.checkpoints import Checkpoint
from fusion_jax.merge.recipes.parameters import layer_position
from fusion_jax.merge.recipes.plan import TensorInput, plan_tensors
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.merge.recipes.recipe import Recipe, TokenRule
from fusion_jax.merge.recipes.resolve import resolve
from tests.conftest import GOLDEN

LINEAR = (
    "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n  - {model: b, parameters: {weight: 2}}\n"
)
TIES = "merge_method: ties\nbase_model: base\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_recipe(path, METHODS)


def llama(layers: int, *, vocab: int = 10, width: int = 4, head: bool = True, tied: bool | None = None) -> Checkpoint:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(layers):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * width, width)
        shapes[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = (2,)
    return Checkpoint(shapes | ({"lm_head.weight": (vocab, width)} if head else {}), tied)


def gradient_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / "merge.json").read_text())["layer_gradients"]["cases"]
    assert len(cases) == 5
    return cases


@pytest.mark.parametrize("case", [c for c in gradient_cases() if "names" not in c], ids=lambda c: str(c["setting"]))
def test_gradients_are_mergekits(case: dict[str, Any]) -> None:
    raw = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    recipe = read_recipe({**raw, "parameters": {"t": case["setting"]}}, METHODS)
    layers = case["layers"]
    found = [resolve(recipe, METHODS["slerp"], "x", i, layers)["t"] for i in range(layers)]
    assert found == case["value_per_layer"]


def test_filters_are_mergekits() -> None:
    (case,) = [c for c in gradient_cases() if "names" in c]
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    raw = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    recipe = read_recipe({**raw, "parameters": {"t": t}}, METHODS)
    for name in case["names"]:
        found = [resolve(recipe, METHODS["slerp"], name, i, case["layers"])["t"] for i in range(case["layers"])]
        assert found == case["value_per_layer"][name]


def test_positions() -> None:
    assert [layer_position(i, 5) for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert layer_position(0, 1) == 1.0 and layer_position(None, 5) == 0.0


def test_switches_and_choices_of_a_gradient_are_picked() -> None:
    raw = {"merge_method": "ties", "base_model": "base", "models": [{"model": "a"}]}
    values = {"weight": 1, "normalize": [True, False], "ties_vote": ["weighted", "unweighted", "weighted"]}
    recipe = read_recipe({**raw, "parameters": values}, METHODS)
    found = [resolve(recipe, METHODS["ties"], "x", i, 5) for i in range(5)]
    assert [f["normalize"] for f in found] == [True, True, True, True, False]
    assert [f["ties_vote"] for f in found] == ["weighted"] * 2 + ["unweighted"] * 2 + ["weighted"]


def test_nearest_level_wins_and_rules_that_do_not_match_fall_through() -> None:
    recipe = read_recipe(
        {
            "merge_method": "ties",
            "base_model": "base",
            "parameters": {"weight": 0.1, "density": 0.5, "lambda": "1e-1"},
            "slices": [
                {
                    "sources": [
                        {
                            "model": "a",
                            "layer_range": [0, 2],
                            "parameters": {"weight": [{"filter": "mlp", "value": 0.9}]},
                        },
                        {"model": "b", "layer_range": [0, 2]},
                    ],
                    "parameters": {"weight": [{"filter": "*", "value": 0.4}], "density": [{"filter": "q", "value": 1}]},
                }
            ],
        },
        METHODS,
    )
    assert resolve(recipe, METHODS["ties"], "layers.0.mlp", 0, 2) == {
        "weight": [0.9, 0.4], "density": [0.5, 0.5], "lambda_": 0.1, "normalize": True, "ties_vote": "weighted",
        "rescale": "none", "int8_mask": False,
    }  # fmt: skip
    assert resolve(recipe, METHODS["ties"], "layers.0.q", 0, 2)["weight"] == [0.4, 0.4]
    assert resolve(recipe, METHODS["ties"], "layers.0.q", 0, 2)["density"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("written", "found"), [("true", "l1"), ("false", "none"), ("inverse_density", "inverse_density")]
)
def test_rescale_may_be_mergekits_switch(tmp_path: Path, written: str, found: str) -> None:
    recipe = read(tmp_path, TIES.replace("0.5", f"0.5, rescale: {written}"))
    assert resolve(recipe, METHODS["ties"], "x", 0, 2)["rescale"] == found


PUBLISHED_SLERP = """
slices:
  - sources:
      - model: models/openchat_3.5_mixtral
        layer_range: [0, 32]
      - model: models/openchat_3.5_solar
        layer_range: [0, 32]
merge_method: slerp
base_model: models/openchat_3.5_mixtral
parameters:
  t:
    - filter: self_attn
      value: [0, .5, .3, .7, 1]
    - filter: mlp
      value: [1, .5, .7, .3, 0]
    - value: .5
dtype: bfloat16
"""


def test_published_slerp(tmp_path: Path) -> None:
    recipe = read(tmp_path, PUBLISHED_SLERP)
    assert (recipe.method, recipe.base, recipe.models) == (
        "slerp",
        "models/openchat_3.5_mixtral",
        ("models/openchat_3.5_solar",),
    )
    assert (recipe.out_dtype, recipe.math_dtype, recipe.seed) == ("bfloat16", "float32", 0)
    plan = plan_tensors(recipe, METHODS, {m: llama(32) for m in recipe.inputs})
    values = {t.name: t.parameters["t"] for t in plan.tensors}
    assert values["model.embed_tokens.weight"] == values["model.norm.weight"] == values["lm_head.weight"] == 0.5
    assert (values["model.layers.0.self_attn.q_proj.weight"], values["model.layers.31.mlp.up_proj.weight"]) == (
        0.0,
        0.0,
    )
    assert (values["model.layers.31.self_attn.q_proj.weight"], values["model.layers.0.mlp.up_proj.weight"]) == (
        1.0,
        1.0,
    )
    assert len(plan.tensors) == 2 * 32 + 3 and plan.layers == 32 and not plan.tied


PUBLISHED_SCE = """
models:
  - model: FuseChat-7B-v2-Starling
  - model: FuseChat-7B-v2-SOLAR
  - model: FuseChat-7B-v2-InternLM
  - model: FuseChat-7B-v2-Mixtral
  - model: FuseChat-7B-v2-Qwen
merge_method: sce
base_model: openchat_3.5
parameters:
  select_topk: 0.1
dtype: bfloat16
math_dtype: bfloat16
"""


def test_published_sce(tmp_path: Path) -> None:
    recipe = read(tmp_path, PUBLISHED_SCE)
    assert len(recipe.models) == 5 and recipe.inputs == (*recipe.models, "openchat_3.5")
    assert (recipe.math_dtype, recipe.out_dtype) == ("bfloat16", "bfloat16")
    plan = plan_tensors(recipe, METHODS, {m: llama(2) for m in recipe.inputs})
    name = "model.layers.1.mlp.up_proj.weight"
    (found,) = [t for t in plan.tensors if t.name == name]
    assert found.parameters == {"select_topk": 0.1, "sce_variant": "fuseai", "int8_mask": False} and found.layer == 1
    assert found.inputs == tuple(TensorInput(m, name, i) for i, m in enumerate(recipe.models))
    assert found.base == TensorInput("openchat_3.5", name, -1)


PASSTHROUGH = """
slices:
  - sources:
      - {model: a, layer_range: [0, 3]}
  - sources:
      - {model: b, layer_range: [1, 4], parameters: {}}
    parameters: {scale: [0.5, 1.0]}
merge_method: passthrough
dtype: float16
"""


def test_passthrough_stacks_layers(tmp_path: Path) -> None:
    recipe = read(tmp_path, PASSTHROUGH)
    plan = plan_tensors(recipe, METHODS, {"a": llama(4), "b": llama(4)})
    found = {t.name: (t.inputs[0].model, t.inputs[0].tensor) for t in plan.tensors}
    assert plan.layers == 6 and plan.tensors[0].name == "model.embed_tokens.weight"
    assert found["model.embed_tokens.weight"][0] == "a"
    assert found["model.norm.weight"][0] == found["lm_head.weight"][0] == "b"
    assert found["model.layers.2.mlp.up_proj.weight"] == ("a", "model.layers.2.mlp.up_proj.weight")
    assert found["model.layers.3.mlp.up_proj.weight"] == ("b", "model.layers.1.mlp.up_proj.weight")
    scales = {t.layer: t.parameters["scale"] for t in plan.tensors if t.layer is not None}
    assert scales == {0: [1.0], 1: [1.0], 2: [1.0], 3: [0.5], 4: [0.75], 5: [1.0]}


def test_a_base_among_the_models_is_the_base_only(tmp_path: Path) -> None:
    listed = read(tmp_path, TIES.replace("[{model: a}", "[{model: base}, {model: a}"))
    assert listed.models == ("a", "b") and listed.inputs == ("a", "b", "base")
    assert listed.slices == read(tmp_path, TIES).slices


def test_a_base_that_slices_do_not_list_gives_the_first_sources_layers() -> None:
    sources = [{"model": "a", "layer_range": [1, 3]}, {"model": "b", "layer_range": [0, 2]}]
    raw = {"merge_method": "sce", "base_model": "base", "slices": [{"sources": sources}]}
    recipe = read_recipe(raw, METHODS)
    plan = plan_tensors(recipe, METHODS, {m: llama(3) for m in "ab"} | {"base": llama(3)})
    (found,) = [t for t in plan.tensors if t.name == "model.layers.0.mlp.up_proj.weight"]
    assert found.base is not None and found.base.tensor == "model.layers.1.mlp.up_proj.weight"
    assert [x.tensor for x in found.inputs] == [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ]


def test_types_seed_revisions_and_template(tmp_path: Path) -> None:
    text = LINEAR.replace("model: a", "model: {model: {path: a, revision: v2}}")
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    recipe = read(tmp_path, text + "dtype: bfloat16\nout_dtype: float16\nrandom_seed: 7\nchat_template: chat.jinja\n")
    assert (recipe.math_dtype, recipe.out_dtype, recipe.seed) == ("float32", "float16", 7)
    assert recipe.revisions == {"a": "v2"} and recipe.chat_template == "{{ messages }}"
    assert read(tmp_path, LINEAR + "chat_template: auto\n").chat_template == "auto"


@pytest.mark.parametrize(
    ("written", "path", "revisions"),
    [
        ("a@v2", "a", {"a": "v2"}),
        ("hub/a@v2", "hub/a", {"hub/a": "v2"}),
        ("/home/me@site/a", "/home/me@site/a", {}),
        ("{path: a@v2}", "a@v2", {}),
    ],
)
def test_a_revision_may_stand_behind_the_path(
    tmp_path: Path, written: str, path: str, revisions: dict[str, str]
) -> None:
    recipe = read(tmp_path, LINEAR.replace("model: a,", f"model: {written},"))
    assert recipe.models == (path, "b") and recipe.revisions == revisions


def test_a_rule_may_stand_without_a_list(tmp_path: Path) -> None:
    recipe = read(tmp_path, TIES.replace("0.5", "0.5, density: {filter: mlp, value: [0.2, 0.6]}, lambda: {value: 2}"))
    found = [resolve(recipe, METHODS["ties"], name, 1, 3) for name in ("mlp", "attn")]
    assert [f["density"] for f in found] == [[0.4] * 2, [1.0] * 2] and found[1]["lambda_"] == 2.0


def test_methods_without_a_base_merge_it_as_one_more_model(tmp_path: Path) -> None:
    listed = read(tmp_path, LINEAR + "base_model: b")
    assert (listed.models, listed.base, listed.slices) == (("a", "b"), "b", read(tmp_path, LINEAR).slices)
    unlisted = read(tmp_path, LINEAR + "base_model: c\nparameters: {weight: 3}")
    plan = plan_tensors(unlisted, METHODS, {m: llama(1) for m in "abc"})
    assert unlisted.inputs == ("a", "b", "c")
    assert all(t.parameters["weight"] == [1, 2, 3] and t.base is None for t in plan.tensors)
    stacked = read(tmp_path, PASSTHROUGH + "base_model: c")
    assert (stacked.models, stacked.base, stacked.slices) == (("a", "b"), "c", read(tmp_path, PASSTHROUGH).slices)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 5, tol: 1e-4}\n"
    )
    found = resolve(recipe, METHODS["karcher"], "x", 0, 2)
    assert found == {"max_iter": 5, "tol": 1e-4} and type(found["max_iter"]) is int


def test_vocabulary_policy(tmp_path: Path) -> None:
    text = """
tokenizer:
  source: union
  tokens:
    <|im_end|>: {source: a, force: true}
    <pad>: {source: {kind: model_token, model: b, token_id: 3}}
    <x>: {source: {kind: model_token, model: b, token: <y>}}
    <z>: {source: {kind: zero}}
  pad_to_multiple_of: 64
"""
    policy = read(tmp_path, TIES + text).vocabulary
    assert (policy.source, policy.model, policy.pad_to_multiple_of) == ("union", None, 64)
    assert policy.tokens == {
        "<|im_end|>": TokenRule("a", "<|im_end|>", True), "<pad>": TokenRule("b", 3), "<x>": TokenRule("b", "<y>"),
        "<z>": TokenRule(),
    }  # fmt: skip
    assert read(tmp_path, TIES + "tokenizer_source: base").vocabulary.source == "base"
    assert read(tmp_path, TIES + "tokenizer_source: model:b").vocabulary.model == "b"
    assert read(tmp_path, TIES).vocabulary.source == "refuse"


def test_tied_heads() -> None:
    raw = {"merge_method": "ties", "base_model": "base", "models": [{"model": "a"}], "parameters": {"weight": 1}}
    recipe = read_recipe(raw, METHODS)
    both = plan_tensors(recipe, METHODS, {"a": llama(1, head=False), "base": llama(1, head=False, tied=True)})
    assert both.tied and not [t for t in both.tensors if t.rows == "head"]
    stored = plan_tensors(recipe, METHODS, {"a": llama(1, head=False), "base": llama(1, tied=True)})
    head = stored.tensors[-1]  # a stored head is the head, whatever config.json says
    assert not stored.tied and head.base == TensorInput("base", "lm_head.weight", -1)
    assert head.inputs == (TensorInput("a", "model.embed_tokens.weight", 0),)
    one = plan_tensors(recipe, METHODS, {"a": llama(1), "base": llama(1, head=False, tied=True)})
    head = one.tensors[-1]
    assert not one.tied and head.name == "lm_head.weight" and head.rows == "head"
    assert head.inputs[0].tensor == "lm_head.weight" and head.base is not None
    assert head.base.tensor == "model.embed_tokens.weight"
    for lost, other in (("a", llama(1)), ("a", llama(1, head=False)), ("base", llama(1, tied=True))):
        given = {"a": other, "base": other} | {lost: llama(1, head=False, tied=False)}
        with pytest.raises(InputError, match=rf"^{lost}, field 'lm_head\.weight': is missing, and by config.json"):
            plan_tensors(recipe, METHODS, given)
    neither = plan_tensors(recipe, METHODS, dict.fromkeys(("a", "base"), llama(1, head=False, tied=False)))
    assert not neither.tied and not [t for t in neither.tensors if t.rows == "head"]  # models that only embed


def test_tied_slices_of_two_models_get_a_head(tmp_path: Path) -> None:
    recipe = read(tmp_path, PASSTHROUGH)
    tied = llama(4, head=False, tied=True)
    plan = plan_tensors(recipe, METHODS, {"a": tied, "b": tied})
    assert not plan.tied and plan.tensors[-1].inputs == (TensorInput("b", "model.embed_tokens.weight", 1),)


def test_models_without_an_optional_tensor_are_left_out() -> None:
    raw = {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 1), ("b", 2))],
    }
    with_bias = Checkpoint({**llama(1).shapes, "model.layers.0.self_attn.q_proj.bias": (4,)})
    plan = plan_tensors(read_recipe(raw, METHODS), METHODS, {"a": llama(1), "b": with_bias})
    (bias,) = [t for t in plan.tensors if t.name.endswith("bias")]
    assert bias.inputs == (TensorInput("b", "model.layers.0.self_attn.q_proj.bias", 1),)
    assert bias.parameters["weight"] == [2.0]
    raw = {"merge_method": "model_stock", "base_model": "b", "models": [{"model": "a"}, {"model": "c"}]}
    plan = plan_tensors(read_recipe(raw, METHODS), METHODS, {"a": llama(1), "b": with_bias, "c": with_bias})
    (bias,) = [t for t in plan.tensors if t.name.endswith("bias")]
    assert bias.inputs == () and bias.base is not None and bias.base.model == "b"


@pytest.mark.parametrize(
    "layer",
    [
        "h.{}.attn.c_attn.weight",
        "transformer.h.{}.mlp.w",
        "gpt_neox.layers.{}.x.3.w",
        "transformer.blocks.{}.experts.7.w",
    ],
)
def test_layers_are_found_by_name(layer: str) -> None:
    raw = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": [0, 1]}}
    shapes: dict[str, tuple[int, ...]] = {layer.format(i): (2, 2) for i in range(11)}
    plan = plan_tensors(read_recipe(raw, METHODS), METHODS, {m: Checkpoint(shapes) for m in "ab"})
    assert [t.name for t in plan.tensors] == list(shapes) and plan.layers == 11
    assert [t.parameters["weight"][0] for t in plan.tensors] == pytest.approx([i / 10 for i in range(11)])


def test_a_vocabulary_policy_sets_the_rows(tmp_path: Path) -> None:
    recipe = read(tmp_path, TIES + "tokenizer_source: union\n")
    inputs = {"a": llama(1, vocab=10), "b": llama(1, vocab=12), "base": llama(1, vocab=11)}
    plan = plan_tensors(recipe, METHODS, inputs, vocabulary_size=16)
    assert {t.name: t.shape for t in plan.tensors if t.rows} == {
        "model.embed_tokens.weight": (16, 4), "lm_head.weight": (16, 4),
    }  # fmt: skip


BAD_RECIPES = [
    ("merge_method: [ties\nmodels: 1", "line 2", "Correct the indentation"),
    ("merge_method: !!python/object/apply:os.system [ls]", "python/object/apply:os.system", "never run code"),
    (LINEAR + "merge_method: ties\n", "line 5: is broken YAML (the key 'merge_method' stands twice)", "Correct"),
    ("[" * 5000, "is broken YAML", "Write plain values"),
    ("- 1", "must be a mapping", "key: value"),
    (LINEAR.replace("merge_method: linear", ""), "'merge_method': is missing", "Name one of"),
    (LINEAR.replace("linear", "linaer"), "no merge method is called 'linaer'", "Write 'linear'"),
    (LINEAR + "base_modle: a", "'base_modle': is not a known key", "Write 'base_model'"),
    (LINEAR + "base_model: c", "needs the parameter 'weight' of model c", "parameters of c, or of the recipe"),
    (LINEAR.replace("weight: 2", "wieght: 2"), "'models[1].parameters.wieght': linear has no", "Write 'weight'"),
    (LINEAR.replace("weight: 2", ""), "needs the parameter 'weight' of model b", "Add 'weight: <value>'"),
    (LINEAR.replace("weight: 2", "weight: yes"), "'models[1].parameters.weight': must be a number", "Write a number"),
    (LINEAR.replace("weight: 2", "weight: .nan"), "nan is out of range", "finite number"),
    (LINEAR.replace("weight: 2", "weight: []"), "at least one entry", "Write one"),
    (LINEAR.replace("weight: 2", "weight: [{value: 1}, 2]"), "parameters.weight[1]': is 2 among rules", "- value"),
    (LINEAR.replace("weight: 2", "weight: [{filtre: mlp, value: 1}]"), "weight[0].filtre'", "Write 'filter'"),
    (LINEAR.replace("weight: 2", "weight: [{filter: mlp}]"), "weight[0]': has no value", "Add 'value"),
    (LINEAR.replace("weight: 2", "weight: {filtre: mlp, value: 1}"), "parameters.weight.filtre'", "Write 'filter'"),
    (LINEAR.replace("weight: 2", "weight: {filter: mlp, value: x}"), "weight.value': must be a number", "Write a number"),
    (LINEAR.replace("weight: 2", "weight: 2, normalize: false"), "normalize': is one value for all", "Move it"),
    (LINEAR + "parameters: {normalize: maybe}", "must be true or false, not 'maybe'", "Write true"),
    (LINEAR.replace("model: b", "model: b+c+d"), "'models[1].model': names more than a model", "Give MODEL+ADAPTER"),
    (LINEAR.replace("model: b", "model: {model: {path: b}, lora: 3}"), "models[1].model.lora': must be a model's", "Give"),
    (LINEAR.replace("model: b", "model: 3"), "must be a model's path, not 3", "Give the path"),
    (LINEAR.replace("model: b", "model: a"), "a is listed twice", "List each model once"),
    (LINEAR.replace("model: b", "model: {path: a, revision: 2}").replace("model: a,", "model: {path: a, revision: 1},"), "two revisions", "Merge one"),
    (LINEAR + "slices: [{sources: []}]", "both models and slices", "one of the two"),
    ("merge_method: linear", "neither models nor slices", "one of the two"),
    (LINEAR + "---\nname: second\n" + TIES, "holds several YAML documents", "mergekit-multi"),
    ("base_model: x\ngate_mode: hidden\nexperts: [{source_model: y}]", "mixture of experts (mergekit-moe)", "merge_method"),
    ("genome: {models: [a, b], merge_method: linear}\ntasks: [{name: x}]", "mergekit-evolve", "Give one recipe"),
    ('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', "a model's config", "what is merged"),
    (LINEAR + "chat_template: /dev/zero", "is no regular file", "Give a regular file"),
    (TIES + "tokenizer_source: base\npad_to_multiple_of: 1000000000000000000", "is no number of rows", "65536"),
    ("merge_method: linear\nmodules: {text: {}}", "'modules': several modules are not merged", "the one module's"),
    (TIES.replace("base_model: base", ""), "'base_model': ties needs a base model", "Add 'base_model"),
    (TIES.replace("{model: a}, {model: b}", "{model: base}"), "ties needs 1 or more models beside the base", "Add models"),
    (TIES.replace("{model: b}", "{model: b, parameters: {density: 1.5}}"), "density': 1.5 is out of range", "0 or more and 1 or less"),
    (TIES.replace("0.5", "0.5, ties_vote: unwieghted"), "'unwieghted' is not a choice", "Write 'unweighted'"),
    (TIES + "dtype: bfloat", "'dtype': 'bfloat' is not a type", "Write 'bfloat16'"),
    (TIES + "seed: -1", "'seed': -1 is no seed", "whole number"),
    (TIES + "seed: 1\nrandom_seed: 1", "stands beside random_seed", "Keep one"),
    (TIES + "tokenizer_source: c", "c is not a model of this recipe", "Known are a, b, base"),
    (TIES + "pad_to_multiple_of: 8", "'tokenizer_source': is missing", "Add base, union"),
    (TIES + "tokenizer_source: base\npad_to_multiple_of: 0", "0 is no number of rows", "Give 1"),
    (TIES + "tokenizer: {source: base}\ntokenizer_source: base", "stands beside tokenizer_source", "Keep one"),
    (TIES + "tokenizer: {source: base, tokens: {1: {source: a}}}", "tokens.1': is not text", "in quotes"),
    (TIES + "tokenizer: {source: base, tokens: {x: {force: true}}}", "tokens.x.source': is missing", "kind: zero"),
    (TIES + "tokenizer: {source: base, tokens: {x: {source: {kind: model_token, model: a}}}}", "must name one token", "token or token_id"),
    (TIES + "chat_template: chatml", "'chatml' is no chat template", "Jinja"),
    (LINEAR + "tokenizer_source: base", "is 'base', but the recipe has no base_model", "Name a listed model"),
    (PUBLISHED_SLERP.replace("base_model: models/openchat_3.5_mixtral", "base_model: models/third"), "slerp takes at most 1 beside the base, the recipe gives 2", "set base_model to one of them"),
    ("merge_method: passthrough\nbase_model: base\nmodels: [{model: a}]", "passthrough takes at most 1, the recipe gives 2", "base_model is one of them"),
    (PASSTHROUGH.replace("[1, 4]", "[4, 1]"), "'slices[1].sources[0].layer_range': must be [first, end]", "two layer numbers"),
    (PASSTHROUGH.replace("layer_range: [1, 4], ", ""), "layer_range': must be [first, end], not None", "two layer numbers"),
    (PUBLISHED_SLERP.replace("layer_range: [0, 32]", "layer_range: [0, 31]", 1), "different lengths [31, 32]", "one length"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem", "cure"), BAD_RECIPES, ids=[problem[:40] for _, problem, _ in BAD_RECIPES])
def test_bad_recipes_are_refused(tmp_path: Path, text: str, problem: str, cure: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert problem in str(caught.value) and cure in str(caught.value)
    assert str(tmp_path / "recipe.yaml") in str(caught.value)


def test_more_layers_than_any_model_has_are_refused() -> None:
    one = {"sources": [{"model": "a", "layer_range": [0, 1]}]}
    recipe = read_recipe({"merge_method": "passthrough", "slices": [one] * 1001}, METHODS)
    with pytest.raises(InputError, match=r"field 'slices': the slices give 1001 layers, 1000 at most"):
        plan_tensors(recipe, METHODS, {"a": llama(1)})


def test_a_template_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(InputError, match=r"'chat_template': .*binary.jinja is not UTF-8 text"):
        read(tmp_path, LINEAR + "chat_template: binary.jinja")
    (tmp_path / "large.jinja").write_text("{{ x }}" + " " * (1 << 20))
    with pytest.raises(InputError, match="is too large for a chat template"):
        read(tmp_path, LINEAR + "chat_template: large.jinja")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file.*Check the recipe's path"):
        read_recipe(tmp_path / "none.yaml", METHODS)


def test_a_rule_that_leaves_a_tensor_without_a_required_value(tmp_path: Path) -> None:
    recipe = read(tmp_path, LINEAR.replace("weight: 2", "weight: [{filter: mlp, value: 1}]"))
    with pytest.raises(InputError, match=r"'weight' of model b for the tensor model\.embed_tokens.*without a filter"):
        plan_tensors(recipe, METHODS, {m: llama(1) for m in "ab"})


@pytest.mark.parametrize(
    ("checkpoint", "problem"),
    [
        (llama(3), r"'models': the models have different numbers of layers: a has 2, b has 3.*under `slices`"),
        (llama(2, vocab=12), r"embed_tokens\.weight': b has shape \(12, 4\) where a has \(10, 4\).*tokenizer_source"),
        (llama(2, width=8), r"b has shape \(10, 8\) where a has \(10, 4\).*one architecture and size"),
        (Checkpoint({**llama(2).shapes, "model.layers.1.extra.weight": (1,)}), r"a, field 'model.layers.1.extra.weight': lacks a tensor"),
        (Checkpoint({**llama(2).shapes, "visual.blocks.0.w": (1,)}), r"different numbers of layers: a has 2, b has 3"),
        (Checkpoint({**llama(2).shapes, "visual.blocks.1.w": (1,)}), r"b: lacks layer 0 of visual\.blocks"),
        (Checkpoint({k: v for k, v in llama(3).shapes.items() if ".1." not in k}), r"b: lacks layer 1"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, checkpoint: Checkpoint, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        plan_tensors(read(tmp_path, LINEAR), METHODS, {"a": llama(2), "b": checkpoint})


def test_slices_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    recipe = read(tmp_path, PASSTHROUGH)
    with pytest.raises(InputError, match=r"'slices\[1\]': layer_range \[1, 4\] goes beyond the 3 layers of b"):
        plan_tensors(recipe, METHODS, {"a": llama(3), "b": llama(3)})
    with pytest.raises(
        InputError, match=r"lm_head\.weight': has 12 rows where model\.embed_tokens\.weight has 10.*tokenizer_source"
    ):
        plan_tensors(recipe, METHODS, {"a": llama(4), "b": llama(4, vocab=12)})
