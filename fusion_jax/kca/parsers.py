"""What the replies of the helper and the judges say.

The default parsers look for JSON tolerantly and check it strictly (`asking.json_replies`), and count questions that are
none. Those under `compat_` read the published program's form of replies exactly as it does, with everything that it
rejects; the specification's tables hold them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fusion_jax.asking.json_replies import Unread, read_object
from fusion_jax.errors import InputError
from fusion_jax.kca.records import LETTERS, NEED, NO_NEED, ExamItem, Need, check_item

MOST_QUERIES = 5
_JOINED = re.compile(r"\W*\b[A-D]\W*?(?:[,;/&+]|\b(?:and|or)\b)\W*(?:\b(?:and|or)\b)?\W*[A-D]\b(?!')")  # "(A), or B"
UNPARSABLE = -100.0  # the published program's score of a reply that it could not read


@dataclass(frozen=True)
class _NeedReply:
    label: Literal["need", "no_need"]
    analysis: str = ""
    queries: tuple[str, ...] = ()


@dataclass(frozen=True)
class _TestReply:
    question: str
    options: tuple[str, ...]
    answer: str
    analysis: str = ""


@dataclass(frozen=True)
class _ExamReply:
    tests: tuple[Any, ...]


@dataclass(frozen=True)
class _JudgeReply:
    hallucinated: Literal[0, 1, "0", "1", True, False]
    spans: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class _HelpReply:
    score: float
    why: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.score <= 10:
            raise InputError("is not from 1 to 10", field="score")


class Grade(NamedTuple):
    """A judge's grade of helpfulness. score: None where the reply could not be read, for the reason `unread`."""

    score: float | None
    unread: str = ""


class Verdict(NamedTuple):
    """A judge's. hallucinated: None where the reply could not be read, for the reason `unread`."""

    hallucinated: bool | None
    spans: tuple[str, ...] = ()
    why: str = ""
    unread: str = ""


def read_need(text: str) -> Need:
    """Stage 1: JSON, or the published form where a reply has one."""
    found = read_object(text, _NeedReply, others=True)
    if not isinstance(found, Unread):
        return Need(found.label, found.analysis, found.queries[:MOST_QUERIES])
    said = re.search(r"Prediction\W{0,3}\s*<?\s*(no[\s_-]*need|need)\b", text, re.IGNORECASE)
    if said is None:
        return Need("", lost=f"stage 1: {found.reason}")
    analysis, _, behind = text.partition(said[0])
    queries = re.split(r"Search\s+Q\w*\W{0,3}", behind.partition("Command:")[0], maxsplit=1)[1:]
    lines = (line.strip(" -*\t") for text in queries for line in text.splitlines())
    listed = tuple(line for line in lines if line)
    return Need(
        NO_NEED if said[1].lower().startswith("no") else NEED, _without_name(analysis, "Analysis"),
        listed[:MOST_QUERIES],
    )  # fmt: skip


def _without_name(text: str, name: str) -> str:
    return re.sub(rf"^\W*{name}\W{{0,3}}", "", text.strip(), flags=re.IGNORECASE).strip(" #*\n\t")


def read_exam(text: str, counts: Counter[str], most: int = 3) -> list[ExamItem]:
    """Stage 3: the first `most` valid questions; each that is none is counted under its reason."""
    found = read_object(text, _ExamReply, others=True)
    if isinstance(found, Unread):
        tests: list[ExamItem | Unread] = [*_lettered(text)]
        counts[f"stage 3: {found.reason}"] += not tests
    else:
        tests = [_test(value) for value in found.tests]
    out = []
    for test in tests:
        reason = test.reason if isinstance(test, Unread) else check_item(test)
        counts[f"question: {reason}"] += bool(reason)
        if isinstance(test, ExamItem) and not reason:
            out.append(test)
    counts["question: more than asked for"] += max(len(out) - most, 0)
    return out[:most]


def _test(value: Any) -> ExamItem | Unread:
    """One question of the list, read by itself, so that a malformed one takes none of the others with it."""
    found = read_object(json.dumps(value), _TestReply, others=True)
    if isinstance(found, Unread):
        return found
    return ExamItem(found.question, found.options, letter_in(found.answer), found.analysis)


def letter_in(text: str) -> str:
    """The letter that an answer names; "" where it names none, or several.

    >>> letter_in("(b)"), letter_in("The correct option is (B)"), letter_in("(B) a cab")
    ('B', 'B', 'B')
    >>> letter_in("A or B"), letter_in("(A) or (B)"), letter_in("A) and C)")
    ('', '', '')
    """
    bare = text.strip(" \n\t.*")
    if len(bare) == 1 and bare.upper() in LETTERS:
        return bare.upper()
    plain = re.sub(r"\([^()]{2,}\)", "", bare)  # a remark in brackets marks no letter
    first = re.match(r"\W{0,3}\(?([A-Da-d])\s*[).:]", plain)
    if _JOINED.match(plain) if first else _JOINED.search(plain):
        return ""
    named = [first[1]] if first else []
    named += re.findall(r"(?<!\w)\(?([A-Da-d])\)(?!\w)", plain)
    named = named or re.findall(r"(?<![\w'])([BCD]|A(?!\s+[a-z]))(?![\w'])", plain)
    letters = {one.upper() for one in named}
    return letters.pop() if len(letters) == 1 else ""


