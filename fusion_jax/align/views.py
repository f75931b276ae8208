"""What alignment needs to know of a tokenizer: its pieces, what they spell, its decoded ids, its word-boundary mark.

FuseLLM/FuseChat spec section 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from fusion_jax.arguments import listed
from fusion_jax.data.spelling import BYTE_LEVEL_MARK, BYTE_PIECE, SENTENCEPIECE_MARK, spelled_pieces
from fusion_jax.display import brief
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = (SENTENCEPIECE_MARK, BYTE_LEVEL_MARK)
Pieces = Literal["bytes", "raw"]
NO_MARK = "\ue000"  # beyond Latin-1, so in no spelled string
SPECIALS = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class TokenizerView:
    """Tables of a tokenizer, indexed by id.

    pieces: vocabulary strings, "" for an id that has none; decoded: the text of each id decoded alone.
    mark: the character that stands for a space in the pieces.
    bos, eos, unk, pad: ids of the special tokens, None where there is none.
    piece_bytes: what each piece spells, None for a control token and for an id without a piece. A view without this
      table knows strings only, which are then compared as they are.
    added: ids of the tokens that are cut from the text before the model sees it.

    Raises:
      InputError: the tables are empty or differ in length, the mark is not one character, a special id is not in them.
    """

    pieces: tuple[str, ...]
    decoded: tuple[str, ...]
    mark: str
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    piece_bytes: tuple[bytes | None, ...] | None = None
    added: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return brief(self)

    def __post_init__(self) -> None:
        for name in ("pieces", "decoded"):
            listed(getattr(self, name), name, "strings, one for each id", "Give view_of(tokenizer)")
        if not any(self.pieces):
            raise InputError("there is no piece", field="pieces")
        if len(self.pieces) != len(self.decoded):
            problem = f"there are {len(self.pieces)} pieces but {len(self.decoded)} decoded ids"
            raise InputError(problem, field="decoded")
        if self.piece_bytes is not None and len(self.piece_bytes) != len(self.pieces):
            problem = f"there are {len(self.pieces)} pieces but {len(self.piece_bytes)} spelled ones"
            raise InputError(problem, field="piece_bytes")
        if len(self.mark) != 1:
            raise InputError(f"{self.mark!r} is not one character", field="mark")
        for name in SPECIALS:
            special = getattr(self, name)
            if special is not None and not 0 <= special < len(self.pieces):
                raise InputError(f"id {special} is not among the {len(self.pieces)} pieces", field=name)
        if self.added and not (min(self.added) >= 0 and max(self.added) < len(self.pieces)):
            raise InputError(f"an id is not among the {len(self.pieces)} pieces", field="added")

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    @cached_property
    def spelled(self) -> TokenizerView:
        """The view whose strings are the bytes of the pieces, one character of Latin-1 a byte, and whose mark is " ".

        The bytes of a control token are those of its name.
        """
        assert self.piece_bytes is not None
        bytes_of = (p.encode() if b is None else b for p, b in zip(self.pieces, self.piece_bytes, strict=True))
        strings = tuple(b.decode("latin-1") for b in bytes_of)
        return TokenizerView(strings, strings, " ", self.bos, self.eos, self.unk, self.pad)

    def is_control(self, number: int) -> bool:
        """Whether an id is a token without a text of its own, as far as the view knows."""
        return self.piece_bytes is not None and self.piece_bytes[number] is None and bool(self.pieces[number])

    def preference(self, number: int) -> tuple[int, int]:
        """Among ids that spell the same, the smallest is the one that the tokenizer itself writes for that text.

        Added tokens are cut from the text first; a byte such as <0x0A> stands in only where there is no other piece.
        """
        spelled = None if self.piece_bytes is None else self.piece_bytes[number]
        byte = spelled is not None and len(spelled) == 1 and BYTE_PIECE.fullmatch(self.pieces[number])
        return (2 if byte else 1 - (number in self._added)), number

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.added)


def view_of(tokenizer: PreTrainedTokenizerBase) -> TokenizerView:
    """The view of a transformers tokenizer, added tokens included.

    Raises:
      InputError: it is something else.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        problem = f"is {type(tokenizer).__name__}, not a transformers tokenizer"
        cure = "Give model.tokenizer, or load_tokenizer(folder) of fusion_jax.models.folder"
        raise InputError(problem, field="tokenizer", cure=cure)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    pieces = [""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, number in vocabulary.items():
        pieces[number] = piece
    decoded = (tokenizer.decode([number]) if piece else "" for number, piece in enumerate(pieces))
    piece_bytes, added = spelled_pieces(tokenizer, vocabulary, len(pieces))
    return TokenizerView(
        pieces=tuple(pieces), decoded=tuple(decoded), mark=detect_mark(pieces), bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id, unk=tokenizer.unk_token_id, pad=tokenizer.pad_token_id,
        piece_bytes=piece_bytes, added=added,
    )  # fmt: skip


def detect_mark(pieces: Sequence[str]) -> str:
    """The one of `MARKS` that more pieces contain; the first where they draw."""
    return max(MARKS, key=lambda mark: sum(mark in piece for piece in pieces))


def compared(
    pivot: TokenizerView, source: TokenizerView, pieces: Pieces, *, spaces: bool = False
) -> tuple[TokenizerView, TokenizerView]:
    """The views whose strings are compared: those of the bytes, or the tokenizers' own.

    Args:
      spaces: spaces of spelled pieces count like any other character: as in decoded text, no mark stands for them.

    Raises:
      InputError: an unknown way to compare.
    """
    if not by_bytes(pivot, source, pieces):
        return pivot, source
    views = pivot.spelled, source.spelled
    return (replace(views[0], mark=NO_MARK), replace(views[1], mark=NO_MARK)) if spaces else views


def by_bytes(pivot: TokenizerView, source: TokenizerView, pieces: Pieces) -> bool:
    """Whether pieces of two tokenizers are compared as bytes: if that is asked for and both views know them."""
    if pieces not in get_args(Pieces):
        raise InputError(f"'{pieces}' is unknown", field="pieces", cure=f"Known: {', '.join(get_args(Pieces))}")
    return pieces == "bytes" and pivot.piece_bytes is not None and source.piece_bytes is not None


def fingerprint(view: TokenizerView, pieces: Pieces = "raw") -> str:
    """sha256 of all that a view holds, or of all but the bytes where only strings are compared ("raw")."""
    content = {name: getattr(view, name) for name in ("pieces", "decoded", "mark", *SPECIALS)}
    if pieces == "bytes" and view.piece_bytes is not None:
        content["piece_bytes"] = [b if b is None else b.decode("latin-1") for b in view.piece_bytes]
        content["added"] = view.added
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def replace_marks(text: str, source: TokenizerView, pivot: TokenizerView) -> str:
    """A source string with every mark of the source, also inside, replaced by the pivot's."""
    return text.replace(source.mark, pivot.mark)


def delete_marks(text: str, view: TokenizerView) -> str:
    """A string of a tokenizer without that tokenizer's marks, also those inside."""
    return text.replace(view.mark, "")
