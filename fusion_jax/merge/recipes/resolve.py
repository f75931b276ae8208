"""The plain numbers that a method takes for one tensor, from the settings of a recipe; resolved before any tracing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.merge.methods.method import Method, Parameter
from fusion_jax.merge.recipes.parameters import layer_position, lookup
from fusion_jax.merge.recipes.places import Place
from fusion_jax.merge.recipes.recipe import Recipe, Source


def resolve(
    recipe: Recipe,
    method: Method,
    tensor: str,
    layer: int | None,
    layers: int,
    *,
    part: int = 0,
    sources: Sequence[Source] | None = None,
) -> dict[str, Any]:
    """The parameters of one tensor as the method's function takes them: plain values, lists for per-model ones.

    A gradient runs over the layers of a slice (of the whole model where the recipe lists models).

    Args:
      tensor: its name in the output, which filters look at.
      layer: 0-based within its slice; None: of no layer, which takes the first entry of a gradient.
      layers: of its slice.
      part: which slice of the recipe.
      sources: the models to give values for; None: all of the slice.

    Raises:
      InputError: no rule gives a required parameter for this tensor; names the model and the tensor.
    """
    one, position = recipe.slices[part], layer_position(layer, layers)
    chosen = one.sources if sources is None else sources
    out: dict[str, Any] = {}
    for parameter in method.parameters:
        values = []
        for source in chosen if parameter.per_model else one.sources[:1]:
            own = source.parameters if parameter.per_model else {}
            value = lookup((own, one.parameters, recipe.parameters), parameter.name, tensor, position)
            if value is None and parameter.default is None:
                raise missing(method, parameter, source, Place(recipe.file), tensor)
            values.append(parameter.default if value is None else value)
        out[method.argument(parameter.name)] = values if parameter.per_model else values[0]
    return out


def idle_filters(recipe: Recipe, names: Collection[str]) -> list[str]:
    """Filters of the recipe that no tensor's name contains: a wrong word, or one for another architecture."""
    levels = [recipe.parameters]
    for one in recipe.slices:
        levels += [one.parameters, *(source.parameters for source in one.sources)]
    patterns = [rule.pattern for level in levels for rules in level.values() for rule in rules]
    return [p for p in dict.fromkeys(patterns) if p is not None and not any(p in name for name in names)]


def missing(
    method: Method, parameter: Parameter, source: Source, place: Place, tensor: str | None = None
) -> InputError:
    """A parameter without a default that a model (or, of one value, the recipe) does not give: of one tensor or all."""
    whose = f" of model {source.model}" if parameter.per_model else ""
    whose += f" for the tensor {tensor}" if tensor else ""
    where = f"parameters of {source.model}, or of the recipe" if parameter.per_model else "recipe's parameters"
    cure = "Add a rule without a filter" if tensor else f"Add '{parameter.name}: <value>' to the {where}"
    at = place / "parameters" / parameter.name
    return at.error(f"{method.name} needs the parameter '{parameter.name}'{whose}", cure)
