"""Right Chinese sentences from a small grammar.

A sentence is a row of words, each with its part in the sentence, so that `zoo.chinese_errors` knows what it breaks.
Some words are rare and right: a longer verb, an unusual measure word, a fronted object, a doubled verb. They are
marked, and most carry their usual form: somebody who only wants to correct errors must leave them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """text: may be empty, where something usual is left out; part: what it is in the sentence; rare: whether it is a
    rare wording; usual: the common form of one, None where there is none."""

    text: str
    part: str
    usual: str | None = None
    rare: bool = False


@dataclass(frozen=True)
class Thing:
    """An object of a verb. measure: its measure word, and `odd` a rare one; the verb has a rare longer form, or ""."""

    verb: str
    name: str
    measure: str
    odd: str = ""
    longer: str = ""


PEOPLE = (
    "我", "他", "她", "我们", "妈妈", "老师", "他们", "爸爸", "同学", "朋友", "哥哥", "妹妹", "你", "小王", "医生",
    "奶奶", "小李", "老张",
)  # fmt: skip
PAST = ("昨天", "前天", "去年", "上个月", "上星期")
FUTURE = ("明天", "后天", "明年", "下个月", "下星期")
"""In the order of `PAST`: of each the opposite."""
HABITS = ("每天", "常常", "有时候")
PLACES = ("学校", "家里", "公园", "商店", "图书馆", "教室", "饭店", "医院", "车站", "宿舍")
GOALS = tuple(place for place in PLACES if place != "家里")
THINGS = (
    Thing("看", "书", "本", "", "阅读"), Thing("买", "衣服", "件", "", "购买"),
    Thing("吃", "苹果", "个", "只", "品尝"), Thing("看", "电影", "部", "场", "欣赏"),
    Thing("喝", "茶", "杯", "壶", "品尝"), Thing("写", "信", "封"), Thing("买", "票", "张", "", "购买"),
    Thing("听", "歌", "首", "支", "欣赏"), Thing("吃", "鱼", "条", "尾", "品尝"), Thing("写", "文章", "篇"),
    Thing("借", "书", "本"), Thing("画", "画", "张", "幅"), Thing("吃", "面", "碗", "盘"), Thing("洗", "衣服", "件"),
    Thing("唱", "歌", "首", "支"), Thing("看", "报纸", "份", "张", "阅读"), Thing("打", "电话", "个"),
    Thing("喝", "汤", "碗", "", "品尝"), Thing("买", "花", "朵", "枝", "购买"), Thing("种", "树", "棵"),
    Thing("卖", "花", "朵", "枝"), Thing("骑", "马", "匹"), Thing("卖", "衣服", "件"),
)  # fmt: skip
STUDIES = (
    ("学习", "中文"), ("写", "作业"), ("听", "音乐"), ("做", "饭"), ("练习", "汉字"), ("踢", "足球"),
    ("准备", "考试"), ("坐", "车"), ("带", "雨伞"), ("戴", "帽子"), ("开", "门"),
)  # fmt: skip
NUMBERS = ("一", "两", "三", "四", "五", "六", "十")
MANNERS = ("高兴", "认真", "慢慢", "安静", "努力")
DEGREES = ("很", "非常", "特别", "真")
QUALITIES = (
    ("房间", "干净"), ("天气", "好"), ("衣服", "漂亮"), ("菜", "好吃"), ("电影", "有意思"), ("汉字", "难"),
    ("东西", "便宜"), ("天气", "热"), ("花", "香"), ("东西", "贵"), ("问题", "简单"), ("天气", "冷"),
)  # fmt: skip
FEELINGS = ("高兴", "忙", "累", "生气")
RESULTS = (
    ("作业", "写", "完"), ("饭", "做", "好"), ("衣服", "洗", "干净"), ("书", "看", "完"), ("房间", "打扫", "干净"),
    ("菜", "吃", "完"), ("门", "关", "好"),
)  # fmt: skip
SKILLS = (("写", "汉字"), ("唱", "歌"), ("做", "菜"), ("画", "画"), ("踢", "足球"), ("说", "中文"))
MEETINGS = ("比赛", "会议", "考试", "活动")
OPENERS = (("因为", "所以"), ("虽然", "但是"), ("不但", "而且"), ("如果", "就"))
PARTICLES = "在地了没去要想会天每也都十分非常的得已经把大约有个人左右参加三二五一百，。？吗"
"""Characters that are written in the rules below."""
RARE = 0.12
"""Probability of a rare wording where there is one."""


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of them, the first ones more often: the k-th of n with the probability sqrt(k/n) - sqrt((k-1)/n)."""
    return items[int(len(items) * rng.random() ** 2)]


