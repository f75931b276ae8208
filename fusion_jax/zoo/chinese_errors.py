"""Errors in the sentences of `zoo.chinese_grammar`: words too many, words missing, wrong words, words out of order.

Each error can be seen in the sentence alone. A few can be repaired in two ways, as 虽然 with 所以, or two words for
"about": all of these are references.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from fusion_jax.zoo.chinese_grammar import DEGREES, FUTURE, OPENERS, PAST, THINGS, Word, spelled

Kind = Literal["redundant", "missing", "wrong", "disordered"]
KINDS: tuple[Kind, ...] = ("redundant", "missing", "wrong", "disordered")


@dataclass(frozen=True)
class Change:
    """Words start to end are replaced by a text; before word `start` it is put in where start equals end."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Error:
    """What makes a right sentence wrong. repairs: other changes of the right sentence, each of which makes another
    right one that the error may have come from."""

    kind: Kind
    change: Change
    repairs: tuple[tuple[Change, ...], ...] = ()

    @property
    def touched(self) -> tuple[int, int]:
        """First and last place among the words that the error or one of its repairs has to do with."""
        changes = [self.change, *(change for repair in self.repairs for change in repair)]
        return min(c.start for c in changes), max(c.end for c in changes)


@dataclass(frozen=True)
class Broken:
    """A wrong sentence (or, without kinds, a right one), what it may become, the intended first, and its errors."""

    source: str
    references: tuple[str, ...]
    kinds: tuple[Kind, ...]


def broken(words: Sequence[Word], count: int, rng: np.random.Generator) -> Broken:
    """The sentence with `count` errors that have nothing to do with each other, or with fewer where it has no room; the
    kind is drawn before the place, so that the four are about as frequent."""
    possible, chosen = list(errors(words)), list[Error]()
    while possible and len(chosen) < count:
        kinds = sorted({error.kind for error in possible})
        kind = kinds[rng.integers(len(kinds))]
        some = [error for error in possible if error.kind == kind]
        one = some[rng.integers(len(some))]
        chosen.append(one)
        possible = [error for error in possible if _apart(error, one)]
    repairs = [((), *error.repairs) for error in chosen]
    references = [changed(words, [c for repair in combined for c in repair]) for combined in product(*repairs)]
    source = changed(words, [error.change for error in chosen])
    if source in references:
        return Broken(spelled(words), (spelled(words),), ())
    return Broken(source, tuple(dict.fromkeys(references)), tuple(error.kind for error in chosen))


def changed(words: Sequence[Word], changes: Iterable[Change]) -> str:
    """The text of a sentence with changes that are apart."""
    texts = [word.text for word in words]
    for change in sorted(changes, key=lambda c: c.start, reverse=True):
        texts[change.start : change.end] = [change.text]
    return "".join(texts)


def errors(words: Sequence[Word]) -> Iterator[Error]:
    """Everything that can be wrong with a sentence."""
    for rule in (_redundant, _missing, _wrong, _conflicting, _disordered):
        yield from rule(words)


def _apart(one: Error, other: Error) -> bool:
    (a, b), (c, d) = one.touched, other.touched
    return b < c or d < a


TWICE = {"at", "already", "modal", "often", "ba", "subject"}
BESIDE = {  # part -> what stands before it or behind it and is too much
    "degree": ("是", ""), "measure": ("", "个"), "manner mark": ("", "的"), "goal": ("到", ""), "quality": ("得", ""),
    "result": ("得", ""), "not": ("", "不"),
}  # fmt: skip


