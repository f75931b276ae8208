"""The word-level score against every way of reading small sentences, tried one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator

from fusion_jax.evals.cgec import NOOP, Annotated, Counts, Edit, score_m2
from fusion_jax.evals.cgec.lattice import lattice_of
from fusion_jax.evals.cgec.maxmatch import compare_words
from fusion_jax.evals.cgec.text import Tokens

Node = tuple[int, int]
Arcs = dict[Node, dict[Node, bool]]


def steps(source: Tokens, target: Tokens, node: Node, replace: int) -> Iterator[tuple[Node, int, bool]]:
    """(next node, cost, whether a word is kept) of everything that can be done at a node."""
    i, j = node
    if i < len(source):
        yield (i + 1, j), 1, False
    if j < len(target):
        yield (i, j + 1), 1, False
    if i < len(source) and j < len(target):
        same = source[i] == target[j]
        yield (i + 1, j + 1), 0 if same else replace, same


def all_shortest(source: Tokens, target: Tokens) -> Arcs:
    """The arcs of all ways of least cost, found by walking every way."""
    arcs: Arcs = {}
    for replace in (1, 2):
        best, ways = 10**6, list[list[tuple[Node, Node, bool]]]()
        waiting: list[tuple[Node, int, list[tuple[Node, Node, bool]]]] = [((0, 0), 0, [])]
        while waiting:
            node, cost, way = waiting.pop()
            if cost > best:
                continue
            if node == (len(source), len(target)):
                ways = [*(ways if cost == best else []), way]
                best = cost
            for behind, more, keeps in steps(source, target, node, replace):
                waiting.append((behind, cost + more, [*way, (node, behind, keeps)]))
        for way in ways:
            for node, behind, keeps in way:
                arcs.setdefault(node, {})[behind] = keeps
    return arcs


def edits_from(arcs: Arcs, node: Node) -> Iterator[tuple[Node, int]]:
    """(end, arcs) of every edit that begins at a node: at most two words kept, something changed."""
    waiting = [(node, 0, 0, False)]
    while waiting:
        at, count, kept, changed = waiting.pop()
        if changed:
            yield at, count
        for behind, keeps in arcs.get(at, {}).items():
            if kept + keeps <= 2:
                waiting.append((behind, count + 1, kept + keeps, changed or not keeps))


def best_reading(source: Tokens, target: Tokens, gold: tuple[Edit, ...], arcs: Arcs) -> tuple[int, int, int]:
    """(- edits of the annotator, arcs of all else, other edits), the least of all readings."""

    def readings(node: Node, used: tuple[int, ...]) -> tuple[int, int, int]:
        if node == (len(source), len(target)):
            return 0, 0, 0
        found = []
        for behind, keeps in arcs[node].items():
            if keeps:
                g, d, c = readings(behind, used)
                found.append((g, d + 1, c))
        for end, count in set(edits_from(arcs, node)):
            g, d, c = readings(end, used)
            found.append((g, d + count, c + 1))
            for number, edit in enumerate(gold):
                last = max((u for u in used if gold[u][:2] == edit[:2]), default=-1)
                words = tuple(edit.correction.split())
                same = (edit.start, edit.end) == (node[0], end[0]) and words == target[node[1] : end[1]]
                if same and words != source[edit.start : edit.end] and number > last:
                    g, d, c = readings(end, (*used, number))
                    found.append((g - 1, d, c))
        return min(found)

    return readings((0, 0), ())


def random_case(rng: random.Random) -> tuple[Tokens, Tokens, tuple[Edit, ...]]:
    alphabet = rng.choice(["ab", "abc", "abcd"])
    source = [rng.choice(alphabet) for _ in range(rng.randint(0, 4))]
    target = list(source) if rng.random() < 0.6 else [rng.choice(alphabet) for _ in range(rng.randint(0, 4))]
    for _ in range(rng.randint(0, 2)):
        place = rng.randint(0, len(target))
        target[place : place + rng.randint(0, 1)] = rng.choices(alphabet, k=rng.randint(0, 1))
    gold, place = [], 0
    while place <= len(source) and rng.random() < 0.8:
        start = rng.randint(place, min(len(source), place + 1))
        end = min(len(source), start + rng.choice((0, 0, 1, 1, 2)))
        first = min(len(target), max(0, start + rng.randint(-1, 1)))
        gold.append(Edit(start, end, "S", " ".join(target[first : first + rng.randint(0, 2)])))
        place = end + (rng.random() < 0.5)
    return tuple(source), tuple(target), tuple(gold)


def test_readings_are_the_best_of_all():
    rng = random.Random(21)
    made = several = 0
    for _ in range(1500):
        source, target, gold = random_case(rng)
        arcs = all_shortest(source, target)
        assert {node: dict(ways) for node, ways in lattice_of(source, target).items() if ways} == arcs
        [found] = compare_words(Annotated(source, (gold or (NOOP,),)), target)
        g, _, c = best_reading(source, target, gold, arcs)
        assert found.counts == Counts(-g, c, len(gold) + g), (source, target, gold)
        made, several = made - g, several + (g < -1)
    assert made > 300 and several > 30


def test_the_edits_that_are_shown_make_the_hypothesis():
    rng = random.Random(22)
    for _ in range(300):
        source, target, gold = random_case(rng)
        [found] = compare_words(Annotated(source, (gold or (NOOP,),)), target)
        words = list(source)
        for edit in reversed([e for e in found.edits if e != NOOP]):
            words[edit.start : edit.end] = edit.correction.split()
        assert tuple(words) == target


def test_alternatives_of_a_correction_and_types():
    sentence = Annotated(
        tuple(["他", "在", "桌子", "上", "写"]), ((Edit(1, 4, "S:OTHER", "书房||房 里"), Edit(5, 5, "M", "字")),)
    )
    report = score_m2([sentence], [["他", "房", "里", "写", "完"]])
    assert report.types == {"S": Counts(1, 0, 0), "M": Counts(0, 1, 1)}
    assert report.items[0].edits == (Edit(1, 4, "S:OTHER", "房 里"), Edit(5, 5, "M", "完"))


def test_edits_keep_two_words_and_no_third():
    """Two changes with two kept words between them are one proposed edit, with three they are two."""
    for between, proposed in ((2, 1), (3, 2)):
        kept = ["的"] * between
        report = score_m2([Annotated(("甲", *kept, "乙"), ((NOOP,),))], [["丙", *kept, "丁"]])
        assert report.counts == (0, proposed, 0)


def test_several_words_in_front_count_unless_as_published():
    sentence = Annotated(("去", "学校"), ((Edit(0, 0, "M", "他 昨天"),),))
    hypothesis = [["他", "昨天", "去", "学校"]]
    assert score_m2([sentence], hypothesis).counts == (1, 0, 0)
    assert score_m2([sentence], hypothesis, compat_start=True).counts == (0, 1, 1)


def test_the_annotator_depends_on_what_was_counted_before():
    """One that leaves the sentence is better for a hypothesis that makes one of the other's two edits only where recall
    has something to lose."""
    half = Annotated(("甲", "乙", "丙", "丁", "戊"), ((Edit(0, 1, "S", "一"), Edit(4, 5, "S", "五")), (NOOP,)))
    items = [(half, ["一", "乙", "丙", "丁", "戊"]), (Annotated(("甲",), ((NOOP,),)), ["乙"])]
    for order in (items, items[::-1]):
        report = score_m2([s for s, _ in order], [h for _, h in order])
        assert report.items[order.index(items[0])].reference == 0
        assert report.counts == (1, 1, 1)