def sentence(rng: np.random.Generator) -> tuple[Word, ...]:
    """A right sentence with its full stop or question mark."""
    u = rng.random()
    form = next(form for form, below in FORMS if u < below)
    return tuple(word for word in form(rng) if word.text or word.usual)


def spelled(words: Sequence[Word], *, usual: bool = False) -> str:
    """The text; with `usual`, rare wordings that have a usual form in this form.

    >>> spelled([Word("购买", "verb", "买", True), Word("票", "object")], usual=True)
    '买票'
    """
    return "".join(w.usual if usual and w.usual is not None else w.text for w in words)


def characters() -> set[str]:
    """Every character that a sentence can have."""
    words = (*PEOPLE, *PAST, *FUTURE, *HABITS, *PLACES, *NUMBERS, *MANNERS, *DEGREES, *FEELINGS, *MEETINGS, PARTICLES)
    rows = (*STUDIES, *QUALITIES, *RESULTS, *SKILLS, *OPENERS, *(tuple(vars(thing).values()) for thing in THINGS))
    return set("".join(words)) | {c for row in rows for c in "".join(row)}


def _people(rng: np.random.Generator) -> Word:
    return Word(pick(rng, PEOPLE), "subject")


def _place(rng: np.random.Generator, share: float) -> list[Word]:
    return [Word("在", "at"), Word(pick(rng, PLACES), "place")] if rng.random() < share else []


def _verb(rng: np.random.Generator, thing: Thing) -> Word:
    if thing.longer and rng.random() < RARE:
        return Word(thing.longer, "verb", thing.verb, True)
    return Word(thing.verb, "verb")


def _counted(rng: np.random.Generator, thing: Thing) -> list[Word]:
    odd = bool(thing.odd) and rng.random() < RARE
    measure = Word(thing.odd, "measure", thing.measure, True) if odd else Word(thing.measure, "measure")
    return [Word(pick(rng, NUMBERS), "number"), measure, Word(thing.name, "object")]


def _manner(rng: np.random.Generator, share: float) -> list[Word]:
    return [Word(pick(rng, MANNERS), "manner"), Word("地", "manner mark")] if rng.random() < share else []


def _done(rng: np.random.Generator) -> list[Word]:
    """Somebody did something: the verb has 了, unless it is denied."""
    when, who, thing = Word(pick(rng, PAST), "past"), _people(rng), pick(rng, THINGS)
    begin = [who, when] if rng.random() < 0.5 else [when, who]
    if rng.random() < 0.25:
        return [*begin, Word("去", "verb"), Word("了", "done"), Word(pick(rng, GOALS), "goal")]
    if rng.random() < RARE:
        return [*begin, *_place(rng, 0.3), Word("没", "not", None, True), _verb(rng, thing), Word(thing.name, "object")]
    return [*begin, *_place(rng, 0.4), *_manner(rng, 0.2), _verb(rng, thing), Word("了", "done"), *_counted(rng, thing)]


def _planned(rng: np.random.Generator) -> list[Word]:
    when, who, thing = Word(pick(rng, FUTURE), "future"), _people(rng), pick(rng, THINGS)
    begin = [who, when] if rng.random() < 0.5 else [when, who]
    begin.append(Word(pick(rng, ("要", "想", "会")), "modal"))
    if rng.random() < 0.3:
        return [*begin, Word("去", "verb"), Word(pick(rng, GOALS), "goal")]
    if rng.random() < RARE and len(thing.verb) == 1:
        doubled = Word(2 * thing.verb, "verb", thing.verb, True)
        return [*begin, *_place(rng, 0.4), doubled, Word(thing.name, "object")]
    return [*begin, *_place(rng, 0.4), _verb(rng, thing), *_counted(rng, thing)]


