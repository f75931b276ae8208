"""Replies without what they declare to be thoughts."""

from __future__ import annotations

OPENED, CLOSED = "<think>", "</think>"


def without_thinking(text: str) -> str:
    """A reply without the spans that it declares to be thoughts; one that is not closed stays.

    >>> without_thinking("<think>A or B?</think>C"), without_thinking("<think>A")
    ('C', '<think>A')
    """
    kept, at = list[str](), 0
    while (start := text.find(OPENED, at)) >= 0 and (end := text.find(CLOSED, start)) >= 0:
        kept.append(text[at:start])
        at = end + len(CLOSED)
    return "".join(kept) + text[at:]