def _lettered(text: str) -> list[ExamItem]:
    """Questions in the published form, read loosely: options (A) or A., with or without an analysis."""
    out = []
    for piece in re.split(r"Question\s*\d*\s*:", text)[1:]:
        options = re.search(r"Options?\s*:(.*?)(?=^\W*(?:Analysis|Answer)\s*:)", piece, re.DOTALL | re.MULTILINE)
        answer = re.search(r"^\W*Answer\s*:\s*(.+)", piece, re.MULTILINE)
        if options is None or answer is None:
            continue
        given = re.split(r"(?:^|(?<=\s))\(?[A-D][).]\s", options[1])[1:]
        analysis = re.search(r"Analysis\s*:(.*?)(?=^\W*Answer\s*:)", piece, re.DOTALL | re.MULTILINE)
        question = piece[: piece.index("Option")]
        out.append(ExamItem(
            question.strip(" #*\n\t"), tuple(one.strip(" -*;\n\t") for one in given), letter_in(answer[1]),
            analysis[1].strip(" #*\n\t") if analysis else "",
        ))  # fmt: skip
    return out


def read_verdict(text: str) -> Verdict:
    """A judge's reply: JSON, or a first line with 0 or 1 and whatever behind it. What cannot be read is no verdict."""
    found = read_object(text, _JudgeReply, others=True)
    if not isinstance(found, Unread):
        return Verdict(bool(int(found.hallucinated)), found.spans, found.why)
    head, _, rest = text.strip().partition("\n")
    said = re.fullmatch(r"\W*(?:score\W{1,3})?(?<!-)([01])(?:\.0)?\W*", head, re.IGNORECASE)
    return Verdict(said[1] == "1", (), rest.strip()) if said else Verdict(None, unread=f"judge: {found.reason}")


def read_helpfulness(text: str) -> Grade:
    """A score from 1 to 10: JSON, or a first line that holds nothing else, whatever stands behind it.

    >>> read_helpfulness("Score: 8/10\\nIt helps.").score, read_helpfulness("3 reasons make this a 9.").score
    (8.0, None)
    """
    found = read_object(text, _HelpReply, others=True)
    if not isinstance(found, Unread):
        return Grade(found.score)
    head = text.strip().partition("\n")[0]
    said = re.fullmatch(r"\W*(?:score\W{1,5})?(?<!-)(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*", head, re.IGNORECASE)
    if said is None:
        return Grade(None, f"helpfulness: {found.reason}")
    value = float(said[1])
    return Grade(value) if 1 <= value <= 10 else Grade(None, "helpfulness: field 'score' out of range")


def compat_need(text: str) -> Need:
    """Stage 1 as published: what stands behind `Prediction:` has to be `<need>` or `<no need>` to the letter, and a
    field of another spelling than `Search Query:` is not told from it."""
    plain = re.sub(r"#+\s*(?=(?:Analysis|Prediction|Search Query|Command):)", "", text)
    parts = re.split(r"Prediction:|Search Query:", plain.partition("Command:")[0])
    labels = {"<need>": NEED, "<no need>": NO_NEED}
    label = labels.get(parts[1].strip(), "") if len(parts) > 1 else ""
    if not label:
        return Need("", lost="stage 1: rejected by the published parser")
    queries = [line.strip() for line in parts[2].splitlines() if line.strip()] if len(parts) > 2 else []
    return Need(label, parts[0].strip(), tuple(queries))


def compat_exam(text: str) -> list[ExamItem]:
    """Stage 3 as published: every question that it keeps, also behind the third."""
    out = []
    for piece in text.split("Question:"):
        parts = re.split(r"Options:|Analysis:|Answer:", piece)
        if len(parts) != 4:
            continue
        question, options, analysis, answer = (part.strip(" #\n\t") for part in parts)
        given = [one.strip() for one in re.split(r"\([ABCD]\)", options)[1:]]
        letters = "".join(c for c in answer.upper() if c in LETTERS)
        if len(given) == len(LETTERS) and len(letters) == 1:
            out.append(ExamItem(question, tuple(given), letters, analysis))
    return out


def compat_verdict(text: str) -> float | None:
    """A judge's score as the published program counts it: three lines have it in the first, a reply of one paragraph
    anywhere; else a reply that is not empty counts as a hallucination (1), and an empty one is skipped (None).

    Raises:
      ValueError: three lines of which the first is no number, where the published program stops.
    """
    lines = text.split("\n")
    if len(lines) == 3:
        return float(lines[0])
    said = re.match(r"\D*?(\d+)", text) if "\n\n" not in text.strip() else None
    score = float(said[1]) if said else UNPARSABLE
    if score != UNPARSABLE:
        return score
    return 1.0 if text.strip() else None


def compat_helpfulness(text: str) -> Grade:
    """As published: the number of the first line, clipped to 0 ... 10; a first line that is none is no grade."""
    try:
        value = float(text.strip().partition("\n")[0])
    except ValueError:
        value = math.nan
    return Grade(None, "helpfulness: no number") if math.isnan(value) else Grade(min(max(value, 0.0), 10.0))