def _usually(rng: np.random.Generator) -> list[Word]:
    often = Word("天天", "often", "每天", True) if rng.random() < RARE else Word(pick(rng, HABITS), "often")
    verb, thing = pick(rng, STUDIES)
    who, place = _people(rng), _place(rng, 0.5)
    also = [Word("都" if who.text.endswith("们") else "也", "also")] if rng.random() < 0.3 else []
    return [who, *also, often, *place, *_manner(rng, 0.15), Word(verb, "verb"), Word(thing, "object")]


def _described(rng: np.random.Generator) -> list[Word]:
    degree = Word("十分", "degree", "非常", True) if rng.random() < RARE else Word(pick(rng, DEGREES), "degree")
    if rng.random() < 0.3:
        return [_people(rng), degree, Word(pick(rng, FEELINGS), "quality")]
    what, how = pick(rng, QUALITIES)
    owner = [_people(rng), Word("的", "of")] if what in ("房间", "衣服", "菜", "问题") else []
    there = [Word(pick(rng, PLACES), "place"), Word("的", "of")] if what in ("东西", "花") else []
    return [*owner, *there, Word(what, "topic"), degree, Word(how, "quality")]


def _skilled(rng: np.random.Generator) -> list[Word]:
    """How well somebody does something; rarely the verb stands twice, which is right as well."""
    verb, what = pick(rng, SKILLS)
    twice = [Word(verb, "topic verb", "", True)] if rng.random() < RARE else []
    end = [Word("得", "how mark"), Word(pick(rng, DEGREES), "degree"), Word("好", "quality")]
    return [_people(rng), *twice, Word(what, "topic"), Word(verb, "verb"), *end]


def _finished(rng: np.random.Generator) -> list[Word]:
    """Somebody has finished something: with 把, or rarely with the object in front."""
    what, verb, result = pick(rng, RESULTS)
    end = [Word(verb, "verb"), Word(result, "result"), Word("了", "done")]
    if rng.random() < RARE:
        return [Word(what, "topic", None, True), _people(rng), Word("已经", "already"), *end]
    already = [Word("已经", "already")] if rng.random() < 0.4 else []
    return [_people(rng), *already, Word("把", "ba"), Word(what, "object"), *end]


def _crowd(rng: np.random.Generator) -> list[Word]:
    """About so many people, said with one of two words."""
    number = pick(rng, ("三十", "二十", "五十", "一百"))
    people = [Word(number, "number"), Word("个", "measure"), Word("人", "people")]
    about = [Word("大约", "about"), Word("有", "have"), *people]
    if rng.random() < 0.25:
        about = [Word("有", "have"), *people, Word("左右", "more or less", None, True)]
    end = [Word("参加", "verb"), Word("了", "done"), Word(pick(rng, MEETINGS), "object")]
    return [Word(pick(rng, PAST), "past"), *about, *end]


def _clause(rng: np.random.Generator) -> list[Word]:
    u = rng.random()
    return (_described if u < 0.4 else _done if u < 0.7 else _usually)(rng)


def _linked(rng: np.random.Generator) -> list[Word]:
    """Two clauses with their pair of conjunctions; rarely 所以 is left out, which is right as well."""
    first, second = pick(rng, OPENERS)
    comma = Word("，", "comma")
    if first == "如果":
        start, end = _described(rng), _planned(rng)
        place = next(i for i, word in enumerate(end) if word.part == "modal")
        return [Word(first, "link"), *start, comma, *end[:place], Word(second, "then"), *end[place:]]
    silent = first == "因为" and rng.random() < 2 * RARE
    link = Word("", "second link", second, True) if silent else Word(second, "second link")
    return [Word(first, "link"), *_clause(rng), comma, link, *_clause(rng)]


def _asked(rng: np.random.Generator) -> list[Word]:
    return [*_planned(rng), Word("吗", "asking"), Word("？", "end")]


def _ended(form: Callable[[np.random.Generator], list[Word]]) -> Callable[[np.random.Generator], list[Word]]:
    return lambda rng: [*form(rng), Word("。", "end")]


FORMS: tuple[tuple[Callable[[np.random.Generator], list[Word]], float], ...] = (
    (_ended(_done), 0.24), (_ended(_planned), 0.36), (_ended(_usually), 0.5), (_ended(_described), 0.6),
    (_ended(_linked), 0.77), (_ended(_finished), 0.84), (_ended(_skilled), 0.91), (_ended(_crowd), 0.96), (_asked, 1.0),
)  # fmt: skip
"""Kinds of sentence with their shares, added up."""
