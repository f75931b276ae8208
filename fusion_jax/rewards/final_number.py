"""The number that a worked solution ends in, as people and models write it: plain, Markdown or LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

LONGEST = 20_000  # characters of a text that are read, the last ones
STATEMENT = 1000  # characters of one statement
STATEMENTS = 20  # of a text, the last ones

# A minus behind a digit, a letter or a bracket is a dash or a subtraction, not a sign.
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = rf"(?:(?<![\w)])-)?{_DIGITS}(?:/\d+(?!\.?\d))?"
_TOKEN = re.compile(
    rf"(?P<number>{_NUMBER}(?P<odd>[eE][+-]?\d|:\d)?)"
    r"|(?P<equals>\bequals\b|=+>?|[≈→])"
    r"|(?P<operator>\*|\+|-|/|\^|\bx\b)|(?P<open>\()|(?P<close>\))|(?P<word>[^\W\d]+)|(?P<other>\S)",
    re.IGNORECASE,
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "k": 1000}

_ANSWER = r"answers?\b[^.\n\d=:#]{0,60}?(?:\b(?:is|are|be|equals)\b:?|:|=)"
_MARKER = re.compile(
    rf"(?P<boxed>\\(?:boxed|fbox)\s*\{{)|(?P<hashes>####)(?!#)|\b{_ANSWER}|^[^\S\n]*A:"
    r"|^[# \t]{0,8}(?:(?i:the|your)[ \t]{1,3})?(?i:final[ \t]{1,3})?(?i:answer)[ \t.]{0,8}$",
    re.MULTILINE | re.IGNORECASE,
)
_HEADING = re.compile(
    rf"\s*(?:{_NUMBER})(?!\s*[.):]\s*[^\W\d])(?:\s*%|\s*[^\W\d]+){{0,4}}(?:\s*\([^()]*\))?\s*[.!]?\s*$"
)

_LATEX = (
    (r"<<[^<>]*>>", ""),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2 "),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r" \1/\2 "),
    (r"\{,\}|(?<=\d)(?:\\[,!;: ]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", ","),
    (r"\\(?:times|cdot)\b|×|·|⋅|∗", "*"),
    (r"\\div\b|÷|⁄", "/"),
    (r"\\(?:approx|rightarrow|Rightarrow)\b", "≈"),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"\^\s*\{?\\circ\}?|°", " "),
    (r"\\(?:left|right|displaystyle|quad|qquad)\b|\\[,!;: ()\[\]]|\\\\", " "),
    (r"(?<=\d)\*\*(?=\d)", "^"),
    (r"\*\*|__|`|[$€£]|\\(?=[%$&#_])", ""),
    (r"\b(?:minus|negative)\s+(?=\.?\d)", "-"),
)  # fmt: skip


def number(text: str) -> Fraction | None:
    """The value of a number as people write it ("$1,234.50", "3/4", "-7"), exactly."""
    cleaned = text.strip().replace("$", "").replace(",", "").rstrip(".%")
    try:
        return Fraction(cleaned)
    except (ValueError, ZeroDivisionError):
        return None


def final_number(text: str) -> Fraction | None:
    """The final answer of a worked solution: the number that its last statement of an answer gives, else its last one.

    A statement is \\boxed{...}, a line "#### 36", or what follows "the answer is", "Answer:" or "A:". It may be worked
    out ("12 x 3 = 36"); one that names several numbers ("5 or 6") gives None.
    """
    stated, value = stated_number(text)
    if stated:
        return value
    tokens = list(_tokens(_plain(text[-LONGEST:])))
    last = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i].kind == "number"), None)
    if last is None:
        return None
    mixed = last > 0 and tokens[last - 1].kind == "number" and _scaled(tokens, last - 1)[1] == last + 1  # 2 1/2
    return _scaled(tokens, last - 1 if mixed else last)[0]


def stated_number(text: str) -> tuple[bool, Fraction | None]:
    """Whether a statement of the answer (see `final_number`) holds a number, and the value of the last such one."""
    text = _unicode(text[-LONGEST:])
    for marker in list(_MARKER.finditer(text))[: -STATEMENTS - 1 : -1]:
        statement = _plain(_statement(text, marker))
        statement = re.sub(rf"\bnot\s+(?:{_NUMBER})", "", statement)
        if "=" not in statement:  # "2-3 days" is a range, "12-5 = 7" a subtraction
            statement = re.sub(r"(?<=\d)-(?=\d)", " to ", statement)
        tokens = list(_tokens(statement))
        if any(t.kind == "number" for t in tokens):
            return True, _stated(tokens)
    return False, None


def _statement(text: str, marker: re.Match[str]) -> str:
    """What a marker introduces: the inside of its braces, its line if it is a number, or the next sentence."""
    rest = text[marker.end() : marker.end() + STATEMENT]
    if marker["boxed"]:
        depth = 1
        for i, c in enumerate(rest):
            depth += (c == "{") - (c == "}")
            if depth == 0:
                return rest[:i]
        return rest
    if marker["hashes"]:
        line = rest.lstrip().partition("\n")[0]
        return line if _HEADING.match(_plain(line)) or "=" in line else ""
    line = rest.lstrip("\n\r\t *_:-#>" if re.match(r"[\s*_:]*\n", rest) else "\n\r\t *_:").partition("\n")[0]
    sentence = re.split(r"[!?](?:\s|$)|\.(?!\d)(?:[\s*]|$)", line, maxsplit=1)[0]
    return "" if _MARKER.search(sentence) else sentence


def _unicode(text: str) -> str:
    """One kind of minus, digits and fraction for all of Unicode's."""
    text = re.sub("[\u2212\ufe63\uff0d]", "-", text)
    wide = "[\uff10-\uff19\uff0c\uff0e\uff05\uff04\uff1a\uff1d]"  # digits and signs
    text = re.sub(wide, lambda m: unicodedata.normalize("NFKC", m[0]), text)
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda m: f" {unicodedata.normalize('NFKC', m[0])} ", text)
    return text.replace("\u2044", "/")


