"""Alignment of tokenizers: one text in two tokenisations, one vocabulary mapped onto another."""
