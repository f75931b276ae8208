"""The tokenizer of a model folder: read from whatever files it has, written so that transformers 4 and 5 read it.

tokenizer.json is the whole tokenizer where it is there. A folder with a SentencePiece BPE model or tiktoken ranks alone
is read by `data.raw_tokenizers`. Code from a folder (`auto_map`) is never run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_jax.copies import Fetched, staged
from fusion_jax.data.raw_tokenizers import bos_processor, load_raw_tokenizer
from fusion_jax.errors import InputError, one_line
from fusion_jax.fields import Fields
from fusion_jax.files import regular_file, write_json
from fusion_jax.json_files import read_json
from fusion_jax.models.families.common import VOCABULARY
from fusion_jax.models.gguf_header import is_gguf
from fusion_jax.models.gguf_tokenizer import backend_and_settings
from fusion_jax.models.json_files import check_directory
from fusion_jax.models.peft_folder import base_of, is_peft
from fusion_jax.paths import as_path, exists, is_remote, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, FULL, RAW, ADDED = "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "added_tokens.json"
SPECIAL, TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
VOCABULARIES = (FULL, RAW, "vocab.json")
FILES = (*VOCABULARIES, "merges.txt", CONFIG, SPECIAL, ADDED, TEMPLATE)
SPECIALS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
PLAIN = "PreTrainedTokenizerFast"  # known to transformers 4 and 5, and built from tokenizer.json as it is
NEW = re.compile(r"(Backend|^PythonTokenizer|^MistralCommonTokenizer)$")  # classes that transformers 4 does not know
OF_THE_RUN = ("is_local", "local_files_only", "backend", "name_or_path", "tokenizer_file", "special_tokens_map_file")
CURE = "Restore the tokenizer's files"


def tokenizer_of(path: str | os.PathLike[str], option: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, given for `option`, that must have one.

    Raises:
      InputError: no such folder, or `load_tokenizer` finds none; names the folder.
    """
    check_directory(as_path(path), option or "tokenizer")
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        raise InputError("holds no tokenizer", file=path, field=option, cure="Add the folder's tokenizer.json")
    return tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or GGUF file, or None where it has none; an adapter (PEFT) without one has its base's.
    Code from the folder is never run.

    Raises:
      InputError: a file of the tokenizer that is broken, names the folder and what is wrong.
    """
    folder = as_path(path)
    if is_gguf(folder):
        return _from_gguf(folder)
    if is_peft(folder) and not any(exists(folder / name) for name in (*VOCABULARIES, CONFIG)):
        return load_tokenizer(base_of(folder))
    if not is_remote(folder):
        return _from_folder(folder)
    with Fetched(folder, FILES) as here:
        tokenizer = _from_folder(here)
    if tokenizer is not None:
        tokenizer.name_or_path = str(folder)
    return tokenizer


def _from_folder(folder: Path) -> PreTrainedTokenizerBase | None:
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if not any(name in (*VOCABULARIES, CONFIG) for name in there):
        return None
    for name in there:
        regular_file(folder / name, cure=CURE)
    read_settings(folder)
    try:
        # tokenizer.json is the whole tokenizer; the class that a model_type suggests may rebuild it differently.
        if FULL in there:
            return _checked(_read_fast(folder), folder)
        if RAW in there:
            return _checked(_from_raw(folder), folder)
        return _checked(_read_any(folder), folder)
    except InputError:
        raise
    except BaseException as error:
        if not broken_tokenizer(error):
            raise
        raise _unreadable(folder, error) from None


def _from_gguf(file: Path) -> PreTrainedTokenizerBase | None:
    """That of a GGUF file, by way of the files that a folder would have."""
    made = backend_and_settings(file)
    if made is None:
        return None
    backend, settings = made
    bos = settings.get("bos_token") if settings.get("add_bos_token") else None
    eos = settings.get("eos_token") if settings.get("add_eos_token") else None
    if bos or eos:
        backend.post_processor = bos_processor(backend, bos, eos)
    with tempfile.TemporaryDirectory() as place:
        backend.save(str(Path(place) / FULL))
        write_json(Path(place) / CONFIG, settings)
        found = _read_fast(Path(place))
    found.name_or_path = str(file)
    return found


def broken_tokenizer(error: BaseException) -> bool:
    """Whether an error may tell of a tokenizer's file: `tokenizers` panics with a class that is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _read_fast(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    return _read(PreTrainedTokenizerFast, folder)


