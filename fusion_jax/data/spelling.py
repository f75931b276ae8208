"""The bytes that a tokenizer's pieces stand for, read from the tokenizer's own decoder.

A piece is a notation: byte-level BPE writes each byte as a letter, SentencePiece a space as U+2581 and a single byte as
<0x0A>, WordPiece the continuation of a word with a prefix. Only what pieces spell can be compared across tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
SENTENCEPIECE_MARK, BYTE_LEVEL_MARK = "\u2581", "\u0120"


@cache
def byte_letters() -> tuple[str, ...]:
    """The character that byte-level BPE writes for each byte: printable Latin-1 itself, the others from 256 on."""
    kept = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in kept else next(others)) for byte in range(256))


@cache
def _bytes_of_letters() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_letters())}


@dataclass(frozen=True)
class Notation:
    """How a tokenizer writes the pieces of its model.

    byte_level: each character is a byte. marks: characters that stand for a space. byte_pieces: <0xNN> is a byte.
    continuation: what a piece inside a word begins with, where pieces at the start of a word bear no mark (WordPiece).
    word_end: what a piece at the end of a word ends with, read as a space.
    """

    byte_level: bool = False
    marks: tuple[str, ...] = ()
    byte_pieces: bool = False
    continuation: str = ""
    word_end: str = ""

    def bytes_of(self, piece: str) -> bytes:
        """What a piece of the model spells; a byte-level piece with another character in it is literal text."""
        ends = bool(self.word_end) and piece.endswith(self.word_end) and piece != self.word_end
        text = piece[: -len(self.word_end)] if ends else piece
        tail = b" " if ends else b""
        if self.byte_level:
            found = [_bytes_of_letters().get(letter) for letter in text]
            return (text.encode() if None in found else bytes(b for b in found if b is not None)) + tail
        if self.byte_pieces and (byte := BYTE_PIECE.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        if self.continuation:
            if text.startswith(self.continuation) and text != self.continuation:
                return _encoded(text[len(self.continuation) :])
            return _encoded(" " + text if _begins_word(text) else text)
        for mark in self.marks:
            text = text.replace(mark, " ")
        return _encoded(text) + tail


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _begins_word(text: str) -> bool:
    """Whether a space stands before it in most text: a letter or digit of a script that writes spaces."""
    return text[:1].isalnum() and not "\u2e80" <= text[0] <= "\u9fff"


def plain_notation(pieces: Mapping[str, int]) -> Notation:
    """The notation that the pieces alone suggest, for a tokenizer that does not say how it decodes."""
    letters = sum(BYTE_LEVEL_MARK in piece for piece in pieces)
    if letters > sum(SENTENCEPIECE_MARK in piece for piece in pieces):
        return Notation(byte_level=True)
    return Notation(marks=(SENTENCEPIECE_MARK,), byte_pieces=pieces.keys() >= BYTE_PIECES)


def notation_of(tokenizer: PreTrainedTokenizerBase, pieces: Mapping[str, int]) -> Notation:
    """The notation of a tokenizer's model, by its decoder, pre-tokenizer and normalizer; else by its pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return plain_notation(pieces)
    model = backend.model
    steps = [s for part in (backend.decoder, backend.pre_tokenizer, backend.normalizer) for s in _steps(part)]
    kinds = {step["type"] for step in steps}
    word_end = getattr(model, "end_of_word_suffix", None) or ""
    if "ByteLevel" in kinds:
        return Notation(byte_level=True, word_end=word_end)
    if "WordPiece" in kinds or type(model).__name__ == "WordPiece":
        return Notation(continuation=getattr(model, "continuing_subword_prefix", None) or "##")
    if "BPEDecoder" in kinds:
        return Notation(word_end=word_end or next(s["suffix"] for s in steps if s["type"] == "BPEDecoder"))
    marks = tuple(dict.fromkeys(mark for step in steps for mark in _marks(step)))
    fallback = "ByteFallback" in kinds or getattr(model, "byte_fallback", False) or pieces.keys() >= BYTE_PIECES
    if marks or fallback:
        return Notation(marks=marks or (SENTENCEPIECE_MARK,), byte_pieces=fallback)
    return plain_notation(pieces)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, pre-tokenizer or normalizer as the tokenizer's file holds them."""
    waiting = [] if part is None else [json.loads(part.__getstate__())]
    while waiting:
        step = waiting.pop(0)
        inner = [x for name in ("decoders", "pretokenizers", "normalizers") for x in step.get(name) or ()]
        waiting = inner + waiting
        if not inner and "type" in step:
            yield step


def _marks(step: Mapping[str, Any]) -> Iterator[str]:
    """The character that a step writes for a space, or reads as one."""
    if step["type"] == "Metaspace":
        yield step["replacement"]
    if step["type"] == "Replace":
        pattern, content = step["pattern"].get("String", ""), step["content"]
        yield from (a for a, b in ((pattern, content), (content, pattern)) if b == " " and len(a) == 1 and a != " ")


def spelled_pieces(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int], size: int
) -> tuple[tuple[bytes | None, ...], tuple[int, ...]]:
    """The bytes of each id, None for a control token and for an id without a piece; and the ids of added tokens.

    Added tokens are cut from the text before the model sees it: where the model does not hold them too, they are
    literal text, whatever the model's notation. Special ones have no text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    added: dict[int, Any] = dict(getattr(tokenizer, "added_tokens_decoder", {}))
    own = vocabulary if backend is None else backend.get_vocab(with_added_tokens=False)
    control = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    notation = notation_of(tokenizer, own)
    out: list[bytes | None] = [None] * size
    for piece, number in vocabulary.items():
        if number not in control:
            literal = number in added and (backend is None or piece not in own)
            out[number] = _encoded(piece) if literal else notation.bytes_of(piece)
    return tuple(out), tuple(sorted(i for i in added if i < size))
