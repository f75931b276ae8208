"""How a source's rows come to the pivot's positions and ids: the settings, the vocabulary map and the rules that they
stand for (FuseLLM/FuseChat spec sections 4 to 6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fusion_jax.align.rules import Duplicates, Fallback, Rules
from fusion_jax.align.sequences import Ids, Variant
from fusion_jax.align.views import Pieces, TokenizerView
from fusion_jax.align.vocabulary import (
    Kind,
    PairCounts,
    VocabMap,
    Weight,
    cooccurrence_map,
    exact_map,
    mapping_statistics,
    mined_map,
)
from fusion_jax.errors import InputError
from fusion_jax.settings import bounded

Views = tuple[TokenizerView, TokenizerView]


@dataclass(frozen=True)
class AlignSettings:
    """How a source's rows come to the pivot's positions and ids (sections 4 to 6)."""

    rules: Variant = "chat_v2"
    """The published rule set, which also fixes the order of ties of the token alignment."""
    tokens: Literal["dp", "byte_offsets", "prefix"] = "dp"
    """Token alignment: search the cheapest one (dp), group tokens that end at the same character (byte_offsets), or
    take rows only where both have read the same text and read on to the same character (prefix, without rules)."""
    vocabulary: Kind = "statistics"
    """How the source's token ids are mapped onto the pivot's."""
    ms_weight: Weight = "inverse"
    """How the map of kind statistics weighs the pairs that were counted; code, as published, prefers the rarer pair."""
    pieces: Pieces = "bytes"
    """What tokens of two tokenizers are compared by: the bytes that they spell or, as published, their raw strings, in
    which a newline, an accented or a Chinese letter of SentencePiece never equals that of byte-level BPE."""
    special_pairs: bool = True
    """Whether BOS, EOS and the tokens that end a turn are mapped onto each other."""
    hard: bool = False
    """The exact mode of chat_v2, which takes the exact map."""
    one_to_many: bool = True
    """Whether one pivot token can take its row from several source tokens."""
    fallback: Fallback = "next"
    """What a row without a match holds: the next token of the text, the input's, as the published FuseLLM code, or
    nothing, so that it is not compared (drop)."""
    least_mass: float = 0.0
    """A row counts as without a match whose entries that the pivot has hold less than this share of its mass."""
    duplicates: Duplicates = "first"
    """Entries that are mapped onto one id: the first is kept, or their probabilities are added (logsumexp)."""
    workers: int = 0
    """Processes that align, besides this one."""

    def __post_init__(self) -> None:
        bounded(self, "workers", least=0, most=1024)
        bounded(self, "least_mass", least=0, most=1)
        if self.tokens == "prefix" and (self.vocabulary == "statistics" or self.rules != "chat_v2"):
            name = "rules" if self.rules != "chat_v2" else "vocabulary"
            cure = "Set rules to chat_v2" if name == "rules" else 'Set it to "mined" or "exact"'
            raise InputError("needs aligned tokens, and prefix aligns none", field=name, cure=cure)
        if self.least_mass and self.rules == "chat_v1":
            raise InputError("is of one row, and chat_v1 blends rows", field="least_mass", cure="Leave it at 0")

    def make_map(self, views: Views, counts: PairCounts | None, texts: Iterable[tuple[Ids, Ids]] = ()) -> VocabMap:
        """The vocabulary map of kind `vocabulary`.

        Args:
          views: of pivot and source. counts: of aligned pairs, for "statistics". texts: ids in the pivot's and in the
            source's tokens, for "cooccurrence".
        """
        match self.vocabulary:
            case "exact":
                return exact_map(*views, self.pieces)
            case "mined":
                return mined_map(*views, self.pieces)
            case "cooccurrence":
                ours, theirs = zip(*texts, strict=True)
                return cooccurrence_map(*views, ours, theirs, pieces=self.pieces)
            case "statistics":
                assert counts is not None
                variant: Literal["chat_v1", "chat_v2"] = "chat_v1" if self.rules == "chat_v1" else "chat_v2"
                return mapping_statistics(counts, *views, variant, self.ms_weight, self.pieces)
        raise InputError(f"'{self.vocabulary}' is unknown", field="vocabulary", cure="See --help for the choices")

    def rules_of(
        self, views: Views, vocab_map: VocabMap, counts: PairCounts | None, pairs: Iterable[tuple[int, int]] = ()
    ) -> Rules:
        """The rules with a map; counts: of aligned pairs, by which chat_v1 weighs; pairs: ids of special tokens."""
        return Rules(
            *views, vocab_map, self.rules, self.hard, self.one_to_many, counts if self.rules == "chat_v1" else None,
            self.fallback, self.duplicates, tuple(pairs), self.pieces, self.least_mass,
        )  # fmt: skip


PUBLISHED = AlignSettings(ms_weight="code", pieces="raw", workers=8)
"""What the published runs of FuseLLM and FuseChat have in common."""
OFFICIAL = replace(PUBLISHED, special_pairs=False)
"""As their code does it, which maps no special token onto another."""
