"""config.json and generation_config.json of a merged model: the base's (or first model's), corrected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.errors import InputError
from fusion_jax.files import write_json
from fusion_jax.merge.executor.inputs import Input
from fusion_jax.merge.executor.prepare import Prepared
from fusion_jax.merge.vocabulary.tokens import pivot_model
from fusion_jax.models.families import names_of
from fusion_jax.models.families.rotary import with_both_forms
from fusion_jax.models.json_files import GENERATION, read_generation
from fusion_jax.paths import write_bytes

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LAYER_LISTS = ("layer_types", "block_configs")
LARGEST_ID = 2**31  # the vocabulary is the output's, which other models' ids need not be of


class ConfigFiles(NamedTuple):
    """config.json and, where the base has one, generation_config.json; a file of the base is copied as it is."""

    config: dict[str, Any]
    generation: dict[str, Any] | Path | None


def merged_config(prepared: Prepared) -> ConfigFiles:
    """The number of layers and of tokens, a tied head and the dtype are the output's; all else is the base's.

    With another model's vocabulary ids of tokens are that model's, in both files.

    Raises:
      InputError: a model whose layers are stacked does not tell their kinds, where another one does.
    """
    recipe, plan = prepared.recipe, prepared.plan
    first, pivot = prepared.inputs[recipe.base or recipe.models[0]], prepared.inputs[pivot_model(recipe)]
    config: dict[str, Any] = dict(first.config)
    for key in {*LAYER_COUNTS, first.fields.called("num_hidden_layers")}:
        if key in config and plan.layers is not None:
            config[key] = plan.layers
    config |= _of_layers(prepared, first)
    if prepared.rows is not None:
        config = _with_ids(config, pivot.config) | {first.fields.called("vocab_size"): prepared.rows.size}
    config[first.fields.called("tie_word_embeddings")] = plan.tied
    config["dtype"] = prepared.dtype(max(plan.tensors, key=prepared.held)).name
    config["torch_dtype"] = config["dtype"]  # transformers before 4.56 reads this name alone
    config = with_both_forms(config, names_of(config.get("model_type")))
    generation = read_generation(first.files, LARGEST_ID)
    if generation and pivot is not first:
        ids = {**pivot.config, **read_generation(pivot.files, LARGEST_ID)}
        return ConfigFiles(config, _with_ids(generation, ids))
    return ConfigFiles(config, first.files / GENERATION if generation else None)


def write_config(files: ConfigFiles, out: Path) -> None:
    """Write the two files; config.json last, as on a bucket it is what makes a folder a model."""
    if isinstance(files.generation, Path):
        write_bytes(out / GENERATION, files.generation.read_bytes())
    elif files.generation is not None:
        write_json(out / GENERATION, files.generation)
    write_json(out / "config.json", files.config)


def _with_ids(values: Mapping[str, Any], pivot: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the pivot's ids of tokens in place of their own, which are of another vocabulary."""
    others = {key: value for key, value in values.items() if not key.endswith("_token_id")}
    return others | {key: value for key, value in pivot.items() if key.endswith("_token_id")}


def _of_layers(prepared: Prepared, first: Input) -> dict[str, list[Any]]:
    """Lists with one entry a layer, put together from the models that the slices' first sources name."""
    sources = [one.base or one.sources[0] for one in prepared.recipe.slices]
    found: dict[str, list[Any]] = {}
    for key in map(first.fields.called, LAYER_LISTS):
        lists = [prepared.inputs[source.model].config.get(key) for source in sources]
        if not any(isinstance(values, list) for values in [first.config.get(key), *lists]):
            continue
        found[key] = []
        for source, values in zip(sources, lists, strict=True):
            if not isinstance(values, list):
                file = prepared.inputs[source.model].folder / "config.json"
                problem, cure = "is not there, but other models of the recipe have it", "Add the kind of each layer"
                raise InputError(problem, file=file, field=key, cure=cure)
            found[key] += values[slice(*source.layers)] if source.layers else values
    return found
