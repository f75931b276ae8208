"""Merge recipes: mergekit's YAML, or an equal dict, read and checked.

Merge specification, sections 1.3 to 1.5 and 12. Two keys of ours: `math_dtype` (default float32; the type that all
arithmetic is rounded to) and `seed`. `dtype` is the type of the saved file; in mergekit it is that of the arithmetic
too, so `math_dtype: bfloat16` beside `dtype: bfloat16` reproduces a published file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from fusion_jax.errors import InputError
from fusion_jax.merge.methods.arithmetic import MathDtype
from fusion_jax.merge.methods.method import Method
from fusion_jax.merge.recipes.model_paths import read_model
from fusion_jax.merge.recipes.parameters import Settings, read_settings
from fusion_jax.merge.recipes.places import Place, mapping, nearest, sequence, shown
from fusion_jax.merge.recipes.recipe import Recipe, Slice, Source
from fusion_jax.merge.recipes.resolve import missing
from fusion_jax.merge.recipes.tokenizer_keys import read_chat_template, read_vocabulary_policy
from fusion_jax.yaml_files import read_yaml

SEEDS = 2**32
KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "math_dtype", "seed",
    "random_seed", "tokenizer", "tokenizer_source", "pad_to_multiple_of", "chat_template",
)  # fmt: skip

SEVERAL = "Put each merge into a recipe of its own (mergekit-multi runs them in turn), naming the folders made before"
OTHER_KINDS = (  # keys that only such files have, what they are, what to do instead
    (
        ("modules",), "several modules are not merged",
        "Write the one module's models or slices",
    ),
    (
        ("experts", "gate_mode", "experts_per_token", "shared_experts"),
        "is of a recipe for a mixture of experts (mergekit-moe), which is not made here",
        "Give a recipe with merge_method, or make the mixture with mergekit-moe",
    ),
    (
        ("genome", "tasks"), "is of a search over recipes (mergekit-evolve), which is not run here",
        "Give one recipe with merge_method",
    ),
    (
        ("architectures", "model_type", "layer_templates"), "is of a model's config, which is no recipe",
        "Give the YAML file that lists what is merged",
    ),
    (
        ("base_model_name_or_path", "lora_alpha", "adapter"), "is of a LoRA's or a training run's config",
        "Give the YAML file that lists what is merged",
    ),
)  # fmt: skip


def read_recipe(source: str | os.PathLike[str] | Mapping[str, Any], methods: Mapping[str, Method]) -> Recipe:
    """A recipe from a YAML file or a dict with the same keys.

    Args:
      methods: the merge methods that a recipe may name.

    Raises:
      InputError: no such file, broken YAML (with its line), YAML that makes Python objects, an unknown key, method or
        parameter (naming the nearest), a missing or wrong value, a base or a number of models that the method does not
        take, a LoRA; names the field and the cure.
    """
    if not isinstance(source, Mapping | str | os.PathLike):
        cure = "Give a YAML file or {'merge_method': ..., 'models': [...]}"
        raise InputError(f"is of type {type(source).__name__}, not a recipe", field="source", cure=cure)
    place = Place(None if isinstance(source, Mapping) else os.fspath(source))
    raw = source if isinstance(source, Mapping) else read_yaml(Path(source), "recipe", several=SEVERAL)
    if isinstance(raw, Mapping):
        _check_kind(raw, place)
    top = mapping(raw, KEYS, place)
    if "merge_method" not in top:
        raise (place / "merge_method").error("is missing", f"Name one of {', '.join(sorted(methods))}")
    name = top["merge_method"]
    if not isinstance(name, str) or name not in methods:
        raise (place / "merge_method").error(f"no merge method is called {shown(name)}", nearest(name, methods))
    method = methods[name]
    reader = _Reader(method)
    base = reader.base(top, place)
    slices = reader.slices(top, base, place)
    bases = [one.base.model for one in slices if one.base]
    recipe = Recipe(
        method=name,
        slices=slices,
        base=base or (bases[0] if bases else None),
        parameters=read_settings(top.get("parameters"), method, place / "parameters", of_model=False),
        math_dtype=_dtype(top.get("math_dtype"), place / "math_dtype") or "float32",
        out_dtype=_dtype(top.get("out_dtype"), place / "out_dtype") or _dtype(top.get("dtype"), place / "dtype"),
        seed=_seed(top, place),
        chat_template=read_chat_template(top.get("chat_template"), place / "chat_template"),
        revisions=reader.revisions,
        file=place.file,
    )
    _check_required(recipe, method, place)
    return replace(recipe, vocabulary=read_vocabulary_policy(top, recipe, place))


def _check_kind(raw: Mapping[Any, Any], place: Place) -> None:
    """Refuse files of other tools, or for other ends, by what they are; an unknown key alone would say too little.

    Raises InputError.
    """
    for keys, kind, cure in OTHER_KINDS:
        found = [key for key in keys if key in raw]
        if found:
            raise (place / found[0]).error(kind, cure)


@dataclass(frozen=True)
class _Reader:
    """The slices of a recipe are read for a method. revisions: of the models that were read so far."""

    method: Method
    revisions: dict[str, str] = field(default_factory=dict)

    def model(self, raw: Any, place: Place) -> str:
        """A model's path; its revision is noted."""
        path, revision = read_model(raw, place)
        if revision is not None and self.revisions.setdefault(path, revision) != revision:
            raise place.error(f"{path} is asked for in two revisions", "Merge one, or give each a folder of its own")
        return path

    def base(self, raw: Mapping[str, Any], place: Place) -> str | None:
        """The base model of the recipe or of a slice, where it names one."""
        return None if raw.get("base_model") is None else self.model(raw["base_model"], place / "base_model")

    def slices(self, top: Mapping[str, Any], base: str | None, place: Place) -> tuple[Slice, ...]:
        """What stands under `models` or under `slices`."""
        given = [key for key in ("models", "slices") if top.get(key) is not None]
        if len(given) != 1:
            problem = "both models and slices are given" if given else "neither models nor slices is given"
            raise (place / "models").error(problem, "List what is merged under one of the two")
        place = place / given[0]
        entries = sequence(top[given[0]], place)
        if given == ["models"]:
            return (self.slice([self.source(e, place / i) for i, e in enumerate(entries)], base, {}, place),)
        out = []
        for at, entry in ((place / i, entry) for i, entry in enumerate(entries)):
            raw = mapping(entry, ("sources", "parameters", "base_model"), at)
            settings = read_settings(raw.get("parameters"), self.method, at / "parameters", of_model=False)
            own = self.base(raw, at) or base
            listed = sequence(raw.get("sources"), at / "sources")
            sources = [self.source(e, at / "sources" / i, ranged=True) for i, e in enumerate(listed)]
            out.append(self.slice(sources, own, settings, at / "sources"))
        return tuple(out)

    def source(self, entry: Any, place: Place, *, ranged: bool = False) -> Source:
        """A model with its own parameters. ranged: with the range of its layers, which a slice has."""
        raw = mapping(entry, ("model", "parameters", *(("layer_range",) if ranged else ())), place)
        if "model" not in raw:
            raise place.error("names no model", "Add 'model: <path>'")
        model = self.model(raw["model"], place / "model")
        layers = _layer_range(raw.get("layer_range"), place / "layer_range") if ranged else None
        settings = read_settings(raw.get("parameters"), self.method, place / "parameters", of_model=True)
        return Source(model, layers, settings)

    def slice(self, listed: Sequence[Source], base: str | None, settings: Settings, place: Place) -> Slice:
        """The sources of a slice, with the base apart from them where the method has one."""
        seen = [(source.model, source.layers) for source in listed]
        for i, one in enumerate(seen):
            if one in seen[:i]:
                raise (place / i / "model").error(f"{one[0]} is listed twice", "List each model once")
        spans = {source.layers[1] - source.layers[0] for source in listed if source.layers}
        if len(spans) > 1:
            raise place.error(f"the layer ranges have different lengths {sorted(spans)}", "Give ranges of one length")
        found = Slice(tuple(listed), None, settings)
        bases = [source for source in listed if source.model == base]
        if base is not None and self.method.base != "none":
            if len(bases) > 1:
                raise place.error(f"the base model {base} is listed twice", "List it once, or not at all")
            pivot = bases[0] if bases else Source(base, listed[0].layers)
            found = Slice(tuple(source for source in listed if source.model != base), pivot, settings)
        elif base is not None and not bases and not spans:
            found = Slice((*listed, Source(base)), None, settings)  # one more model
        _check_models(found, self.method, place)
        return found


