"""Merge recipes: mergekit's YAML, or an equal dict, read into a frozen record that holds no mistake.

Merge specification, sections 1.3-1.5, 9 and 12. Two keys of ours: `math_dtype` (default float32; the type that all
arithmetic is rounded to) and `seed`. `dtype` is the type of the saved file; in mergekit it is that of the arithmetic
too, so `math_dtype: bfloat16` beside `dtype: bfloat16` reproduces a published file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from fusion_jax.errors import InputError
from fusion_jax.files import regular_file
from fusion_jax.merge.arithmetic import MathDtype, Method, Parameter
from fusion_jax.merge.parameters import Place, Settings, mapping, nearest, read_settings, sequence, shown
from fusion_jax.yaml_files import read_yaml

SEEDS = 2**32
MOST_PADDING = 1 << 16  # rows
LONGEST_TEMPLATE = 1 << 20  # bytes
REVISION = re.compile(r"(.*[^/])@([^/@]+)")
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


@dataclass(frozen=True)
class Source:
    """A model of a slice: its path, the half-open range of its layers (None: all), its own settings."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Layers of the output: the models they are merged from, the base (which is none of them), their settings."""

    sources: tuple[Source, ...]
    base: Source | None = None
    parameters: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class TokenRule:
    """Where a token's row comes from in models without it (`force`: in all models): a row of a model, or zeros.

    token: text, or the row's number; both None: a zero row.
    """

    model: str | None = None
    token: str | int | None = None
    force: bool = False


