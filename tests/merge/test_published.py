"""Published recipes: of every method one that is read, with the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion_jax.merge import METHODS
from fusion_jax.merge.recipes.published import published_recipe
from fusion_jax.merge.recipes.reading import read_recipe

TARGETS = [Path(f"target-{i}") for i in range(5)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_that_is_read(method):
    recipe = read_recipe(published_recipe(method, TARGETS, "pivot", seed=3, math_dtype="bfloat16"), METHODS)
    assert (recipe.method, recipe.seed, recipe.math_dtype) == (method, 3, "bfloat16")
    chosen = METHODS[method]
    pivot = {"required": "target-0" if chosen.most_models == 1 else "pivot", "optional": "pivot", "none": None}
    assert recipe.base == (None if method == "karcher" else pivot[chosen.base])
    merged = {(1, "required"): TARGETS[1:2], (1, "none"): TARGETS[:1], (2, "optional"): TARGETS[:2]}
    assert recipe.models == tuple(map(str, merged.get((chosen.most_models, chosen.base), TARGETS)))


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("linear", {"weight": 0.2}),
        ("task_arithmetic", {"weight": 0.3, "density": 0.6}),
        ("ties", {"weight": 0.2, "density": 0.6}),
        ("sce", {"select_topk": 0.1}),
        ("slerp", {"t": 0.5}),
        ("karcher", {}),
    ],
)
def test_numbers_are_those_of_fusechat_v2(method, values):
    assert published_recipe(method, TARGETS, "pivot")["parameters"] == pytest.approx(values)


def test_given_values_stand_before_the_published_ones():
    recipe = published_recipe("ties", TARGETS, "pivot", {"density": 0.9, "select_topk": 0.5, "weight": 1.0})
    assert recipe["parameters"] == {"weight": 1.0, "density": 0.9}
