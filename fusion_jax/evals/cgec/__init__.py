"""Scorers of Chinese grammatical error correction: ChERRANT's edits of characters and the M2 score of words.

from fusion_jax.evals.cgec import score

report = score(sources, hypotheses, references)     # lists of texts; several references a sentence
report.precision, report.recall, report.f, report.over_correction, report.head.mode
"""

from fusion_jax.evals.cgec.cherrant import Mode, edits, score, score_annotated
from fusion_jax.evals.cgec.costs import Dictionaries, load_dictionaries
from fusion_jax.evals.cgec.edits import NA, NOOP, Edit
from fusion_jax.evals.cgec.m2_files import Annotated, read_m2, write_m2
from fusion_jax.evals.cgec.maxmatch import score_m2
from fusion_jax.evals.cgec.report import Counts, Head, Item, Report, f_beta
from fusion_jax.evals.cgec.text import Segment, characters, segment, simplified

__all__ = [
    "NA", "NOOP", "Annotated", "Counts", "Dictionaries", "Edit", "Head", "Item", "Mode", "Report", "Segment",
    "characters", "edits", "f_beta", "load_dictionaries", "read_m2", "score", "score_annotated", "score_m2", "segment",
    "simplified", "write_m2",
]  # fmt: skip