@dataclass(frozen=True)
class VocabularyPolicy:
    """The output's vocabulary (section 9): source "refuse" (sizes must agree), "base", "union" or "model" (`model`)."""

    source: Literal["refuse", "base", "union", "model"] = "refuse"
    model: str | None = None
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What is merged, and how.

    slices: one for `models`, whose sources have all layers (None). base: path of the base model, which gives the
      config and the tokenizer; no slice lists it among its sources, but for methods without a base, of which it is one
      more model. parameters: of the whole merge. out_dtype: of the saved file; None keeps the inputs'.
    chat_template: a Jinja template, "auto" (the one that most inputs have), None (the tokenizer's own).
    revisions: of the models that ask for one; folders are read as they are, whatever revision they hold.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Settings = field(default_factory=dict)
    math_dtype: MathDtype = "float32"
    out_dtype: MathDtype | None = None
    seed: int = 0
    vocabulary: VocabularyPolicy = VocabularyPolicy()
    chat_template: str | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models beside the base, each once, in the order of the recipe."""
        return tuple(dict.fromkeys(s.model for one in self.slices for s in one.sources))

    @property
    def inputs(self) -> tuple[str, ...]:
        """All models that are read: `models`, then the base (or, of slices, the bases)."""
        bases = [one.base.model for one in self.slices if one.base] + ([self.base] if self.base else [])
        return tuple(dict.fromkeys([*self.models, *bases]))


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
    revisions: dict[str, str] = {}
    base = None if top.get("base_model") is None else _model(top["base_model"], place / "base_model", revisions)
    slices = _slices(top, method, base, place, revisions)
    bases = [one.base.model for one in slices if one.base]
    recipe = Recipe(
        method=name, slices=slices, base=base or (bases[0] if bases else None),
        parameters=read_settings(top.get("parameters"), method, place / "parameters", of_model=False),
        math_dtype=_dtype(top.get("math_dtype"), place / "math_dtype") or "float32",
        out_dtype=_dtype(top.get("out_dtype"), place / "out_dtype") or _dtype(top.get("dtype"), place / "dtype"),
        seed=_seed(top, place), chat_template=_chat_template(top.get("chat_template"), place / "chat_template"),
        revisions=revisions, file=place.file,
    )  # fmt: skip
    _check_required(recipe, method, place)
    return replace(recipe, vocabulary=_vocabulary(top, recipe, place))


def _check_kind(raw: Mapping[Any, Any], place: Place) -> None:
    """Refuse files of other tools, or for other ends, by what they are; an unknown key alone would say too little.

    Raises InputError.
    """
    for keys, kind, cure in OTHER_KINDS:
        found = [key for key in keys if key in raw]
        if found:
            raise (place / found[0]).error(kind, cure)


def _model(raw: Any, place: Place, revisions: dict[str, str]) -> str:
    """The path of a model given as PATH, PATH@REVISION, {path, revision} or {model: {path, revision}}.

    An @ before the last slash belongs to the path.
    """
    value = raw
    if isinstance(value, Mapping) and ("model" in value or "lora" in value):
        outer = mapping(value, ("model", "lora"), place)
        if outer.get("lora") is not None:
            raise _lora(place / "lora")
        value, place = outer.get("model"), place / "model"
    if isinstance(value, Mapping):
        reference = mapping(value, ("path", "revision"), place)
        path, revision = reference.get("path"), reference.get("revision")
    else:
        parts = REVISION.fullmatch(value) if isinstance(value, str) else None
        path, revision = parts.groups() if parts else (value, None)
    if not isinstance(path, str) or not path.strip():
        raise place.error(f"must be a model's path, not {shown(raw)}", "Give the path of a Hugging Face model folder")
    if "+" in path:
        raise _lora(place)
    if revision is not None and revisions.setdefault(path, str(revision)) != str(revision):
        raise place.error(f"{path} is asked for in two revisions", "Merge one, or give each a folder of its own")
    return path


def _lora(place: Place) -> InputError:
    return place.error("names a LoRA adapter, which is not read", "Merge the adapter into its model and name that")


def _slices(
    top: Mapping[str, Any], method: Method, base: str | None, place: Place, revisions: dict[str, str]
) -> tuple[Slice, ...]:
    given = [key for key in ("models", "slices") if top.get(key) is not None]
    if len(given) != 1:
        problem = "both models and slices are given" if given else "neither models nor slices is given"
        raise (place / "models").error(problem, "List what is merged under one of the two")
    place = place / given[0]
    entries = sequence(top[given[0]], place)
    if given == ["models"]:
        return (_slice(entries, False, {}, method, base, place, revisions),)
    out = []
    for i, entry in enumerate(entries):
        raw = mapping(entry, ("sources", "parameters", "base_model"), place / i)
        settings = read_settings(raw.get("parameters"), method, place / i / "parameters", of_model=False)
        own = base
        if raw.get("base_model") is not None:
            own = _model(raw["base_model"], place / i / "base_model", revisions)
        sources = sequence(raw.get("sources"), place / i / "sources")
        out.append(_slice(sources, True, settings, method, own, place / i / "sources", revisions))
    return tuple(out)


def _slice(
    entries: Any, ranged: bool, settings: Settings, method: Method, base: str | None, place: Place,
    revisions: dict[str, str],
) -> Slice:  # fmt: skip
    sources: list[Source] = []
    for i, entry in enumerate(entries):
        raw = mapping(entry, ("model", "parameters", "layer_range")[: 3 if ranged else 2], place / i)
        if "model" not in raw:
            raise (place / i).error("names no model", "Add 'model: <path>'")
        model = _model(raw["model"], place / i / "model", revisions)
        layers = _layer_range(raw.get("layer_range"), place / i / "layer_range") if ranged else None
        if any((s.model, s.layers) == (model, layers) for s in sources):
            raise (place / i / "model").error(f"{model} is listed twice", "List each model once")
        own = read_settings(raw.get("parameters"), method, place / i / "parameters", of_model=True)
        sources.append(Source(model, layers, own))
    spans = {s.layers[1] - s.layers[0] for s in sources if s.layers}
    if len(spans) > 1:
        raise place.error(f"the layer ranges have different lengths {sorted(spans)}", "Give ranges of one length")
    bases = [s for s in sources if s.model == base]
    if base is None or method.base == "none":
        unlisted = [] if base is None or bases or ranged else [Source(base)]
        found = Slice((*sources, *unlisted), None, settings)
    else:
        if len(bases) > 1:
            raise place.error(f"the base model {base} is listed twice", "List it once, or not at all")
        pivot = bases[0] if bases else Source(base, sources[0].layers)
        found = Slice(tuple(s for s in sources if s.model != base), pivot, settings)
    _check_models(found, method, place)
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


def _chat_template(raw: Any, place: Place) -> str | None:
    if raw is None or raw == "auto" or (isinstance(raw, str) and ("{{" in raw or "{%" in raw)):
        return cast(str | None, raw)
    beside = Path(place.file).parent if place.file else Path()
    for path in (Path(raw), beside / raw) if isinstance(raw, str) and "\n" not in raw else ():
        if os.path.exists(path):  # False of a name too long for a file, too
            return _template(path, place)
    raise place.error(f"{shown(raw)} is no chat template", "Give 'auto', a Jinja template or the path of one")


def _template(path: Path, place: Place) -> str:
    try:
        file = regular_file(path, cure="Give the Jinja file in it")
    except InputError as error:
        raise place.error(f"{path} {error.problem}", error.cure or "Give a Jinja template") from None
    if (size := file.stat().st_size) > LONGEST_TEMPLATE:
        problem = f"{path} is too large for a chat template ({size} bytes, {LONGEST_TEMPLATE} at most)"
        raise place.error(problem, "Give a Jinja template")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise place.error(f"{path} is not UTF-8 text", "Give a Jinja template") from None


def _vocabulary(top: Mapping[str, Any], recipe: Recipe, place: Place) -> VocabularyPolicy:
    raw = mapping(top.get("tokenizer"), ("source", "tokens", "pad_to_multiple_of"), place / "tokenizer")
    at = place / "tokenizer" / "source" if raw else place / "tokenizer_source"
    if raw and top.get("tokenizer_source") is not None:
        raise at.error("stands beside tokenizer_source, which means the same", "Keep one of them")
    source = raw.get("source") if raw else top.get("tokenizer_source")
    pads = [one["pad_to_multiple_of"] for one in (raw, top) if one.get("pad_to_multiple_of") is not None]
    if len(pads) > 1:
        raise (place / "pad_to_multiple_of").error("is given twice", "Keep the one under tokenizer")
    pad = pads[0] if pads else None
    if source is None:
        if raw or pad is not None:
            raise at.error("is missing, so there are no rows to make", "Add base, union or the path of a listed model")
        return VocabularyPolicy()
    if pad is not None and (type(pad) is not int or not 1 <= pad <= MOST_PADDING):
        raise (place / "pad_to_multiple_of").error(f"{shown(pad)} is no number of rows", f"Give 1 to {MOST_PADDING}")
    kind, model = source, None
    if source not in ("base", "union"):
        kind, model = "model", _listed(source, recipe, at)
    if kind == "base" and recipe.base is None:
        raise at.error("is 'base', but the recipe has no base_model", "Name a listed model's path, or 'union'")
    rules = mapping(raw.get("tokens"), None, place / "tokenizer" / "tokens")
    tokens = {token: _token_rule(token, rule, recipe, place / "tokenizer" / "tokens") for token, rule in rules.items()}
    return VocabularyPolicy(kind, model, tokens, pad)


def _listed(raw: Any, recipe: Recipe, place: Place) -> str:
    """The path of a model that the recipe lists; mergekit's older "model:<path>" too."""
    path = _model(raw.removeprefix("model:") if isinstance(raw, str) else raw, place, {})
    if path not in recipe.inputs:
        raise place.error(f"{path} is not a model of this recipe", nearest(path, recipe.inputs))
    return path


def _token_rule(token: Any, raw: Any, recipe: Recipe, place: Place) -> TokenRule:
    if not isinstance(token, str):
        raise (place / str(token)).error("is not text", "Put the token in quotes")
    place = place / token
    rule = mapping(raw, ("source", "force"), place)
    force, source = rule.get("force", False), rule.get("source")
    if not isinstance(force, bool):
        raise (place / "force").error(f"must be true or false, not {shown(force)}", "Write true or false")
    place = place / "source"
    if source is None:
        raise place.error("is missing", "Name a model, or write {kind: zero}")
    if not isinstance(source, Mapping) or "kind" not in source:
        return TokenRule(_listed(source, recipe, place), token, force)
    if source["kind"] == "zero":
        mapping(source, ("kind",), place)
        return TokenRule(force=force)
    if source["kind"] != "model_token":
        raise (place / "kind").error(f"no kind is called {shown(source['kind'])}", "Write model_token or zero")
    mapping(source, ("kind", "model", "token", "token_id"), place)
    other, number = source.get("token"), source.get("token_id")
    if not (isinstance(other, str) and number is None) and not (other is None and type(number) is int and number >= 0):
        raise place.error("must name one token, as text or as number", "Give either token or token_id")
    return TokenRule(_listed(source.get("model"), recipe, place / "model"), number if other is None else other, force)
