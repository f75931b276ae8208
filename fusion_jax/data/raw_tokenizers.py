"""Tokenizers from bare vocabulary files: SentencePiece `.model` (BPE) and tiktoken ranks (`.tiktoken`).

Both become fast tokenizers that cut text as the original libraries do and give offsets; a SentencePiece model with a
normalisation table can differ where a combining mark follows a space or a literal mark. Formats: a few fields of
sentencepiece_model.proto, and lines "base64-of-the-bytes rank". Nothing of the file is executed.
"""

from __future__ import annotations

import base64
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fusion_jax.data.spelling import SENTENCEPIECE_MARK, byte_letters
from fusion_jax.errors import InputError
from fusion_jax.files import regular_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUFFIXES = (".model", ".tiktoken")
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
RANK = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")  # a line of tiktoken ranks


def load_raw_tokenizer(
    path: str | os.PathLike[str], *, words: str = LLAMA3_WORDS, specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary file.

    Special tokens are recognised in text; none is added to a text, since a vocabulary file does not say which. A .model
    file that holds tiktoken ranks, as some folders name them, is read as such.

    Args:
      words: for .tiktoken, the pattern that cuts text into words before merging: the file does not hold it.
      specials: for .tiktoken, the special tokens, which follow the ranks and are not in the file either.

    Raises:
      InputError: no such file, another suffix, broken content, a SentencePiece model that is not BPE.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise InputError(
            f"'{file.suffix}' is no vocabulary file", file=file, cure=f"Give one that ends with {' or '.join(SUFFIXES)}"
        )
    content = regular_file(file, cure="Give the vocabulary file in it").read_bytes()
    if file.suffix == ".tiktoken" or RANK.match(content):
        return _from_ranks(_ranks(content, file), words, specials)
    try:
        model = _read_sentencepiece(content)
        tokenizer = _from_sentencepiece(model) if model.kind == BPE else None
    except Exception as error:  # those of `tokenizers` have no class of their own
        raise InputError(f"is no SentencePiece model ({error})", file=file, cure="Copy the file again") from None
    if tokenizer is None:
        raise InputError(
            "is not a BPE model", file=file, field="model_type", cure="Give the tokenizer as a Hugging Face folder"
        )
    return tokenizer


@dataclass
class _SentencePiece:
    """What is read of a ModelProto, with the format's defaults."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # piece, score, type
    kind: int = 1
    byte_fallback: bool = False
    special: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True


def _read_sentencepiece(content: bytes) -> _SentencePiece:
    out = _SentencePiece()
    for number, value in _fields(content):
        if number == 1:
            piece: dict[int, Any] = dict(_fields(value))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            out.pieces.append((piece.get(1, b"").decode("utf-8"), score, piece.get(3, NORMAL)))
        elif number == 2:
            trainer: dict[int, Any] = dict(_fields(value))
            out.kind, out.byte_fallback = trainer.get(3, out.kind), bool(trainer.get(35, 0))
            for name, at in (("unk", 40), ("bos", 41), ("eos", 42), ("pad", 43)):
                out.special[name] = trainer.get(at, out.special[name])
        elif number == 3:
            normalizer: dict[int, Any] = dict(_fields(value))
            out.charsmap = normalizer.get(2, b"")
            out.dummy_prefix, out.remove_extra_spaces = (bool(normalizer.get(at, 1)) for at in (3, 4))
    if not out.pieces:
        raise ValueError("it holds no piece")
    if len({piece for piece, _, _ in out.pieces}) != len(out.pieces):
        raise ValueError("a piece stands twice")
    return out


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol-buffer message: int for a varint, else bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value - (1 << 64) if value >> 63 else value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire} at byte {at}")
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, at = _varint(message, at)
        if at + length > len(message):
            raise ValueError("it ends within a field")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at a place of a message, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than 10 bytes at byte {at}")


def _from_sentencepiece(model: _SentencePiece) -> PreTrainedTokenizerFast:
    mark = SENTENCEPIECE_MARK
    vocabulary = {piece: number for number, (piece, _, _) in enumerate(model.pieces)}
    names = {k: model.pieces[i][0] for k, i in model.special.items() if 0 <= i < len(model.pieces)}
    bpe = models.BPE(
        vocab=vocabulary, merges=_merges(model), unk_token=names.get("unk"), fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )  # fmt: skip
    tokenizer = Tokenizer(bpe)
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_spaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(mark)] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", mark)])
    back: list[Any] = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back + ([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []))
    tokenizer.add_tokens([
        AddedToken(piece, normalized=False, special=kind == CONTROL)
        for piece, _, kind in model.pieces
        if kind in (CONTROL, USER_DEFINED)
    ])  # fmt: skip
    return _fast(tokenizer, {f"{name}_token": piece for name, piece in names.items()})


def _merges(model: _SentencePiece) -> list[tuple[str, str]]:
    """All ways to put a piece together of two others, the best-scored pieces first, earlier ids first among equals."""
    known = {piece for piece, _, kind in model.pieces if kind == NORMAL}
    ordered = sorted((p for p in model.pieces if p[2] == NORMAL), key=lambda p: -p[1])
    return [
        (piece[:at], piece[at:])
        for piece, _, _ in ordered
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]


def _ranks(content: bytes, file: Path) -> dict[bytes, int]:
    """Rank of each byte string.

    Raises:
      InputError: a line that is not base64 and a rank, a string or rank that stands twice, a missing single byte.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            word, rank = line.split()
            token, place = base64.b64decode(word, validate=True), int(rank)
        except ValueError:
            raise InputError(
                "is not a base64 string and a rank", file=file, record=number, cure="Copy the file again"
            ) from None
        if place < 0 or not token or token in ranks:
            raise InputError(
                "has a negative rank, an empty string, or one that stood before", file=file, record=number,
                cure="Copy the file again",
            )  # fmt: skip
        ranks[token] = place
    if len(set(ranks.values())) != len(ranks):
        raise InputError("a rank stands twice", file=file, cure="Copy the file again")
    missing = [i for i in range(256) if bytes([i]) not in ranks]
    if missing:
        raise InputError(f"the single byte {missing[0]} has no rank", file=file, cure="Copy the file again")
    return ranks


def _from_ranks(ranks: dict[bytes, int], words: str, specials: Sequence[str]) -> PreTrainedTokenizerFast:
    letters = byte_letters()
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (text[token[:at]], text[token[at:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return _fast(tokenizer, {})


def bos_processor(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> processors.TemplateProcessing:
    """What puts the beginning and the end of text (None: not) around each text that is cut."""
    single = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    pair = [*single, *(part.replace(":0", ":1").replace("$A", "$B") for part in single)]
    tokens = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def _fast(tokenizer: Tokenizer, names: dict[str, str]) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
