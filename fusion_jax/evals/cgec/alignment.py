"""The cheapest ways from one sequence of characters to another, by dynamic programming over many pairs at once.

Legend: n, m characters of source and target; node (i, j) stands behind i and j of them; s = i + j its anti-diagonal.

Two equal characters are matched (M) at no cost, and nothing else is tried. Otherwise the least of these is taken, and
every operation that costs exactly as little is kept, in this order:

  T  a block is put into another order: the shortest blocks of k + 1 >= 2 characters that end here and hold the same
     characters, at cost k, looked for while the costs of neighbours on the diagonal differ
  S  one character replaces another, at the cost of `costs.cost_table`
  I  a character is inserted, at cost 1
  D  a character is deleted, at cost 1

Costs are float64 and added one by one in the order of the program that they come from, since which operations tie
depends on the last bit. Source: ChERRANT (arXiv 2204.10994).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.evals.cgec.costs import Dictionaries, cost_table
from fusion_jax.evals.cgec.text import Tokens

MATCH, TURN, REPLACE, INSERT, DELETE = 1, 2, 4, 8, 16  # the order in which paths are followed
LETTERS = {MATCH: "M", TURN: "T", REPLACE: "S", INSERT: "I", DELETE: "D"}
LARGEST = (
    1 << 21
)  # cells of a pair, see `_cells`, and of the pairs of a batch together: 1,023 characters beside as many
MOST_PATHS = 1024
FAR = 10  # characters; of pairs whose lengths differ by more the first path alone is followed

Step = tuple[str, int, int, int, int]  # operation, its span of the source, its span of the target
Path = list[Step]


class Paths(NamedTuple):
    """The minimal paths of a pair in the order in which they are found, matches in runs. cut: there are more than
    `MOST_PATHS`, and this is the first one alone."""

    paths: list[Path]
    cut: bool


@dataclass(frozen=True)
class _Batch:
    """Pairs without their common endings, padded to N and M characters; padding is equal to nothing.

    source, target: int64[B, N], int64[B, M], a number for each character. kinds, table: see `costs.cost_table`.
    """

    numbers: list[int]
    sizes: np.ndarray
    source: np.ndarray
    target: np.ndarray
    kinds: np.ndarray
    table: np.ndarray


def minimal_paths(
    pairs: Sequence[tuple[Tokens, Tokens]], known: Dictionaries | None = None, *, every: bool = True
) -> list[Paths]:
    """The minimal paths of each pair.

    Args:
      known: dictionaries of alike characters. every: all paths, unless the lengths differ by more than `FAR`, else the
        first one.

    Raises:
      InputError: a pair is too long; names its number from 1.

    >>> minimal_paths([(("怀", "境"), ("环", "境"))])[0].paths
    [[('S', 0, 1, 0, 1), ('M', 1, 2, 1, 2)]]
    """
    for number, (source, target) in enumerate(pairs, 1):
        check_size(source, target, number)
    found: list[Paths] = [Paths([], False)] * len(pairs)
    endings = [_common_ending(*pair) for pair in pairs]
    for batch in _batches(pairs, endings, known):
        ops, turns = _operations(batch)
        every_byte, (_, count, width) = ops.tobytes(), ops.shape
        for b, number in enumerate(batch.numbers):
            source, target = pairs[number]
            size = (len(source) - endings[number], len(target) - endings[number])
            lattice = _Lattice(every_byte, b, count, width, turns)
            found[number] = _follow(lattice, size, endings[number], every and abs(size[0] - size[1]) <= FAR)
    return found


def check_size(source: Tokens, target: Tokens, number: int) -> None:
    """Refuse a pair that is too long to align; raises InputError with its number."""
    if _cells(len(source), len(target)) > LARGEST:
        ending = _common_ending(source, target)
        n, m = len(source) - ending, len(target) - ending
        if _cells(n, m) > LARGEST:
            problem = f"source and target have {n} and {m} characters before their common ending, too many to align"
            raise InputError(problem, record=number, field="target", cure="Cut the sentence into several")


def _cells(n: int, m: int) -> int:
    """What is stored for a pair: anti-diagonals by places of the source."""
    return (n + m + 1) * (n + 1)


def _common_ending(source: Tokens, target: Tokens) -> int:
    """How many last characters are equal: they are matched on every path."""
    count = 0
    for a, b in zip(reversed(source), reversed(target)):
        if a != b:
            break
        count += 1
    return count


def _batches(
    pairs: Sequence[tuple[Tokens, Tokens]], endings: Sequence[int], known: Dictionaries | None
) -> Iterator[_Batch]:
    """Pairs of like sizes together, of at most `LARGEST` cells."""
    sizes = [(len(a) - e, len(b) - e) for (a, b), e in zip(pairs, endings)]
    order = sorted(range(len(pairs)), key=lambda p: (sum(sizes[p]), sizes[p]))
    group: list[int] = []
    n = m = 0
    for p in order:
        n, m = max(n, sizes[p][0]), max(m, sizes[p][1])
        if group and _cells(n, m) * (len(group) + 1) > LARGEST:
            yield _batch(group, pairs, sizes, known)
            group, (n, m) = [], sizes[p]
        group.append(p)
    if group:
        yield _batch(group, pairs, sizes, known)


def _batch(
    group: list[int],
    pairs: Sequence[tuple[Tokens, Tokens]],
    sizes: Sequence[tuple[int, int]],
    known: Dictionaries | None,
) -> _Batch:
    numbers: dict[str, int] = {}

    def padded(side: int, padding: int) -> np.ndarray:
        out = np.full((len(group), max(sizes[p][side] for p in group)), padding, np.int64)
        for row, p in zip(out, group):
            n = sizes[p][side]
            row[:n] = [numbers.setdefault(token, len(numbers)) for token in pairs[p][side][:n]]
        return out

    source, target = padded(0, -1), padded(1, -2)
    kinds, table = cost_table(list(numbers), known)
    return _Batch(group, np.array([sizes[p] for p in group]), source, target, kinds, table)


def _operations(batch: _Batch) -> tuple[np.ndarray, dict[tuple[int, int, int], int]]:
    """uint8[s, B, i], the sum of the operations that are kept at each node; (b, i, j) -> characters of its T."""
    (count, n), m = batch.source.shape, batch.target.shape[1]
    cost = np.full((n + m + 1, count, n + 1), np.inf)
    ops = np.zeros(cost.shape, np.uint8)
    runs = np.zeros(cost.shape, np.int16)  # steps back along the diagonal over which neighbours' costs differ
    for s in range(n + m + 1):
        if s <= n:
            cost[s, :, s], ops[s, :, s] = s, DELETE if s else 0
        if s <= m:
            cost[s, :, 0], ops[s, :, 0] = s, INSERT if s else 0
    rows, columns = batch.kinds[batch.source] * len(batch.table), batch.kinds[batch.target][:, ::-1]
    mirrored, table, blocks = batch.target[:, ::-1], batch.table.ravel(), _blocks(batch)
    turns: dict[tuple[int, int, int], int] = {}
    for s in range(2, n + m + 1):
        low, high = max(1, s - m), min(n, s - 1)
        here, before, back = slice(low, high + 1), slice(low - 1, high), slice(m - s + low, m - s + high + 1)
        diagonal = cost[s - 2, :, before]
        replaced = diagonal + table.take(rows[:, before] + columns[:, back])
        inserted, deleted = cost[s - 1, :, here] + 1, cost[s - 1, :, before] + 1
        least = np.minimum(np.minimum(replaced, inserted), deleted)
        b, i, k = blocks.get(s, _NO_BLOCKS)
        if len(b):
            open_ = runs[s - 2, b, i - 1] >= k
            b, i, k = b[open_], i[open_], k[open_]
            turned = cost[s - 2 - 2 * k, b, i - 1 - k] + k
            least[b, i - low] = np.minimum(least[b, i - low], turned)
        kept = (replaced == least) * np.uint8(REPLACE)
        kept += (inserted == least) * np.uint8(INSERT) + (deleted == least) * np.uint8(DELETE)
        if len(b):
            best = turned == least[b, i - low]
            kept[b[best], i[best] - low] |= TURN
            turns.update({(x, y, s - y): z + 1 for x, y, z in zip(*(a[best].tolist() for a in (b, i, k)))})
        equal = batch.source[:, before] == mirrored[:, back]
        cost[s, :, here] = np.where(equal, diagonal, least)
        ops[s, :, here] = np.where(equal, np.uint8(MATCH), kept)
        runs[s, :, here] = np.where(cost[s, :, here] != diagonal, runs[s - 2, :, before] + 1, 0)
    return ops, turns


_NO_BLOCKS = (np.zeros(0, np.int64),) * 3


def _blocks(batch: _Batch, seed: int = 0) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of the same characters that end at a node: s -> (b, i, k), for each node the shortest with k >= 1.

    The sum of random numbers of the characters up to i less those up to j is the same at both ends of such a block. The
    sums of a pair, less a number that tells diagonals apart, are sorted with their places, and neighbours compared; two
    sums that are alike but for their last bits, by chance, have the numbers drawn again.
    """
    (count, n), m = batch.source.shape, batch.target.shape[1]
    weights = np.random.default_rng(seed).integers(0, 2**64, len(batch.kinds) + 3, np.uint64)
    sums = [np.zeros((count, size + 1), np.uint64) for size in (n, m)]
    for total, side in zip(sums, (batch.source, batch.target)):
        np.cumsum(weights[side + 2] - weights[-1], axis=1, out=total[:, 1:])
    whole = (sums[0][:, :, None] - sums[1][:, None, :]).reshape(count, -1)
    bits = np.uint64(whole.shape[1].bit_length())
    places = np.sort((whole >> bits << bits) | np.arange(whole.shape[1], dtype=np.uint64), axis=1)
    b, at = np.nonzero(places[:, 1:] >> bits == places[:, :-1] >> bits)
    low = (np.uint64(1) << bits) - np.uint64(1)
    first, last = ((places[b, at + behind] & low).astype(np.int64) for behind in (0, 1))
    if (whole[b, first] != whole[b, last]).any():
        return _blocks(batch, seed + 1)
    k = (last - first) // (m + 2) - 1
    i, j = np.divmod(last, m + 1)
    blocks = (k >= 1) & (i <= batch.sizes[b, 0]) & (j <= batch.sizes[b, 1])
    b, i, k, s = (found[blocks] for found in (b, i, k, i + j))
    order = np.argsort(s, kind="stable")
    each, starts = np.unique(s[order], return_index=True)
    groups = np.split(order, starts[1:]) if len(each) else []
    return {one: (b[group], i[group], k[group]) for one, group in zip(each.tolist(), groups)}