def _plain(text: str) -> str:
    """A text without LaTeX, Markdown and currency signs."""
    text = _unicode(text)
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text.replace("{", " ").replace("}", " ")


class _Token(NamedTuple):
    kind: str
    text: str
    value: Fraction | None = None


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup if match.lastgroup != "odd" else "number"
        odd = match["odd"] is not None  # 12e2, 3:30: no plain number
        yield _Token(kind or "", match[0], None if odd or kind != "number" else number(match[0]))


def _stated(tokens: Sequence[_Token]) -> Fraction | None:
    """The value of a statement: its first expression, or the last one of a chain of equations that begins there."""
    first = next(i for i, t in enumerate(tokens) if t.kind == "number")
    if sum(t.kind == "open" for t in tokens) > 30:
        return None
    while first > 0 and tokens[first - 1].kind == "open":
        first -= 1
    value, at = _expression(tokens, first)
    while True:
        after = _skip(tokens, at)
        if after < len(tokens) and tokens[after].kind == "equals":
            following = _skip(tokens, after + 1)
            if following < len(tokens) and tokens[following].kind in ("number", "open"):
                value, at = _expression(tokens, following)
                continue
        joined = [t.text.lower() for t in tokens[at : at + 6]]
        several = re.match(r"(?:\w+ ){0,3}(?:, )?(?:or|and|to|&|,|/) -?\.?\d", " ".join(joined))
        return None if several else value


def _skip(tokens: Sequence[_Token], at: int) -> int:
    """Past up to three words of a unit."""
    for _ in range(3):
        if at < len(tokens) and (tokens[at].kind == "word" or tokens[at].text == "%"):
            at += 1
    return at


def _expression(tokens: Sequence[_Token], at: int) -> tuple[Fraction | None, int]:
    """The value of sums and products of numbers from a place on, and the place behind them."""
    terms: list[Fraction | None] = []
    value, at = _product(tokens, at)
    terms.append(value)
    while True:
        after = _skip(tokens, at)
        if after + 1 < len(tokens) and tokens[after].text in "+-" and _is_operand(tokens, after + 1):
            sign = 1 if tokens[after].text == "+" else -1
            value, at = _product(tokens, after + 1)
            terms.append(None if value is None else sign * value)
        elif at < len(tokens) and tokens[at].kind == "number" and tokens[at].text.startswith("-"):
            value, at = _product(tokens, at)
            terms.append(value)
        else:
            known = [t for t in terms if t is not None]
            return (sum(known, Fraction(0)) if len(known) == len(terms) else None), at


def _product(tokens: Sequence[_Token], at: int) -> tuple[Fraction | None, int]:
    value, at = _operand(tokens, at)
    while True:
        after = _skip(tokens, at)
        sign = tokens[after].text.lower() if after < len(tokens) and tokens[after].kind == "operator" else ""
        if sign not in ("*", "x", "/", "^") or not _is_operand(tokens, after + 1):
            return value, at
        other, at = _operand(tokens, after + 1)
        if value is None or other is None or (sign == "/" and other == 0):
            value = None
        elif sign == "^":
            bounded = other.denominator == 1 and 0 <= other <= 64 and max(map(abs, value.as_integer_ratio())) < 10**9
            value = Fraction(value ** int(other)) if bounded else None
        else:
            value = value / other if sign == "/" else value * other


def _is_operand(tokens: Sequence[_Token], at: int) -> bool:
    return at < len(tokens) and tokens[at].kind in ("number", "open")


def _operand(tokens: Sequence[_Token], at: int) -> tuple[Fraction | None, int]:
    """A number with its scale, or what stands in brackets."""
    if tokens[at].kind == "number":
        return _scaled(tokens, at)
    if not _is_operand(tokens, at + 1):
        return None, at + 1
    value, at = _expression(tokens, at + 1)
    at = _skip(tokens, at)
    return value, at + (at < len(tokens) and tokens[at].kind == "close")


def _scaled(tokens: Sequence[_Token], at: int) -> tuple[Fraction | None, int]:
    """A number, "2 1/2", or "1.5 million"."""
    value, following = tokens[at].value, at + 1
    if value is None or following == len(tokens):
        return value, following
    after = tokens[following]
    whole = after.kind == "number" and re.fullmatch(r"-?[\d,]+", tokens[at].text)
    if whole and re.fullmatch(r"\d+/\d+", after.text) and after.value is not None:
        part = -after.value if tokens[at].text.startswith("-") else after.value
        return value + part, following + 1
    scale = _SCALES.get(after.text.lower())
    return (value * scale, following + 1) if scale else (value, following)
