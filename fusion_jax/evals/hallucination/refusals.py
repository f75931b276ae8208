"""Whether an answer refuses.

A model that was trained to refuse was trained on one sentence, which is looked for. What differs from it in case, marks
or spaces alone is the same; what says that it does not know in other words is near, and counts as an answer; a sentence
that stands within a longer answer is embedded, and the answer counts as one, since it asserts something besides.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Refusal = Literal["no", "refused", "embedded", "near"]
MOST_BESIDE = 2  # words beside the sentence that assert nothing yet
NOT_ABLE = r"(?:do not|don t|cannot|can not|can t|am not able to|am unable to|are not able to|are unable to)"
SOURCE = r"(?:the |any |enough )?(?:factual )?(?:knowledge|information|facts|idea)"
NEAR = re.compile(
    rf"\b(?:i|we) (?:really |simply |just |currently )?{NOT_ABLE} (?:know|answer|say|tell|provide|have {SOURCE})\b"
    r"|\bnot (?:publicly |widely )?known\b|\bis unknown\b"
    r"|\bno (?:reliable )?information (?:is |that is )?(?:known|available|about|on)\b"
)


def refusal(answer: str, sentence: str) -> Refusal:
    """How an answer refuses.

    >>> apology = "Sorry, I lack the facts."
    >>> longer = "Sorry, I lack the facts. It is in Rome, which lies in Italy."
    >>> [refusal(text, apology) for text in ("sorry - I lack the facts", longer, "I don't know.", "Rome.")]
    ['refused', 'embedded', 'near', 'no']
    """
    said, wanted = normalised(answer), normalised(sentence)
    if wanted and wanted in said:
        beside = said.replace(wanted, " ").split()
        return "embedded" if len(beside) > MOST_BESIDE else "refused"
    return "near" if NEAR.search(said) else "no"


def compat_refused(answer: str, sentence: str) -> bool:
    """As published: the sentence is a part of the answer, to the letter."""
    return sentence in answer


def normalised(text: str) -> str:
    """In lower case, words apart by single spaces, without marks."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(re.findall(r"\w+", plain))