def _redundant(words: Sequence[Word]) -> Iterator[Error]:
    for i, word in enumerate(words):
        if word.part in TWICE and not word.rare:
            yield Error("redundant", Change(i, i, word.text))
        if word.part == "degree":
            for other in ("很", "非常"):
                if other != word.text:
                    yield Error("redundant", Change(i, i, other))
        if word.part in BESIDE and not (word.part == "measure" and word.text == "个"):
            before, behind = BESIDE[word.part]
            yield Error("redundant", Change(i, i, before) if before else Change(i + 1, i + 1, behind))
        if word.part == "people" and words[i + 1].part != "more or less":
            about = next(j for j, other in enumerate(words) if other.part == "about")
            repair = (Change(about, about + 1, ""), Change(i + 1, i + 1, "左右"))
            yield Error("redundant", Change(i + 1, i + 1, "左右"), (repair,))
        if word.part == "verb" and _clause_has(words, i, {"modal", "not", "often"}):
            yield Error("redundant", Change(i + 1, i + 1, "了"))


LOST = {"done", "at", "measure", "degree", "how mark", "manner mark", "ba", "then", "verb", "asking"}


def _missing(words: Sequence[Word]) -> Iterator[Error]:
    for i, word in enumerate(words):
        found = word.part in LOST or (word.part == "second link" and word.text in ("但是", "而且"))
        kept = (word.part == "verb" and not _told_by_the_rest(words, i)) or (
            word.part == "measure" and words[i + 1].part == "people"  # 一百人 is right
        )
        if found and not word.rare and not kept:
            yield Error("missing", Change(i, i + 1, ""), _others(words, i))


def _others(words: Sequence[Word], i: int) -> tuple[tuple[Change, ...], ...]:
    """Other words that may have stood in a place: degrees, and measure words of the same thing."""
    also: set[str] = set()
    if words[i].part == "degree":
        also = set(DEGREES)
    elif words[i].part == "measure":
        also = _measures(words[i + 1])
    return tuple((Change(i, i + 1, other),) for other in sorted(also - {words[i].text}))


def _measures(counted: Word) -> set[str]:
    return {m for thing in THINGS if thing.name == counted.text for m in (thing.measure, thing.odd) if m}


def _told_by_the_rest(words: Sequence[Word], i: int) -> bool:
    """Whether a verb can be guessed: of things that only one verb takes."""
    verbs = {thing.verb for thing in THINGS if any(word.text == thing.name for word in words[i:])}
    return words[i].text == "去" or verbs == {words[i].text}


CONFUSED = {
    "在": "再", "得": "的", "地": "的", "已经": "以经", "作业": "做业", "高兴": "高心", "公园": "公圆",
    "天气": "天汽", "考试": "考式", "认真": "认直", "电话": "电活", "我们": "我门", "他们": "他门", "坐": "做",
    "戴": "带", "带": "戴", "书": "树", "树": "书", "买": "卖", "准备": "准被", "教室": "教师", "图书馆": "图书管",
    "医院": "医园", "衣服": "衣福", "活动": "话动", "非常": "非长", "常常": "长常", "看": "着", "明天": "名天",
    "昨天": "作天",
}  # fmt: skip


def characters() -> set[str]:
    """Every character that errors write and that right sentences may lack."""
    return {c for text in CONFUSED.values() for c in text} | set("是个的到得不左右了很非常要本个条张")


def _wrong(words: Sequence[Word]) -> Iterator[Error]:
    for i, word in enumerate(words):
        if word.text in CONFUSED and not _right_as_well(words, i):
            yield Error("wrong", Change(i, i + 1, CONFUSED[word.text]))
        if word.part == "measure" and words[i + 1].part == "object":
            for other in ("本", "个", "条", "张"):
                if other not in _measures(words[i + 1]):
                    yield Error("wrong", Change(i, i + 1, other), _others(words, i))


def _right_as_well(words: Sequence[Word], i: int) -> bool:
    """Whether a verb stays right where it is confused: flowers are sold as well as bought."""
    names = {thing.name for thing in THINGS if thing.verb == CONFUSED[words[i].text]}
    return words[i].part == "verb" and any(word.text in names for word in words[i:])


