"""The Levenshtein lattice of two sentences of words, and the way through it that makes most of an annotator's edits.

Legend: node (i, j) stands behind i words of the source and j of the hypothesis. An arc keeps, deletes, inserts or
replaces one word. The lattice has the arcs of every shortest way from (0, 0) to the end where a replacement costs 1,
and of every shortest way where it costs 2.

An edit is a way over one or more arcs that keeps at most `MOST_KEPT` words and changes something. The way that is taken
through the lattice is cut into edits and kept words, so that, in this order,

  most of the annotator's edits are made, each once, those that insert at one place in the annotator's order;
  the arcs of all else are fewest;
  the other edits are fewest.

Source: MaxMatch (Dahlmeier and Ng, 2012), whose program gives arcs of an annotator's edits a large negative weight.
Here nodes are gone through in their order, in which no arc leads back, once for each annotator.
"""

from __future__ import annotations

from collections.abc import Iterator

from rapidfuzz.distance import Indel, Levenshtein

from fusion_jax.errors import InputError
from fusion_jax.evals.cgec.text import Tokens

MOST_KEPT = 2  # words that an edit may leave as they are
LARGEST = 1 << 20  # nodes of a lattice before those on no shortest way are left out
Node = tuple[int, int]
Arcs = dict[Node, list[tuple[Node, bool]]]  # node -> (next node, whether a word is kept), nodes in order


def lattice_of(source: Tokens, hypothesis: Tokens) -> Arcs:
    """The arcs of the lattice, nodes in an order in which arcs lead forwards; the last node has none.

    Raises:
      InputError: it would be too large.

    >>> lattice_of(("a", "b"), ("a", "c"))[1, 1]
    [((1, 2), False), ((2, 1), False), ((2, 2), False)]
    """
    n, m = len(source), len(hypothesis)
    if (n + 1) * (m + 1) > LARGEST:
        raise InputError(f"has {m} words beside {n} of the source", field="hypothesis", cure="Cut the sentence")
    found: dict[Node, set[Node]] = {}
    for cost in (1, 2):
        for node, behind in _shortest(source, hypothesis, cost):
            found.setdefault(node, set()).add(behind)
    found.setdefault((n, m), set())
    return {
        node: [(behind, _keeps(source, hypothesis, node, behind)) for behind in sorted(found[node])]
        for node in sorted(found)
    }


def _keeps(source: Tokens, hypothesis: Tokens, node: Node, behind: Node) -> bool:
    i, j = node
    return behind == (i + 1, j + 1) and source[i] == hypothesis[j]


def _shortest(source: Tokens, hypothesis: Tokens, replace: int) -> Iterator[tuple[Node, Node]]:
    """The arcs of all shortest ways. Nodes further from the diagonal than the distance allows are not looked at."""
    n, m = len(source), len(hypothesis)
    whole = (Levenshtein if replace == 1 else Indel).distance(source, hypothesis)
    spare = (whole - abs(m - n)) // 2
    low, high = min(0, m - n) - spare, max(0, m - n) + spare
    far = n + m + 1
    rows: list[dict[int, int]] = []
    for i in range(n + 1):
        above, row = rows[-1] if rows else {}, dict[int, int]()
        word = source[i - 1] if i else None
        left = far
        for j in range(max(0, i + low), min(m, i + high) + 1):
            if j and i:
                step = 0 if word == hypothesis[j - 1] else replace
                left = min(above.get(j - 1, far) + step, above.get(j, far) + 1, left + 1)
            else:
                left = i + j
            row[j] = left
        rows.append(row)
    waiting, seen = [(n, m)], {(n, m)}
    while waiting:
        i, j = waiting.pop()
        here = rows[i][j]
        before = []
        if i and j:
            step = 0 if source[i - 1] == hypothesis[j - 1] else replace
            before += [(i - 1, j - 1)] if rows[i - 1].get(j - 1, far) + step == here else []
        before += [(i - 1, j)] if i and rows[i - 1].get(j, far) + 1 == here else []
        before += [(i, j - 1)] if j and rows[i].get(j - 1, far) + 1 == here else []
        for node in before:
            yield node, (i, j)
            if node not in seen:
                seen.add(node)
                waiting.append(node)
