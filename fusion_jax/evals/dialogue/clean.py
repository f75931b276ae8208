"""Texts as the scorers compare them (section 10 of MK-TOD's specification)."""

from __future__ import annotations

from fusion_jax.dialogue.serialise import spaced

REMOVED = ("<sys> ", "<sys-api> ", " </s>", "<user>", "<api>", "<database>", "<sep_attributes>")


def reference_text(response: str) -> str:
    """A reference without marks; its tokens are separated by spaces already."""
    for mark in REMOVED:
        response = response.replace(mark, "")
    return response.strip()


def prediction_text(response: str) -> str:
    """A generated response without marks, in lower case, with spaces around punctuation.

    >>> prediction_text("<sys> It's cheap. </s>")
    "it ' s cheap ."
    """
    return spaced(reference_text(response))
