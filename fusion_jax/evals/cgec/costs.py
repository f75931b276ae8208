"""What it costs to replace one character by another, and the dictionaries that say how alike two characters are.

cost(a, b) = meaning / 6 + form + kind, summed in this order in float64:

  meaning  2 (3 - shared levels) of the two classes in a thesaurus of three levels; 4 where a class is unknown
  form     0 for two Chinese characters that share a reading or are confused with each other, otherwise 0.5
  kind     0 for two punctuation marks, 0.25 for none, 0.499 for one

Without dictionaries meaning is 4 and form 0.5. Source: ChERRANT (arXiv 2204.10994).
"""

from __future__ import annotations

import os
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.cgec.lines import numbered_lines

# The full stop 。 and the left mark 《 are not among them. Their order counts: see `merging`.
PUNCTUATION = string.punctuation + (
    "！？｡＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘'‛“”„‟…‧﹏"
)
MARKS = frozenset(PUNCTUATION)
Levels = tuple[str, str, str]


@dataclass(frozen=True)
class Dictionaries:
    """How alike characters are.

    classes: character -> its class in the thesaurus, as three levels. readings: character -> its readings, without
    tones. confusions: character -> characters that it is confused with; one direction is enough.
    """

    classes: Mapping[str, Levels] = field(default_factory=dict)
    readings: Mapping[str, frozenset[str]] = field(default_factory=dict)
    confusions: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return brief(self)


def load_dictionaries(
    thesaurus: str | os.PathLike[str], confusions: str | os.PathLike[str], pinyin: str | os.PathLike[str] = ""
) -> Dictionaries:
    """The dictionaries of three files, each of lines of fields that are separated by spaces.

    Args:
      thesaurus: "Aa01A01= 人 士 人物": a code and its words. The levels are the code's first character, its second, and
        the next two. A word that stands in several lines has the class of the last one. UTF-8, else GB18030.
      confusions: "在 再 载": a character and those that it is confused with.
      pinyin: "得 de dei": a character and its readings without tones; without a file the package pypinyin is asked.

    Raises:
      InputError: a file cannot be read or a line has another form; names file and line.
    """
    classes: dict[str, Levels] = {}
    for number, (code, *words) in _fields(thesaurus, ("utf-8", "gb18030")):
        if len(code) < 4:
            problem = f"{quoted(code)} is no code of a thesaurus"
            raise InputError(problem, file=thesaurus, record=number, field="code", cure="Write it as in Aa01A01= 人 士")
        classes.update(dict.fromkeys(words, (code[0], code[1], code[2:4])))
    pairs = {head: frozenset(others) for head, others in _by_character(confusions).items()}
    if not os.fspath(pinyin):
        return Dictionaries(classes, _pypinyin(), pairs)
    return Dictionaries(classes, {head: frozenset(all_) for head, all_ in _by_character(pinyin).items()}, pairs)


def _fields(path: str | os.PathLike[str], encodings: Sequence[str] = ("utf-8",)) -> list[tuple[int, list[str]]]:
    return [(n, line.split()) for n, line in numbered_lines(path, encodings=encodings) if line.strip()]


def _by_character(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    found = {}
    for number, (head, *others) in _fields(path):
        if len(head) != 1:
            problem = f"{quoted(head)} is not one character"
            raise InputError(problem, file=path, record=number, field="character", cure="Separate fields by spaces")
        found[head] = others
    return found


def _pypinyin() -> dict[str, frozenset[str]]:
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        cure = "Give a file of readings, or install it with: pip install pypinyin"
        raise InputError("pypinyin is not installed", field="pinyin", cure=cure) from None
    every = map(chr, range(0x4E00, 0xA000))
    return {one: frozenset(pinyin(one, style=Style.NORMAL, heteronym=True)[0]) for one in every}


def cost_table(tokens: Sequence[str], known: Dictionaries | None) -> tuple[np.ndarray, np.ndarray]:
    """What it costs to replace tokens by each other.

    Returns:
      kinds: int64[V], the row of each token. table: float64[R, R]; token v by w costs table[kinds[v], kinds[w]].

    >>> kinds, table = cost_table(["学", "校", "，"], None)
    >>> round(float(table[kinds[0], kinds[1]]), 4), round(float(table[kinds[0], kinds[2]]), 4)
    (1.4167, 1.6657)
    """
    marks = np.array([token in MARKS for token in tokens], bool)
    if known is None:
        return marks.astype(np.int64), 4 / 6 + 0.5 + np.array([[0.25, 0.499], [0.499, 0.0]])
    kind = np.where(marks[:, None] & marks, 0.0, np.where(marks[:, None] | marks, 0.499, 0.25))
    return np.arange(len(tokens)), _meaning(tokens, known) / 6 + np.where(_alike(tokens, known), 0.0, 0.5) + kind


def _meaning(tokens: Sequence[str], known: Dictionaries) -> np.ndarray:
    classes = [known.classes.get(token) for token in tokens]
    has = np.array([levels is not None for levels in classes], bool)
    shared = np.zeros((len(tokens), len(tokens)), np.int64)
    for level in range(3):
        numbers: dict[str, int] = {}
        of = np.array([numbers.setdefault(c[level], len(numbers)) if c else -1 for c in classes], np.int64)
        shared += of[:, None] == of
    return np.where(has[:, None] & has, 2.0 * (3 - shared), 4.0)


def _alike(tokens: Sequence[str], known: Dictionaries) -> np.ndarray:
    """bool[V, V]: two Chinese characters that share a reading, or of which one is confused with the other."""
    alike = np.zeros((len(tokens), len(tokens)), bool)
    place = {token: v for v, token in enumerate(tokens) if len(token) == 1 and "\u4e00" <= token <= "\u9fff"}
    by_reading = defaultdict(list)
    for token, v in place.items():
        for reading in known.readings.get(token, ()):
            by_reading[reading].append(v)
        for other in known.confusions.get(token, ()):
            if other in place:
                alike[v, place[other]] = alike[place[other], v] = True
    for group in by_reading.values():
        alike[np.ix_(group, group)] = True
    return alike
