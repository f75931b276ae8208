"""Alignment of tokenizers: one text in two tokenisations, one vocabulary mapped onto another."""

from fusion_jax.align.sequences import Alignment, align, align_tokens, byte_offsets
from fusion_jax.align.views import TokenizerView, fingerprint, view_of
from fusion_jax.align.vocabulary import (
    PairCounts,
    VocabMap,
    cooccurrence_map,
    count_pairs,
    exact_map,
    load_map,
    mapping_statistics,
    mined_map,
)

__all__ = [
    "Alignment", "PairCounts", "TokenizerView", "VocabMap", "align", "align_tokens", "byte_offsets",
    "cooccurrence_map", "count_pairs", "exact_map", "fingerprint", "load_map", "mapping_statistics", "mined_map",
    "view_of",
]  # fmt: skip
