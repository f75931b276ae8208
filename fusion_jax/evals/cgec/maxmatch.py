"""The word-level M2 score (MaxMatch): a hypothesis is read as the edits that make most of those of an annotator.

Source: Dahlmeier and Ng (2012), as NLPCC 2018 used it. See `lattice` for the way that is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fusion_jax.arguments import texts
from fusion_jax.errors import InputError
from fusion_jax.evals.cgec.edits import NOOP, Edit
from fusion_jax.evals.cgec.lattice import MOST_KEPT, Arcs, Node, lattice_of
from fusion_jax.evals.cgec.m2_files import Annotated
from fusion_jax.evals.cgec.report import Compared, Counts, Head, Report, by_exact_f, reported, total
from fusion_jax.evals.cgec.text import Tokens

ARC, MADE = 1 << 20, -(1 << 40)  # an arc outside the annotator's edits, one of these edits; any other edit costs 1
NEVER = 1 << 60


class _Gold(NamedTuple):
    """An annotator's edit. place: its number among those that insert at the same place, else -1."""

    number: int
    end: Node
    place: int


class _Values(NamedTuple):
    """Least cost to the end: outside an edit, and within one that has kept 0, 1, ... words."""

    outside: int
    inside: tuple[int, ...]


def score_m2(
    sentences: Sequence[Annotated],
    hypotheses: Sequence[Sequence[str]],
    *,
    beta: float = 0.5,
    segmented: str = "given",
    compat_start: bool = False,
) -> Report:
    """Precision, recall and F of hypotheses by the M2 scorer, with each sentence's own counts.

    Args:
      sentences: sources and annotators' edits in words, from `read_m2`.
      hypotheses: the words of each hypothesis, segmented as the sources are.
      beta: weight of recall in F.
      segmented: how they were segmented, which the report states.
      compat_start: count as the published program does, where an inserted text of several words in front of the first
        word is never one of the annotator's.

    Raises:
      InputError: not one hypothesis for each sentence, a hypothesis that is no list of words or is too long.

    >>> source = Annotated(("他", "去", "学校"), ((Edit(1, 1, "M", "昨天"),),))
    >>> report = score_m2([source], [["他", "昨天", "去", "了", "学校"]])
    >>> report.counts, report.f
    (Counts(tp=1, fp=1, fn=0), 0.5556)
    """
    if len(sentences) != len(hypotheses):
        problem = f"{len(hypotheses)} hypotheses stand for {len(sentences)} sentences"
        raise InputError(problem, field="hypotheses", cure="Give one for every sentence")
    compared = []
    for number, (sentence, words) in enumerate(zip(sentences, hypotheses), 1):
        try:
            hypothesis = tuple(texts(words, "hypothesis"))
            compared.append(compare_words(sentence, hypothesis, compat_start))
        except InputError as error:
            raise InputError(error.problem, record=number, field="hypothesis", cure=error.cure) from None
    joined = [" ".join(words) for words in hypotheses]
    return reported(sentences, joined, compared, by_exact_f, Head("m2", f"words {segmented}", beta))


def compare_words(sentence: Annotated, hypothesis: Tokens, compat_start: bool = False) -> list[Compared]:
    """A hypothesis beside each annotator."""
    if hypothesis == sentence.tokens:
        return [_counted([], gold) for gold in sentence.annotators]
    arcs = lattice_of(sentence.tokens, hypothesis)
    return [
        _counted(_walk(arcs, hypothesis, _gold_arcs(arcs, sentence.tokens, hypothesis, gold, compat_start)), gold)
        for gold in sentence.annotators
    ]


def _counted(edits: list[tuple[Edit, int]], gold: Sequence[Edit]) -> Compared:
    """Counts of the edits that a hypothesis is read as, each with the number of the annotator's edit or -1. Types are
    the annotator's where the edit is one of theirs; without what stands behind a colon."""
    made = {number for _, number in edits}
    shown = tuple(gold[number]._replace(correction=edit.correction) if number >= 0 else edit for edit, number in edits)
    found = Counter((edit.type.partition(":")[0], 0 if number >= 0 else 1) for edit, (_, number) in zip(shown, edits))
    missed = [edit for number, edit in enumerate(gold) if number not in made and edit.type != NOOP.type]
    found.update((edit.type.partition(":")[0], 2) for edit in missed)
    types = {kind: Counts(*(found[kind, place] for place in range(3))) for kind in dict.fromkeys(k for k, _ in found)}
    return Compared(shown or (NOOP,), total(types.values()), types)