@dataclass(frozen=True)
class _Lattice:
    """The kept operations of pair b of a batch."""

    ops: bytes
    b: int
    count: int
    width: int
    turns: dict[tuple[int, int, int], int]

    def at(self, i: int, j: int) -> int:
        return self.ops[((i + j) * self.count + self.b) * self.width + i]


def _follow(lattice: _Lattice, size: tuple[int, int], ending: int, every: bool) -> Paths:
    """The paths back from the last node, depth first; a path under way is a chain (step, what follows it)."""
    i, j = size
    waiting: list[tuple[int, int, Any]] = [(i, j, (("M", i, i + ending, j, j + ending), None) if ending else None)]
    paths: list[Path] = []
    while waiting:
        i, j, chain = waiting.pop()
        while i or j:
            kept = lattice.at(i, j)
            op = kept & -kept
            others = (kept - op) if every else 0
            while others:
                other = 1 << (others.bit_length() - 1)  # the last one first, so that the first is on top
                others -= other
                waiting.append(_back(lattice, other, i, j, chain))
            i, j, chain = _back(lattice, op, i, j, chain)
        if len(paths) == MOST_PATHS:
            return Paths(paths[:1], True)
        path = []
        while chain:
            step, chain = chain
            path.append(step)
        paths.append(path)
    return Paths(paths, False)


def _back(lattice: _Lattice, op: int, i: int, j: int, chain: Any) -> tuple[int, int, Any]:
    """One step back from node (i, j), of matches the whole run: the node there, and the chain with the step."""
    if op == MATCH:
        a, b = i - 1, j - 1
        while lattice.at(a, b) == MATCH:
            a, b = a - 1, b - 1
        if chain and chain[0][0] == "M":
            (_, _, i, _, j), chain = chain
    else:
        length = lattice.turns[lattice.b, i, j] if op == TURN else 1
        a, b = i - length * (op != INSERT), j - length * (op != DELETE)
    return a, b, ((LETTERS[op], a, i, b, j), chain)
