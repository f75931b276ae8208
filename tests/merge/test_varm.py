"""VaRM against the official analysis and merges, and what must hold of any input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.merge.methods import variation_ratio
from fusion_jax.merge.methods.variation_ratio import (
    WIDE,
    Granularity,
    MergeType,
    Statistic,
    statistic,
    summed_means,
    varm,
    varm_linear,
    varm_weights,
    whole_model,
)
from fusion_jax.merge.names import layer_path, module_of
from tests.merge.golden import FILE, TENSORS, assert_equal, cases, inputs

TYPES: dict[str, MergeType] = {"square": "square", "squre": "square", "abs": "abs"}
MODES = {"per_model_analysis": "intended", "published_command": "published", "item": "intended"}


def statistics(case: dict[str, Any], merge_type: MergeType = "square") -> dict[str, Statistic]:
    return {name: statistic(*inputs(case, name), merge_type) for name in TENSORS}


def stack(count: int, shape: tuple[int, ...] = (6, 5)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    base = random.standard_normal(shape, np.float32)
    return base + 0.1 * random.standard_normal((count, *shape), np.float32), base


@pytest.mark.parametrize("group", FILE["varm_analysis"])
def test_golden_analysis(group: str) -> None:
    """Per tensor, layer, module and model: float32 sums of up to 1536 terms, added in two orders."""
    official = FILE["varm_analysis"][group]
    found = statistics({"set": group, "model_order": list(official)})
    model, paths, modules = whole_model(found), summed_means(found, layer_path), summed_means(found, module_of)
    layers = {path.rpartition(".")[2]: values for path, values in paths.items()}
    for j, want in enumerate(official.values()):
        means = {name: s.mean[j] for name, s in found.items()}
        assert means == pytest.approx(want["key_to_params"], rel=2e-6)
        assert {name: values[j] for name, values in layers.items()} == pytest.approx(want["layer_to_params"], rel=2e-6)
        by_module = {name: values[j] for name, values in modules.items()}
        assert by_module == pytest.approx(want["module_to_params"], rel=2e-6)
        assert model.mean[j] == pytest.approx(want["aveage_var_degree"], rel=2e-6)
        assert (model.changed[j], model.size) == (want["total_diff_num"], want["total_param_num"])


@pytest.mark.parametrize("case", cases("varm", impl="varm"), ids=lambda c: f"{c['id']}-{c['granularity']}-{c['mode']}")
def test_golden(case: dict[str, Any]) -> None:
    granularity, mode = case["granularity"], MODES[case["mode"]]
    options = {"granularity": granularity, "merge_type": TYPES[case["merge_type"]], "varm_mode": mode}
    two_passes = granularity in WIDE
    weights = varm_weights(statistics(case), granularity, varm_mode=mode) if two_passes else {}
    for name in TENSORS:
        got = varm(*inputs(case, name), weight=weights.get(name), math_dtype="bfloat16", **options).tensor
        assert_equal(got, case, name, tolerance=0)


@pytest.mark.parametrize("case", cases("varm_linear", impl="varm"), ids=lambda case: case["id"])
def test_golden_linear(case: dict[str, Any]) -> None:
    for name in TENSORS:
        got = varm_linear(*inputs(case, name), weight=case["weights"], math_dtype="bfloat16").tensor
        assert_equal(got, case, name, tolerance=0)


@pytest.mark.usefixtures("quick_compiler")
def test_weights_by_granularity() -> None:
    """By hand: two models, two layers, a tensor outside them."""
    found = {
        "model.embed_tokens.weight": Statistic(np.array([2.0, 6.0]), np.array([2, 2]), 2),
        "model.layers.0.mlp.up_proj.weight": Statistic(np.array([4.0, 4.0]), np.array([4, 1]), 4),
        "model.layers.0.mlp.down_proj.weight": Statistic(np.array([2.0, 0.0]), np.array([1, 0]), 1),
        "model.layers.0.self_attn.q_proj.weight": Statistic(np.array([1.0, 3.0]), np.array([1, 1]), 1),
    }
    expected: dict[Granularity, list[list[float]]] = {
        "avg_param": [[1 / 4, 3 / 4], [1 / 2, 1 / 2], [1 / 2, 1 / 2], [1 / 4, 3 / 4]],
        "avg_module": [[1 / 4, 3 / 4], [3 / 4, 1 / 4], [3 / 4, 1 / 4], [1 / 4, 3 / 4]],
        "avg_layer": [[1 / 2, 1 / 2], [1 / 2, 1 / 2], [1 / 2, 1 / 2], [1 / 2, 1 / 2]],
        "avg_model": [[9 / 22, 13 / 22]] * 4,
        "avg_weight": [[72 / 124, 52 / 124]] * 4,
    }
    for granularity, want in expected.items():
        np.testing.assert_allclose(list(varm_weights(found, granularity).values()), want, rtol=1e-12)
        published = varm_weights(found, granularity, varm_mode="published")
        np.testing.assert_array_equal(list(published.values()), np.full((4, 2), 0.5))


def test_softmax_weights() -> None:
    found = {"a": Statistic(np.array([3.0, -1.0]), np.array([1, 1]), 2)}
    shares = np.exp(np.array([1.5, -0.5]) / 0.7)
    got = varm_weights(found, softmax=True, temp=0.7)["a"]
    np.testing.assert_allclose(got, shares / shares.sum(), rtol=1e-12)
    np.testing.assert_allclose(varm_weights(found)["a"], [0.75, 0.25], rtol=1e-12)
    large = {"a": Statistic(np.array([3e5, 1e5]), np.array([1, 1]), 1)}
    np.testing.assert_array_equal(varm_weights(large, softmax=True)["a"], [1.0, 0.0])


@pytest.mark.parametrize("merge_type", ["square", "abs", "default"])
def test_one_pass_per_tensor(merge_type: MergeType) -> None:
    """The merge is the average with the reported coefficients, which are the models' shares of the statistic."""
    models, base = stack(3)
    moved = models.astype(np.float64) - base
    values = {"square": moved**2, "abs": np.abs(moved), "default": moved}[merge_type].mean((1, 2))
    weights = np.abs(values) / np.abs(values).sum()
    result = varm(models, base, merge_type=merge_type)
    np.testing.assert_allclose(result.report["coefficients"], weights, rtol=1e-5)
    np.testing.assert_allclose(result.tensor, np.einsum("k,kab->ab", weights, models), rtol=0, atol=1e-6)


