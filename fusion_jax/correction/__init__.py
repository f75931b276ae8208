"""Grammatical error correction of Chinese: corpora, their split, models' inputs, and what is made of their outputs."""
