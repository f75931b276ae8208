"""The tokenizer files of a merged model: the pivot's, with the tokens that a union adds and without those it strips.

Merge specification, section 9. A union reads text as its pivot does: tokens of other models are entries without merge
rules, reached where their text is an added token, a single character, or a whole word of a tokenizer that looks words
up (`ignore_merges`); their ids decode as in their own model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fusion_jax.errors import InputError, first_line
from fusion_jax.files import regular_file, write_json
from fusion_jax.json_files import read_json
from fusion_jax.merge.recipes.recipe import Recipe
from fusion_jax.merge.vocabulary.tokens import Vocabulary, open_tokenizer, pivot_model
from fusion_jax.models.tokenizers import broken_tokenizer, portable, read_settings

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
COMPLETE = ("tokenizer.json", *SETTINGS, "chat_template.jinja")
SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
TEMPLATE = "chat_template.jinja"


def write_tokenizer(recipe: Recipe, folders: Mapping[str, Path], output: Vocabulary, out: Path) -> None:
    """Write the output's tokenizer files into a folder.

    Where the output has the pivot's tokens, its files are copied as they are; otherwise tokenizer.json is rewritten
    and the files of slow tokenizers, which would contradict it, are left out.

    Args:
      folders: of each of `Recipe.inputs`.
      output: from `output_vocabulary`; under the policy "refuse" the pivot's.

    Raises:
      InputError: a union or a stripped vocabulary of a tokenizer whose kind cannot hold it; no chat template to choose.
    """
    folder = folders[pivot_model(recipe)]
    path = folder / "tokenizer.json"
    policy = recipe.vocabulary.source != "refuse"
    own = open_tokenizer(folder).get_vocab(with_added_tokens=True) if policy or os.path.lexists(path) else {}
    changed = policy and own != dict(output.ids)
    read_settings(folder)
    for name in COMPLETE + (() if changed else SLOW):
        if os.path.lexists(folder / name):
            shutil.copyfile(regular_file(folder / name), out / name)
    _make_portable(out / SETTINGS[0])
    if changed:
        state = read_json(path)
        others = [folders[model] / "tokenizer.json" for model in recipe.inputs]
        entries = _added_entries(others, output, own)
        _strip(state, output, path)
        _extend(state, output, entries, path)
        _check(state, output, path)
        write_json(out / "tokenizer.json", state)
        for name in SETTINGS:
            _rewrite_config(out / name, output, entries)
    template = _template(recipe, folders)
    if template is not None:
        (out / TEMPLATE).write_text(template, encoding="utf-8")
        _drop_template(out / "tokenizer_config.json")


def _make_portable(path: Path) -> None:
    """Settings that only transformers 5 reads, under the names that transformers 4 knows; others stay as they are."""
    if path.is_file():
        settings = read_json(path)
        if "tokenizer_class" in settings and portable(settings) != settings:
            write_json(path, portable(settings))


def _added_entries(files: list[Path], output: Vocabulary, own: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The output's added tokens that the pivot lacks, as tokenizer.json writes them; the first definition wins."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for entry in read_json(file).get("added_tokens") or []:
            token = entry["content"]
            if token in output.added and token not in own and token not in found:
                found[token] = {**entry, "id": output.ids[token]}
    return found


def _strip(state: dict[str, Any], output: Vocabulary, file: Path) -> None:
    """Take out what the output does not have: ids beyond the pivot's embedding."""
    model = state["model"]
    state["added_tokens"] = [e for e in state["added_tokens"] if e["content"] in output.ids]
    vocab = model["vocab"]
    lost = [token for token in (vocab if isinstance(vocab, dict) else []) if token not in output.ids]
    if isinstance(vocab, list) and any(piece not in output.ids for piece, _ in vocab):
        cure = "Name another model as tokenizer_source"
        raise InputError("has more pieces than its embedding has rows", file=file, field="tokenizer", cure=cure)
    for token in lost:
        del vocab[token]
    if lost and model["type"] == "BPE":
        pairs = [(m, m if isinstance(m, list) else m.split(" ", 1)) for m in model["merges"]]
        model["merges"] = [m for m, (a, b) in pairs if {a, b, a + b} <= vocab.keys()]


