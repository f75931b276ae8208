"""Trees in memory: merged as folders are, and what is refused by its name."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import InputError
from fusion_jax.merge import merge, merge_trees
from tests.merge.folders import make_models, read_model, recipe_of, tensors

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, 3)
    return folder


def test_trees_in_memory_are_merged_as_folders_are(models):
    merge(recipe_of("ties", models), models / "out")
    found = merge_trees("ties", [tensors(i) for i in (1, 2, 3)], tensors(0), weight=0.4, density=0.5)
    for name, value in read_model(models / "out").items():
        np.testing.assert_allclose(value, found[name], rtol=0, atol=1e-7)
    drawn = merge_trees("dare_linear", [tensors(1), tensors(2)], tensors(0), weight=0.5, density=0.3, seed=1)
    given = recipe_of("dare_linear", models, weight=0.5, density=0.3) | {"seed": 1}
    del given["models"][2]
    merge(given, models / "drawn")
    np.testing.assert_array_equal(read_model(models / "drawn")["lm_head.weight"], drawn["lm_head.weight"])


@pytest.mark.parametrize("granularity", ["avg_module", "avg_layer", "avg_model", "avg_weight"])
def test_varm_weighs_leaves_together_as_it_does_tensors(models, granularity):
    given = {"granularity": granularity, "softmax": True, "temp": 1e-4}
    merge(recipe_of("varm", models, **given), models / granularity)
    found = merge_trees("varm", [tensors(i) for i in (1, 2, 3)], tensors(0), **given)
    alone = merge_trees("varm", [tensors(i) for i in (1, 2, 3)], tensors(0), softmax=True, temp=1e-4)
    for name, value in read_model(models / granularity).items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.abs(found[name] - alone[name]).max() > 1e-5


def test_varm_of_layers_needs_paths_that_name_them():
    with pytest.raises(InputError, match=r"field 'granularity': no leaf's path names a layer for avg_layer.*avg_model"):
        merge_trees("varm", [{"a": 1.0}], {"a": 2.0}, granularity="avg_layer")


def test_python_numbers_and_values_as_a_recipe_has_them():
    found = merge_trees("linear", [{"a": 1.0}, {"a": 2.0}], weight=np.array([1, 3]))
    assert found["a"].dtype == jnp.float32 and found["a"] == 1.75
    models, base = [{"a": np.ones(4, np.float32)}], {"a": np.zeros(4, np.float32)}
    for rescale in ("l1", True):
        found = merge_trees("breadcrumbs", models, base, weight=1.0, density=0.5, rescale=rescale)
        assert sorted(np.asarray(found["a"]).tolist()) == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("method", "count", "base", "parameters", "said"),
    [
        ("tie", 2, True, {}, "no merge method is called 'tie'. Write 'ties'"),
        ("ties", 2, True, {"weight": 1.0, "densty": 1.0}, "field 'densty': ties has no parameter 'densty'. Write 'density'"),
        ("ties", 2, True, {}, "field 'weight': ties needs it"),
        ("ties", 2, False, {"weight": 1.0}, "ties needs a base"),
        ("linear", 2, True, {"weight": 1.0}, "linear has no base"),
        ("ties", 2, True, {"weight": 1.0, "density": 1.5}, "field 'density': 1.5 is out of range. Give 0 or more and 1 or less"),
        ("ties", 2, True, {"weight": [1.0, "x"]}, "field 'weight[1]': must be a number, not 'x'"),
        ("sce", 2, True, {"select_topk": [0.5, 0.5]}, "field 'select_topk': must be a number"),
        ("varm", 2, True, {"merge_type": "squre"}, "field 'merge_type': 'squre' is not a choice. Write 'square'"),
        ("linear", 0, False, {"weight": 1.0}, "linear does not merge 0 models"),
    ],
)  # fmt: skip
def test_trees_that_do_not_fit_are_refused(method, count, base, parameters, said):
    with pytest.raises(InputError) as caught:
        merge_trees(method, [tensors(i + 1) for i in range(count)], tensors(0) if base else None, **parameters)
    assert said in str(caught.value)


def test_leaves_that_are_no_floats_are_refused_by_name():
    with pytest.raises(InputError, match=r"field 'a.b': is int32\[3\]"):
        merge_trees("linear", [{"a": {"b": np.ones(3, np.int32)}}] * 2, weight=1.0)
    with pytest.raises(InputError, match=r"field 'a': is 'x' beside 'x'"):
        merge_trees("linear", [{"a": "x"}] * 2, weight=1.0)
    with pytest.raises(InputError, match="different structures"):
        merge_trees("linear", [{"a": np.ones(3, np.float32)}, {"b": np.ones(3, np.float32)}], weight=1.0)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_leaf_that_is_not_finite_is_named(number):
    bad = {"a": {"b": np.array([1.0, number], np.float32)}}
    good = {"a": {"b": np.ones(2, np.float32)}}
    for models, base in (([good, bad], good), ([good], bad)):
        with pytest.raises(InputError, match=r"field 'a.b': holds NaN or infinity"):
            merge_trees("ties", models, base, weight=1.0)
