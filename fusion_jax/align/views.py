"""What alignment needs to know of a tokenizer: its pieces, its decoded ids, its word-boundary mark.

FuseLLM/FuseChat spec section 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fusion_jax.arguments import listed
from fusion_jax.display import brief
from fusion_jax.errors import InputError

MARKS = ("\u2581", "\u0120")  # of SentencePiece and of byte-level BPE


@dataclass(frozen=True)
class TokenizerView:
    """Tables of a tokenizer, indexed by id.

    pieces: vocabulary strings, "" for an id that has none; decoded: the text of each id decoded alone.
    mark: the character that stands for a space in the pieces.
    bos, eos, unk, pad: ids of the special tokens, None where there is none.

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

    def __repr__(self) -> str:
        return brief(self)

    def __post_init__(self) -> None:
        for name in ("pieces", "decoded"):
            listed(getattr(self, name), name, "strings, one for each id", "Give view_of(tokenizer)")
        if not any(self.pieces):
            raise InputError("there is no piece", field="pieces")
        if len(self.pieces) != len(self.decoded):
            raise InputError(
                f"there are {len(self.pieces)} pieces but {len(self.decoded)} decoded ids", field="decoded"
            )
        if len(self.mark) != 1:
            raise InputError(f"{self.mark!r} is not one character", field="mark")
        for name in ("bos", "eos", "unk", "pad"):
            special = getattr(self, name)
            if special is not None and not 0 <= special < len(self.pieces):
                raise InputError(f"id {special} is not among the {len(self.pieces)} pieces", field=name)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.pieces)


def view_of(tokenizer: PreTrainedTokenizerBase) -> TokenizerView:
    """The view of a transformers tokenizer, added tokens included.

    Raises:
      InputError: it is something else.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"is {type(tokenizer).__name__}, not a transformers tokenizer", field="tokenizer",
            cure="Give model.tokenizer, or load_tokenizer(folder) of fusion_jax.models.folder",
        )  # fmt: skip
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    pieces = [""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, number in vocabulary.items():
        pieces[number] = piece
    decoded = (tokenizer.decode([number]) if piece else "" for number, piece in enumerate(pieces))
    return TokenizerView(
        pieces=tuple(pieces), decoded=tuple(decoded), mark=detect_mark(pieces), bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id, unk=tokenizer.unk_token_id, pad=tokenizer.pad_token_id,
    )  # fmt: skip


def detect_mark(pieces: Sequence[str]) -> str:
    """The one of `MARKS` that more pieces contain; the first where they draw."""
    return max(MARKS, key=lambda mark: sum(mark in piece for piece in pieces))


def fingerprint(view: TokenizerView) -> str:
    """sha256 of all that a view holds, the same in every process."""
    return hashlib.sha256(json.dumps(vars(view), sort_keys=True).encode()).hexdigest()


def replace_marks(text: str, source: TokenizerView, pivot: TokenizerView) -> str:
    """A source string with every mark of the source, also inside, replaced by the pivot's."""
    return text.replace(source.mark, pivot.mark)


def delete_marks(text: str, view: TokenizerView) -> str:
    """A string of a tokenizer without that tokenizer's marks, also those inside."""
    return text.replace(view.mark, "")