@pytest.mark.parametrize("granularity", ["avg_param", "avg_item"])
def test_order_one_model_and_identical_models(granularity: Granularity) -> None:
    models, base = stack(3)
    order = [2, 0, 1]
    straight, turned = (varm(x, base, granularity=granularity).tensor for x in (models, models[order]))
    np.testing.assert_allclose(turned, straight, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(varm(models[:1], base, granularity=granularity).tensor, models[0])
    same = np.stack([models[0]] * 3)
    np.testing.assert_allclose(varm(same, base, granularity=granularity).tensor, models[0], rtol=0, atol=1e-6)


def test_elements_that_no_model_changed_stay() -> None:
    """avg_item: the official code divides 0 by 1e-13 and turns them to 0."""
    _, base = stack(2)
    models = np.stack([base, base])
    models[0, 0] += 1.0
    models[1, 1] += 1e-8
    got = varm(models, base, granularity="avg_item").tensor
    np.testing.assert_array_equal(got[0], models[0, 0])
    np.testing.assert_allclose(got[1:], base[1:], rtol=0, atol=1e-6)


def test_layers_and_modules_by_name() -> None:
    assert layer_path("model.layers.12.mlp.up_proj.weight") == "model.layers.12"
    assert layer_path("model.norm.weight") is None
    assert module_of("model.layers.12.input_layernorm.weight") == "model.layers.12.input_layernorm"
    assert module_of("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    "layer",
    ["model.layers.{}", "gpt_neox.layers.{}", "transformer.h.{}", "h.{}", "transformer.blocks.{}", "encoder.layer.{}",
     "model.decoder.layers.{}", "transformer.encoder.layers.{}", "decoder.block.{}", "blocks.{}"],
)  # fmt: skip
@pytest.mark.parametrize("granularity", ["avg_layer", "avg_module"])
def test_weights_do_not_depend_on_how_a_family_names_its_layers(layer: str, granularity: Granularity) -> None:
    """By hand: the means of a layer's (a module's) tensors are summed, whatever the layers are called."""
    values = {(0, "mlp.up"): [1.0, 3.0], (0, "mlp.down"): [1.0, 1.0], (0, "attn.q"): [6.0, 2.0], (1, "mlp.up"): [1.0, 0.5]}
    found = {f"{layer.format(i)}.{name}.weight": Statistic(np.array(v), np.ones(2), 1) for (i, name), v in values.items()}
    got = varm_weights(found, granularity)
    sums = {"avg_layer": [8.0, 6.0], "avg_module": [2.0, 4.0]}[granularity]
    np.testing.assert_allclose(got[f"{layer.format(0)}.mlp.up.weight"], np.array(sums) / sum(sums))
    np.testing.assert_allclose(got[f"{layer.format(0)}.mlp.down.weight"], np.array(sums) / sum(sums))
    np.testing.assert_allclose(got[f"{layer.format(1)}.mlp.up.weight"], np.array([1.0, 0.5]) / 1.5)


def test_the_layers_of_two_stacks_are_not_mixed() -> None:
    found = {
        f"{stack}.block.0.mlp.weight": Statistic(np.array(v), np.ones(2), 1)
        for stack, v in (("encoder", [1.0, 3.0]), ("decoder", [3.0, 1.0]))
    }
    got = varm_weights(found, "avg_layer")
    np.testing.assert_allclose(got["encoder.block.0.mlp.weight"], [0.25, 0.75])
    np.testing.assert_allclose(got["decoder.block.0.mlp.weight"], [0.75, 0.25])


@pytest.mark.parametrize("granularity", ["avg_layer", "avg_module"])
def test_names_without_layers_are_refused(granularity: Granularity) -> None:
    found = {"groups_0.up.weight": Statistic(np.array([1.0, 3.0]), np.ones(2), 1)}
    with pytest.raises(InputError, match=f"no tensor's name names a layer for {granularity}.*avg_param"):
        varm_weights(found, granularity)


def test_other_weights_do_not_compile_again() -> None:
    models, _ = stack(3, (4, 3))
    varm_linear(models, weight=[1, 2, 3])
    compiled = variation_ratio._weighted._cache_size()
    varm_linear(models, weight=[4, 2, 3])
    assert variation_ratio._weighted._cache_size() == compiled


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda m, b: varm(m, None), "base_model"),
        (lambda m, b: varm(m, b, granularity="avg_layer"), "weight"),
        (lambda m, b: varm(m, b, granularity="avg_layer", weight=[1, 2]), "weight"),
        (lambda m, b: varm(m, b, granularity="avg_item", merge_type="default"), "merge_type"),
        (lambda m, b: varm(m, b, softmax=True, temp=0.0), "temp"),
        (lambda m, b: varm_weights({"a": statistic(m, b)}, "avg_item"), "granularity"),
        (lambda m, b: varm_linear(m, weight=[1, -1, 0]), "weight"),
        (lambda m, b: statistic(m, b[0]), "base_model"),
    ],
)
def test_bad_input_is_named(call: Any, field: str) -> None:
    with pytest.raises(InputError, match=f"field '{field}'"):
        call(*stack(3))