def _extend(state: dict[str, Any], output: Vocabulary, entries: Mapping[str, dict[str, Any]], file: Path) -> None:
    """Add what the pivot lacks. A vocabulary with ids takes every token, so that loading gives each its own id."""
    vocab = state["model"]["vocab"]
    state["added_tokens"] = sorted([*state["added_tokens"], *entries.values()], key=lambda entry: entry["id"])
    if isinstance(vocab, dict):
        vocab.update({token: i for token, i in output.ids.items() if token not in vocab})
        return
    known = {piece for piece, _ in vocab} | {entry["content"] for entry in state["added_tokens"]}
    further = [token for token in output.ids if token not in known]
    if further:
        kind, count = state["model"]["type"], len(further)
        problem = f"a {kind} tokenizer cannot take the {count} pieces of other models ('{further[0]}' ...)"
        cure = "Set tokenizer_source to base or to a model's path"
        raise InputError(problem, file=file, field="tokenizer", cure=cure)


def _check(state: dict[str, Any], output: Vocabulary, file: Path) -> None:
    """The tokenizer as loaded gives each token of the output its row."""
    cure = "Set tokenizer_source to another model's path"
    try:
        loaded: dict[str, int] = Tokenizer.from_str(json.dumps(state)).get_vocab(with_added_tokens=True)
    except BaseException as error:
        if not broken_tokenizer(error):
            raise
        problem = f"cannot take the output's tokens ({first_line(error)})"
        raise InputError(problem, file=file, field="tokenizer", cure=cure) from None
    wrong = sorted(t for t in loaded.keys() | output.ids.keys() if loaded.get(t) != output.ids.get(t))
    if wrong:
        problem = f"gives '{wrong[0]}' the id {loaded.get(wrong[0])}, not {output.ids.get(wrong[0])}"
        raise InputError(problem, file=file, field="tokenizer", cure=cure)


def _rewrite_config(path: Path, output: Vocabulary, entries: Mapping[str, dict[str, Any]]) -> None:
    """The settings beside tokenizer.json: added tokens by id and special tokens, those that the output has."""
    if not path.is_file():
        return
    config: dict[str, Any] = read_json(path)
    for key, value in list(config.items()):
        if key.endswith("_token") and value is not None and _content(value) not in output.ids:
            del config[key]
        elif key.endswith("_special_tokens") and isinstance(value, list):
            config[key] = [token for token in value if _content(token) in output.ids]
        elif key == "added_tokens_decoder":
            kept = {i: entry for i, entry in value.items() if entry["content"] in output.ids}
            more = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in entries.values()}
            config[key] = {**kept, **more}
    write_json(path, config)


def _content(token: Any) -> Any:
    """The text of a special token, given as such or with its settings."""
    return token["content"] if isinstance(token, dict) else token


def _template(recipe: Recipe, folders: Mapping[str, Path]) -> str | None:
    """The chat template to write; None leaves the pivot's."""
    if recipe.chat_template != "auto":
        return recipe.chat_template
    found = Counter(t for model in recipe.inputs if (t := _template_of(folders[model])) is not None)
    if not found:
        cure = "Give the template's text, or remove the key"
        raise InputError("is 'auto', but no model has one", file=recipe.file, field="chat_template", cure=cure)
    return found.most_common(1)[0][0]


def _template_of(folder: Path) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    value = read_settings(folder).get("chat_template") if os.path.lexists(config) else None
    return value if isinstance(value, str) else None


def _drop_template(path: Path) -> None:
    """A template in tokenizer_config.json would stand beside the one that was written."""
    if path.is_file():
        config = read_json(path)
        if config.pop("chat_template", None) is not None:
            write_json(path, config)