def _gold_arcs(
    arcs: Arcs, source: Tokens, hypothesis: Tokens, gold: Sequence[Edit], compat_start: bool
) -> dict[Node, list[_Gold]]:
    """Where an annotator's edits can be made: node -> edits that begin there."""
    found: dict[Node, list[_Gold]] = {}
    least: dict[tuple[Node, Node], int] = {}
    places: Counter[int] = Counter()
    for number, (start, end, _, correction) in enumerate(gold):
        if start < 0:
            continue
        place = -1
        if start == end:
            place = places[start]
            places[start] += 1
        for text in dict.fromkeys(correction.split("||")):
            words = tuple(text.split())
            if words == source[start:end] or (compat_start and start == end == 0 and len(words) > 1):
                continue
            for j in range(len(hypothesis) - len(words) + 1):
                first, last = (start, j), (end, j + len(words))
                if first not in arcs or last not in arcs or hypothesis[j : last[1]] != words:
                    continue
                if (first, last) not in least:
                    least[first, last] = _kept_between(arcs, first, last)
                if least[first, last] <= MOST_KEPT:
                    found.setdefault(first, []).append(_Gold(number, last, place))
    return found


def _kept_between(arcs: Arcs, first: Node, last: Node) -> int:
    """The fewest words that a way between two nodes keeps; more than `MOST_KEPT` where there is none."""
    kept = {first: 0}
    for i in range(first[0], last[0] + 1):
        for j in range(first[1], last[1] + 1):
            if (i, j) not in kept:
                continue
            for behind, keeps in arcs[i, j]:
                more = kept[i, j] + keeps
                if more <= MOST_KEPT and more < kept.get(behind, MOST_KEPT + 1):
                    kept[behind] = more
    return kept.get(last, MOST_KEPT + 1)


def _walk(arcs: Arcs, hypothesis: Tokens, gold: dict[Node, list[_Gold]]) -> list[tuple[Edit, int]]:
    """The edits on the cheapest way, each with the number of the annotator's edit that it is, or -1."""
    values = _values(arcs, gold)
    node, place, found = (0, 0), 0, list[tuple[Edit, int]]()
    while arcs[node]:
        value = values[node][place].outside
        start, number = node, -1
        for one in gold.get(node, ()):
            if one.place < place and one.place >= 0:
                continue
            if MADE + values[one.end][one.place + 1].outside == value:
                node, place, number = one.end, one.place + 1, one.number
                break
        else:
            kept = next((v for v, keeps in arcs[node] if keeps and ARC + values[v][0].outside == value), None)
            if kept is not None:
                node, place = kept, 0
                continue
            node, place = _behind_edit(arcs, values, node, place, value - 1)
        kind = "M" if start[0] == node[0] else "R" if start[1] == node[1] else "S"
        found.append((Edit(start[0], node[0], kind, " ".join(hypothesis[start[1] : node[1]])), number))
    return found


def _behind_edit(arcs: Arcs, values: dict[Node, list[_Values]], node: Node, place: int, value: int) -> tuple[Node, int]:
    """Where an edit that begins at a node ends. value: the least cost from there, with its beginning paid for."""
    kept, begun = 0, False
    while not begun or values[node][place].outside != value:
        for behind, keeps in arcs[node]:
            next_place = place if behind[0] == node[0] else 0
            more = kept + keeps
            if more <= MOST_KEPT and ARC + values[behind][next_place].inside[more] == value:
                node, place, kept, value, begun = behind, next_place, more, value - ARC, True
                break
    return node, place


def _values(arcs: Arcs, gold: dict[Node, list[_Gold]]) -> dict[Node, list[_Values]]:
    """The least costs to the end from each node, one for each number of insertions of its place that are used up."""
    levels: dict[int, int] = {}
    for (i, _), edits in gold.items():
        levels[i] = max([levels.get(i, 0), *(edit.place + 1 for edit in edits)])
    values: dict[Node, list[_Values]] = {}
    for node in reversed(arcs):
        places = range(levels.get(node[0], 0) + 1)
        values[node] = [_least(arcs[node], values, node, place, gold.get(node, ())) for place in places]
    return values


def _least(
    ways: Sequence[tuple[Node, bool]], values: dict[Node, list[_Values]], node: Node, place: int, gold: Sequence[_Gold]
) -> _Values:
    """The least costs of a node by those of the nodes behind it."""
    if not ways:
        return _Values(0, (0,) * (MOST_KEPT + 1))
    outside, inside = NEVER, [NEVER] * (MOST_KEPT + 1)
    for behind, keeps in ways:
        there = values[behind][place if behind[0] == node[0] else 0]
        if keeps:
            outside = min(outside, ARC + there.outside)
        for kept in range(MOST_KEPT + 1 - keeps):
            inside[kept] = min(inside[kept], ARC + there.inside[kept + keeps])
    for edit in gold:
        if edit.place < 0 or edit.place >= place:
            outside = min(outside, MADE + values[edit.end][edit.place + 1].outside)
    outside = min(outside, 1 + inside[0])
    return _Values(outside, tuple(min(one, outside) for one in inside))