def _layer_range(raw: Any, place: Place) -> tuple[int, int]:
    whole = isinstance(raw, list | tuple) and len(raw) == 2 and all(type(x) is int for x in raw)
    if not whole or not 0 <= raw[0] < raw[1]:
        raise place.error(f"must be [first, end], not {shown(raw)}", "Give two layer numbers, the second one excluded")
    return raw[0], raw[1]


def _check_models(found: Slice, method: Method, place: Place) -> None:
    """The base and the number of models are what the method takes."""
    name, count = method.name, len(found.sources)
    if method.base == "required" and found.base is None:
        raise Place(place.file, "base_model").error(f"{name} needs a base model", "Add 'base_model: <path>'")
    if count < method.least_models:
        raise place.error(
            f"{name} needs {method.least_models} or more models beside the base, the recipe gives {count}", "Add models"
        )
    if method.most_models is not None and count > method.most_models:
        cure, beside = "Remove models, or set base_model to one of them", " beside the base"
        if method.base == "none":
            cure, beside = "Remove models; base_model is one of them", ""
        raise place.error(f"{name} takes at most {method.most_models}{beside}, the recipe gives {count}", cure)


def _check_required(recipe: Recipe, method: Method, place: Place) -> None:
    """Each parameter without a default is given, for each model where it is the models'."""
    for parameter in (p for p in method.parameters if p.default is None):
        for one in recipe.slices:
            for source in one.sources:
                own = source.parameters if parameter.per_model else {}
                if not any(parameter.name in level for level in (own, one.parameters, recipe.parameters)):
                    raise missing(method, parameter, source, place)


def _dtype(raw: Any, place: Place) -> MathDtype | None:
    if raw is not None and raw not in get_args(MathDtype):
        raise place.error(f"{shown(raw)} is not a type that is merged", nearest(raw, get_args(MathDtype)))
    return raw


def _seed(top: Mapping[str, Any], place: Place) -> int:
    given = [key for key in ("seed", "random_seed") if top.get(key) is not None]
    if len(given) > 1:
        raise (place / "seed").error("stands beside random_seed, which means the same", "Keep one of them")
    seed = top[given[0]] if given else 0
    if type(seed) is not int or not 0 <= seed < SEEDS:
        raise (place / given[0]).error(f"{shown(seed)} is no seed", f"Give a whole number from 0 to {SEEDS - 1}")
    return seed