def _read_any(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # imports PyTorch where it is installed

    return _read(AutoTokenizer, folder)


def _read(kind: Any, folder: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return found


def _unreadable(folder: Path, error: BaseException) -> InputError:
    said = one_line(next(iter(str(error).strip().splitlines()), ""), 200)
    alone = os.path.lexists(folder / RAW) and not os.path.lexists(folder / FULL)
    if alone and find_spec("sentencepiece") is None:
        problem = "tokenizer.model is of a kind that only the sentencepiece package reads"
        cure = "Install it with: pip install sentencepiece protobuf. Or add the folder's tokenizer.json"
        return InputError(problem, file=folder, field="tokenizer", cure=cure)
    problem = f"cannot be loaded ({type(error).__name__}: {said})"
    return InputError(problem, file=folder, field="tokenizer", cure=CURE)


def _from_raw(folder: Path) -> PreTrainedTokenizerBase:
    """From tokenizer.model, with the settings beside it: the beginning of text, added and special tokens, template."""
    settings, raw = read_settings(folder), folder / RAW
    listed = settings.get("added_tokens_decoder") or {}
    specials = [listed[i]["content"] for i in sorted(listed, key=int)]
    try:
        tokenizer = load_raw_tokenizer(raw, specials=specials)
    except InputError as error:
        if error.field != "model_type":
            raise
        return _read_any(folder)  # of SentencePiece's other kinds
    backend = tokenizer.backend_tokenizer
    bos = tokenizer.bos_token if settings.get("add_bos_token", True) else None
    eos = tokenizer.eos_token if settings.get("add_eos_token", False) else None
    if bos or eos:
        backend.post_processor = bos_processor(backend, bos, eos)
    with tempfile.TemporaryDirectory() as place:
        backend.save(str(Path(place) / FULL))
        for name in (CONFIG, SPECIAL, ADDED, TEMPLATE):
            if os.path.lexists(folder / name):
                shutil.copyfile(folder / name, Path(place) / name)
        if not os.path.lexists(folder / CONFIG):
            own = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
            write_json(Path(place) / CONFIG, {key: value for key, value in own.items() if value})
        found = _read_fast(Path(place))
    found.name_or_path = str(folder)
    return found


def _checked(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Tokens that the settings list with an id have it."""
    settings, file = read_settings(folder), folder / CONFIG
    listed = {entry["content"]: int(i) for i, entry in (settings.get("added_tokens_decoder") or {}).items()}
    if not listed and os.path.lexists(folder / ADDED):
        listed, file = read_json(folder / ADDED), folder / ADDED
    for token, i in listed.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != i:
            problem = f"gives a token the id {i} that has the id {found} in the vocabulary"
            raise InputError(problem, file=file, field=token, cure=CURE)
    return tokenizer


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder, empty where there is none, as for a GGUF file; it and the small files beside
    it are checked.

    Raises:
      InputError: a field of another type; names file and field.
    """
    if is_gguf(folder):
        return {}
    if is_peft(folder) and not exists(folder / CONFIG):
        return read_settings(base_of(folder))
    for name in (SPECIAL, ADDED):
        if exists(folder / name):
            _check_small(Fields(read_json(folder / name, cure=CURE), folder / name, cure=CURE), ids=name == ADDED)
    if not exists(folder / CONFIG):
        return {}
    fields = Fields(read_json(folder / CONFIG, cure=CURE), folder / CONFIG, cure=CURE)
    for key in fields.values:
        if key in SPECIALS and fields.values[key] is not False:
            _check_token(fields, key)
    fields.text("tokenizer_class", None)
    fields.choice("padding_side", ("left", "right"), "right")
    fields.choice("truncation_side", ("left", "right"), "right")
    fields.number("model_max_length", None)
    for key in ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces"):
        fields.flag(key, None)
    _check_template(fields)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        _check_specials(fields, key)
    decoder = fields.object("added_tokens_decoder", None)
    for i in decoder.values if decoder is not None else ():
        if not re.fullmatch(r"[0-9]{1,8}", i) or int(i) >= VOCABULARY:
            raise decoder.wrong(i, "is no id of a token")
        decoder.object(i).text("content")
    return dict(fields.values)


def _check_small(fields: Fields, *, ids: bool) -> None:
    for key in fields.values:
        if ids:
            fields.integer(key, high=VOCABULARY - 1)
        elif key.endswith("_special_tokens"):
            _check_specials(fields, key)
        else:
            _check_token(fields, key)


def _check_token(fields: Fields, key: str) -> None:
    """A special token is a string, an object with its string as `content`, or null."""
    if isinstance(fields.values[key], dict):
        fields.object(key).text("content")
    else:
        fields.text(key, None)


def _check_specials(fields: Fields, key: str) -> None:
    """Special tokens are listed, or named in an object."""
    value = fields.values.get(key)
    if value is None:
        return
    if not isinstance(value, list | dict):
        fields.items(key)
    named = value.items() if isinstance(value, dict) else ((str(i), one) for i, one in enumerate(value))
    inner = Fields(dict(named), fields.file, within=key, cure=fields.cure)
    for name in inner.values:
        _check_token(inner, name)


def _check_template(fields: Fields) -> None:
    """A chat template is a text, or several of them by name."""
    value = fields.values.get("chat_template")
    if value is None or isinstance(value, str):
        return
    if isinstance(value, dict):
        inner = fields.object("chat_template")
        for name in value:
            inner.text(name)
        return
    for i, one in enumerate(fields.items("chat_template")):
        entry = Fields({str(i): one}, fields.file, within="chat_template", cure=fields.cure).object(str(i))
        entry.text("name")
        entry.text("template")


def check_fits(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> None:
    """Raises InputError where a tokenizer gives ids that an embedding of so many rows does not have."""
    cure = "Use the model's own tokenizer, or resize the embedding"
    if len(tokenizer) > rows:
        problem = f"has {len(tokenizer)} entries, the embedding only {rows}"
        raise InputError(problem, file=folder, field="tokenizer", cure=cure)
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if last >= rows:
        problem = f"gives {one_line(repr(token), 80)} the id {last}, the embedding has only {rows} rows"
        raise InputError(problem, file=folder, field="tokenizer", cure=cure)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, given: Mapping[str, Any]) -> None:
    """Write a tokenizer's files.

    Args:
      given: tokenizer_config.json of the folder that the tokenizer was read from: its class stays, and so do settings
        that transformers 5 leaves out. Empty where there is none.
    """
    with staged(folder) as here:
        _save(tokenizer, here, given)


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path, given: Mapping[str, Any]) -> None:
    tokenizer.save_pretrained(folder)
    written = read_json(folder / CONFIG)
    kept = {key: value for key, value in given.items() if key not in ("chat_template", "auto_map", *written)}
    own = written.get("tokenizer_class")
    settings = {**kept, **written, "tokenizer_class": given.get("tokenizer_class") or own}
    if "added_tokens_decoder" in given:
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        decoder = sorted(tokenizer.added_tokens_decoder.items())
        settings["added_tokens_decoder"] = {str(i): {f: getattr(t, f) for f in flags} for i, t in decoder}
    text = json.dumps(portable(settings), indent=2, sort_keys=True, ensure_ascii=False)
    write_text(folder / CONFIG, text + "\n")


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json as transformers 4 and what is built on it read it, too: a class that they know, further
    special tokens under the name that both have, nothing of the run that saved it."""
    out = {key: value for key, value in settings.items() if key not in OF_THE_RUN and key != "auto_map"}
    name = out.get("tokenizer_class")
    if not isinstance(name, str) or NEW.search(name):
        out["tokenizer_class"] = PLAIN
    if isinstance(out.get("extra_special_tokens"), list):
        extra = out.pop("extra_special_tokens")
        out["additional_special_tokens"] = extra
    return out
