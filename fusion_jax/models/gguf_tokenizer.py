"""The tokenizer of a GGUF file, built by transformers' own conversion of the file's metadata; PyTorch is not needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fusion_jax.data.raw_tokenizers import CONTROL, USER_DEFINED
from fusion_jax.errors import InputError, one_line
from fusion_jax.fields import Fields
from fusion_jax.models.gguf_header import read_gguf_header
from fusion_jax.models.gguf_model import architecture_of

PREFIX = "tokenizer.ggml."
# What transformers' conversion calls the entries of the metadata.
NAMES = {
    "model": "tokenizer_type", "pre": "pre_tokenizer_type", "tokens": "tokens", "scores": "scores",
    "token_type": "token_type", "merges": "merges", "precompiled_charsmap": "precompiled_charsmap",
    "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id", "add_space_prefix": "add_prefix_space",
}  # fmt: skip
SPECIALS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
CONVERSIONS = ("transformers.integrations.gguf", "transformers.integrations.ggml")  # the newer place first
CURE = "Take a file that llama.cpp converted with its tokenizer"


def backend_and_settings(file: Path) -> tuple[Tokenizer, dict[str, Any]] | None:
    """The tokenizer of a file and its tokenizer_config.json; None where the file has no tokens.

    Raises:
      InputError: metadata of another type or that do not go together, an unknown kind of tokenizer; names the file.
    """
    header = read_gguf_header(file)
    name, _ = architecture_of(header)
    if f"{PREFIX}tokens" not in header.metadata:
        return None
    fields = Fields(header.metadata, file, cure=CURE)
    tokens = _checked(fields)
    given = {ours: header.metadata[PREFIX + key] for key, ours in NAMES.items() if PREFIX + key in header.metadata}
    convert = _conversion()
    try:
        kinds = given.get("token_type") or [] if given["tokenizer_type"] == "gpt2" else []
        backend = _with_own_tokens(convert(name, given)[0], tokens, kinds)
    except Exception as error:  # those of `tokenizers` have no class of their own
        said = one_line(str(error).strip(), 200)
        problem = f"cannot be built ({type(error).__name__}: {said})"
        raise InputError(problem, file=file, field=f"{PREFIX}model", cure=CURE) from None
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    for special, key in SPECIALS.items():
        number = fields.integer(PREFIX + key, None, high=len(tokens) - 1)
        if number is not None:
            settings[f"{special}_token"] = tokens[number]
    first = fields.flag(f"{PREFIX}add_bos_token", True if given["tokenizer_type"] == "llama" else None)
    last = fields.flag(f"{PREFIX}add_eos_token", None)
    settings |= {k: v for k, v in (("add_bos_token", first), ("add_eos_token", last)) if v is not None}
    template = fields.text("tokenizer.chat_template", None)
    return backend, settings if template is None else settings | {"chat_template": template}


def _checked(fields: Fields) -> list[str]:
    """The tokens, with what belongs to each of them as long as they are."""
    tokens: list[str] = fields.items(f"{PREFIX}tokens")
    fields.text(f"{PREFIX}model")
    for key in ("scores", "token_type"):
        values = fields.items(PREFIX + key, None)
        if values is not None and len(values) != len(tokens):
            raise fields.wrong(PREFIX + key, f"has {len(values)} entries, there are {len(tokens)} tokens")
    for key in ("tokens", "merges"):
        if any(not isinstance(one, str) for one in fields.items(PREFIX + key, [])):
            raise fields.wrong(PREFIX + key, "is no list of strings")
    return tokens


def _with_own_tokens(backend: Tokenizer, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """The tokenizer with the file's tokens and no others: the class that transformers takes may add one of its own,
    such as <|endoftext|>. Control tokens that it spells in bytes, since they hold other letters, are recognised.

    Args:
      kinds: of the tokens of a byte-level vocabulary, else none.
    """
    state = json.loads(backend.to_str())
    vocab, added = state["model"]["vocab"], {one["id"]: one for one in state["added_tokens"]}
    state["added_tokens"] = [one for one in added.values() if one["id"] < len(tokens)]
    if isinstance(vocab, dict):
        spelled = {number: token for token, number in vocab.items()}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
            if kind in (CONTROL, USER_DEFINED) and number not in added and token not in vocab:
                vocab[token] = vocab.pop(spelled[number])
                flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                state["added_tokens"].append({"id": number, "content": token, "special": kind == CONTROL, **flags})
    state["added_tokens"].sort(key=lambda one: one["id"])
    return Tokenizer.from_str(json.dumps(state))


def _conversion() -> Callable[[str, dict[str, Any]], tuple[Tokenizer, Any]]:
    """transformers' `convert_gguf_tokenizer`, of the version that is installed."""
    for name in CONVERSIONS:
        try:
            found: Callable[[str, dict[str, Any]], tuple[Tokenizer, Any]] = import_module(name).convert_gguf_tokenizer
        except (ImportError, AttributeError):
            continue
        return found
    cure = "Install transformers 5.23.0"
    raise InputError("the installed transformers builds no tokenizer from a GGUF file", cure=cure)
