"""config.json and generation_config.json of a merged model: the base's (or first model's), corrected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fusion_jax.files import write_json
from fusion_jax.merge.inputs import Prepared
from fusion_jax.merge.vocabulary import pivot_model

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LAYER_LISTS = ("layer_types",)


def write_config(prepared: Prepared, out: Path) -> None:
    """The number of layers and of tokens, a tied head and the dtype are the output's; all else is the base's."""
    recipe, plan = prepared.recipe, prepared.plan
    first = recipe.base or recipe.models[0]
    config: dict[str, Any] = dict(prepared.inputs[first].config)
    for key in LAYER_COUNTS:
        if key in config:
            config[key] = plan.layers
    for key in LAYER_LISTS:
        if isinstance(config.get(key), list):
            config[key] = _of_layers(prepared, key)
    if prepared.rows is not None:
        config["vocab_size"] = prepared.rows.size
        pivot = prepared.inputs[pivot_model(recipe)].config
        config |= {key: value for key, value in pivot.items() if key.endswith("_token_id")}
    config["tie_word_embeddings"] = plan.tied
    config.pop("torch_dtype", None)
    config["dtype"] = prepared.dtype(max(plan.tensors, key=prepared.held)).name
    write_json(out / "config.json", config)
    generation = prepared.inputs[first].folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / generation.name)


def _of_layers(prepared: Prepared, key: str) -> list[Any]:
    """A list with one entry a layer, put together from the models that the slices' first sources name."""
    found: list[Any] = []
    for one in prepared.recipe.slices:
        source = one.base or one.sources[0]
        values = prepared.inputs[source.model].config[key]
        found += values[slice(*source.layers)] if source.layers else values
    return found
