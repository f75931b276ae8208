"""The keys of a recipe that speak of tokens: `tokenizer`, `tokenizer_source`, `pad_to_multiple_of`, `chat_template`.

Merge specification, section 9.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fusion_jax.errors import InputError
from fusion_jax.files import regular_file
from fusion_jax.merge.recipes.model_paths import read_model
from fusion_jax.merge.recipes.places import Place, mapping, nearest, shown
from fusion_jax.merge.recipes.recipe import Recipe, TokenRule, VocabularyPolicy
from fusion_jax.paths import size_of

MOST_PADDING = 1 << 16  # rows
LONGEST_TEMPLATE = 1 << 20  # bytes


def read_chat_template(raw: Any, place: Place) -> str | None:
    """A Jinja template, given as such or by its file; "auto" or None as they are. Raises InputError for others."""
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
    if (size := size_of(file)) > LONGEST_TEMPLATE:
        problem = f"{path} is too large for a chat template ({size} bytes, {LONGEST_TEMPLATE} at most)"
        raise place.error(problem, "Give a Jinja template")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise place.error(f"{path} is not UTF-8 text", "Give a Jinja template") from None


def read_vocabulary_policy(top: Mapping[str, Any], recipe: Recipe, place: Place) -> VocabularyPolicy:
    """The output's vocabulary, from all keys of a recipe that is read but for this. Raises InputError."""
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
    path = read_model(raw.removeprefix("model:") if isinstance(raw, str) else raw, place).path
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