def _conflicting(words: Sequence[Word]) -> Iterator[Error]:
    """Two words that do not go together, either of which may be the wrong one."""
    parts = [word.part for word in words]
    for when, opposites in (("past", dict(zip(PAST, FUTURE))), ("future", dict(zip(FUTURE, PAST)))):
        if parts.count(when) == 1 and "comma" not in parts and "about" not in parts and "have" not in parts:
            time = parts.index(when)
            repair = _told_otherwise(words, opposites[words[time].text], time)
            if repair:
                yield Error("wrong", Change(time, time + 1, opposites[words[time].text]), (repair,))
    openers = dict(OPENERS[:3])
    if "second link" in parts and parts[0] == "link" and words[parts.index("second link")].text:
        first, second = words[0].text, parts.index("second link")
        for other, fitting in openers.items():
            if other != first:
                yield Error("wrong", Change(0, 1, other), ((Change(0, 1, other), Change(second, second + 1, fitting)),))


def _told_otherwise(words: Sequence[Word], when: str, time: int) -> tuple[Change, ...]:
    """Of the time that the sentence does not mean, what it would be: 要 in the place of 了, or the other way round."""
    parts = [word.part for word in words]
    if "done" in parts and "verb" in parts and parts[-1] == "end" and "already" not in parts:
        done = parts.index("done")
        before = min(parts.index(part) for part in ("at", "manner", "verb") if part in parts)
        return (Change(time, time + 1, when), Change(before, before, "要"), Change(done, done + 1, ""))
    if "modal" in parts and "asking" not in parts:
        modal, verb = parts.index("modal"), parts.index("verb")
        if words[modal].text == "要" and not words[verb].rare:
            return Change(time, time + 1, when), Change(modal, modal + 1, ""), Change(verb + 1, verb + 1, "了")
    return ()


def _disordered(words: Sequence[Word]) -> Iterator[Error]:
    for i, word in enumerate(words):
        nxt = words[i + 1] if i + 1 < len(words) else None
        if word.part in ("past", "future"):
            yield from _moved(words, i, i + 1, _beside_subject(words, i))
        if word.part in ("often", "also"):
            yield from _moved(words, i, i + 1)
        if word.part == "at":
            yield from _moved(words, i, i + 2)
        pairs = {
            ("number", "measure"), ("topic", "degree"), ("degree", "quality"), ("ba", "object"), ("verb", "done"),
            ("subject", "also"), ("then", "modal"), ("verb", "how mark"), ("have", "number"),
        }  # fmt: skip
        if nxt is not None and (word.part, nxt.part) in pairs and word.text != nxt.text:
            yield Error("disordered", Change(i, i + 2, nxt.text + word.text))
        if (
            len(word.text) == 2
            and word.text[0] != word.text[1]
            and word.part in ("object", "place", "quality", "topic")
        ):
            yield Error("disordered", Change(i, i + 1, word.text[::-1]))


def _beside_subject(words: Sequence[Word], i: int) -> tuple[tuple[Change, ...], ...]:
    """A time may stand on either side of the subject."""
    for first in (i - 1, i):
        pair = words[max(first, 0) : first + 2]
        if len(pair) == 2 and "subject" in (pair[0].part, pair[1].part):
            return ((Change(first, first + 2, pair[1].text + pair[0].text),),)
    return ()


def _moved(
    words: Sequence[Word], start: int, end: int, repairs: tuple[tuple[Change, ...], ...] = ()
) -> Iterator[Error]:
    """Words moved to the end of their clause."""
    last = next(j for j in range(end, len(words)) if words[j].part in ("comma", "end", "asking"))
    text = spelled(words[end:last]) + spelled(words[start:end])
    if text != spelled(words[start:last]):
        yield Error("disordered", Change(start, last, text), repairs)


def _clause_has(words: Sequence[Word], i: int, parts: set[str]) -> bool:
    """Whether a part stands before word i in its clause."""
    begin = max((j + 1 for j in range(i) if words[j].part == "comma"), default=0)
    return any(word.part in parts for word in words[begin:i])
