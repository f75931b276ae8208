"""Two vocabularies side by side: which pieces are the same, and by which strings the others are compared.

By bytes, a piece is what it spells: characters where its bytes are UTF-8, and single bytes, which equal no character,
where they are not. Edit distances between pieces count characters, so that one Chinese or accented letter is one edit
and letters whose encodings happen to share bytes are no closer than others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fusion_jax.align.views import SPECIALS, Pieces, TokenizerView, by_bytes, replace_marks


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """The pieces of a pivot and a source as they are compared; `pieces` as in `views.compared`."""

    pivot: TokenizerView
    source: TokenizerView
    pieces: Pieces

    @cached_property
    def bytewise(self) -> bool:
        """Whether pieces are compared as bytes."""
        return by_bytes(self.pivot, self.source, self.pieces)

    @cached_property
    def strings(self) -> list[str]:
        """What each source id is compared by, "" for one that is like no other."""
        if not self.bytewise:
            return [replace_marks(piece, self.source, self.pivot) for piece in self.source.pieces]
        return _characters(self.source)

    @cached_property
    def choices(self) -> list[str]:
        """What each pivot id is compared by, "" for one that is never the nearest."""
        if not self.bytewise:
            return list(self.pivot.pieces)
        chosen = set(self._texts.values())
        return [text if i in chosen else "" for i, text in enumerate(_characters(self.pivot))]

    @cached_property
    def exact(self) -> np.ndarray:
        """int32[source size], the pivot id of the same piece, -1 for none.

        By bytes, text equals text and control tokens those of the same name, which an added token may be on one side.
        """
        if not self.bytewise:
            known = {piece: i for i, piece in reversed(list(enumerate(self.pivot.pieces))) if piece}
            return np.asarray([known.get(s, -1) for s in self.strings], np.int32)
        assert self.source.piece_bytes is not None
        out = np.full(self.source.size, -1, np.int32)
        controls, added = self._names
        for i, (piece, spelled) in enumerate(zip(self.source.pieces, self.source.piece_bytes, strict=True)):
            if spelled:
                out[i] = self._texts.get(spelled, -1)
            elif piece and spelled is None:
                out[i] = controls.get(piece, added.get(piece, -1))
        for i in self.source.added:
            if out[i] < 0:
                out[i] = controls.get(self.source.pieces[i], -1)
        return out

    def with_specials(self, ids: np.ndarray) -> np.ndarray:
        """The map, where special tokens that have no image of their own go to the pivot's of the same role."""
        out = ids.copy()
        for name in SPECIALS:
            theirs, ours = getattr(self.source, name), getattr(self.pivot, name)
            if theirs is not None and ours is not None and out[theirs] < 0 and self.source.is_control(theirs):
                out[theirs] = ours
        return out

    def beginning(self, number: int) -> int:
        """The longest pivot piece that begins what a source id spells, -1 for none.

        What the pivot predicts first where the source predicts a piece that the pivot does not have.
        """
        spelled = self.source.piece_bytes[number] if self.source.piece_bytes else None
        ends = range(len(spelled or b""), 0, -1)
        return next((self._texts[spelled[:n]] for n in ends if spelled and spelled[:n] in self._texts), -1)

    @cached_property
    def _texts(self) -> Mapping[bytes, int]:
        """The pivot's own id of every text that is a piece of it."""
        assert self.pivot.piece_bytes is not None
        out: dict[bytes, int] = {}
        for i, spelled in enumerate(self.pivot.piece_bytes):
            if spelled and (spelled not in out or self.pivot.preference(i) < self.pivot.preference(out[spelled])):
                out[spelled] = i
        return out

    @cached_property
    def _names(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Pivot ids by name: control tokens, and added ones."""
        pieces = self.pivot.pieces
        controls = {pieces[i]: i for i in reversed(range(self.pivot.size)) if self.pivot.is_control(i)}
        return controls, {pieces[i]: i for i in reversed(self.pivot.added)}


def _characters(view: TokenizerView) -> list[str]:
    assert view.piece_bytes is not None
    return ["" if b is None else b.decode("utf-8", "surrogateescape") for b in view.piece_bytes]


def altered(images: np.ndarray, pivot: TokenizerView, source: TokenizerView) -> np.ndarray:
    """bool[source size], whether the image of a source id is another text: mass on it would go astray.

    A control token has no text, so any control token may be its image. Views without bytes are compared by their
    strings once marks are replaced.
    """
    if not by_bytes(pivot, source, "bytes"):
        strings = (replace_marks(piece, source, pivot) for piece in source.pieces)
        return np.asarray([i >= 0 and s != pivot.pieces[i] for i, s in zip(images.tolist(), strings)], bool)
    assert pivot.piece_bytes is not None and source.piece_bytes is not None
    out = np.zeros(source.size, bool)
    for number, image in enumerate(images.tolist()):
        if image >= 0:
            theirs, ours = source.piece_bytes[number], pivot.piece_bytes[image]
            named = theirs is None or ours is None
            out[number] = theirs != ours and not (named and source.pieces[number] == pivot.pieces[image])
    return out
