"""The alignment of many pairs at once, cell by cell against its rules written plainly."""

from __future__ import annotations

import random

import pytest

from fusion_jax.evals.cgec import Dictionaries
from fusion_jax.evals.cgec.alignment import MOST_PATHS, Path, minimal_paths
from fusion_jax.evals.cgec.costs import cost_table
from fusion_jax.evals.cgec.text import Tokens

KNOWN = Dictionaries(
    {"学": ("A", "a", "01"), "校": ("A", "a", "02"), "雪": ("B", "a", "01"), "孝": ("A", "a", "01")},
    {"校": frozenset({"xiao", "jiao"}), "孝": frozenset({"xiao"}), "学": frozenset({"xue"}), "雪": frozenset({"xue"})},
    {"学": frozenset({"孝"})},
)


def kept_operations(source: Tokens, target: Tokens, known: Dictionaries | None) -> dict[tuple[int, int], list[str]]:
    """Node -> operations of equal cost in their order; a T with its length."""
    tokens = list(dict.fromkeys(source + target))
    kinds, table = cost_table(tokens, known)
    row = {token: kind for token, kind in zip(tokens, kinds)}
    n, m = len(source), len(target)
    cost = {(i, 0): float(i) for i in range(n + 1)} | {(0, j): float(j) for j in range(m + 1)}
    kept = {(i, 0): ["D"] for i in range(n + 1)} | {(0, j): ["I"] for j in range(m + 1)}
    for i in range(n):
        for j in range(m):
            here = (i + 1, j + 1)
            if source[i] == target[j]:
                cost[here], kept[here] = cost[i, j], ["M"]
                continue
            turned, k = float("inf"), 1
            while i >= k and j >= k and cost[i - k + 1, j - k + 1] != cost[i - k, j - k]:
                if sorted(source[i - k : i + 1]) == sorted(target[j - k : j + 1]):
                    turned = cost[i - k, j - k] + k
                    break
                k += 1
            each = {
                f"T{k + 1}": turned, "S": cost[i, j] + float(table[row[source[i]], row[target[j]]]),
                "I": cost[i + 1, j] + 1, "D": cost[i, j + 1] + 1,
            }  # fmt: skip
            cost[here] = min(each.values())
            kept[here] = [op for op, value in each.items() if value == cost[here]]
    return kept


def plain_paths(source: Tokens, target: Tokens, known: Dictionaries | None) -> list[Path]:
    """The paths depth first, one match a step; at most one more than are followed."""
    kept, found = kept_operations(source, target, known), list[Path]()

    def follow(i: int, j: int, path: Path) -> None:
        if len(found) > MOST_PATHS:
            return
        if i + j == 0:
            found.append(path)
            return
        for op in kept[i, j][: None if abs(len(source) - len(target)) <= 10 else 1]:
            size = int(op[1:] or 1)
            a, b = i - size * (op[0] != "I"), j - size * (op[0] != "D")
            follow(a, b, [(op[0], a, i, b, j), *path])

    follow(len(source), len(target), [])
    return found


def one_by_one(path: Path) -> Path:
    """A path with its runs of matches taken apart."""
    return [
        (op, i + x, i + x + 1, j + x, j + x + 1) if op == "M" else (op, i, k, j, h)
        for op, i, k, j, h in path
        for x in range(k - i if op == "M" else 1)
    ]


def random_pair(rng: random.Random) -> tuple[Tokens, Tokens]:
    alphabet = rng.choice(["ab", "abc", "abcdefg", "ab，。学校", "学校雪孝消笑，"])
    source = [rng.choice(alphabet) for _ in range(rng.randint(0, 16))]
    target = list(source) if rng.random() < 0.6 else [rng.choice(alphabet) for _ in range(rng.randint(0, 16))]
    for _ in range(rng.randint(0, 3)):
        a, b, c = sorted(rng.choices(range(len(target) + 1), k=3))
        target = [*target[:a], *target[b:c], *target[a:b], *rng.choices(alphabet, k=rng.randint(0, 1)), *target[c:]]
    return tuple(source), tuple(target)


@pytest.mark.parametrize("known", [None, KNOWN], ids=["no dictionaries", "dictionaries"])
def test_every_path_in_its_order_is_that_of_the_plain_rules(known):
    rng = random.Random(11)
    pairs = [random_pair(rng) for _ in range(500)]
    turned = cut = 0
    for pair, found in zip(pairs, minimal_paths(pairs, known)):
        wanted = plain_paths(*pair, known)
        turned += any(step[0] == "T" for path in wanted for step in path)
        cut += found.cut
        assert found.cut == (len(wanted) > MOST_PATHS)
        assert [one_by_one(path) for path in found.paths] == (wanted[:1] if found.cut else wanted)
    assert turned > 50


def test_the_first_path_alone_is_the_first_of_all():
    rng = random.Random(12)
    pairs = [random_pair(rng) for _ in range(200)]
    alone = minimal_paths(pairs, every=False)
    assert [one.paths for one in alone] == [one.paths[:1] for one in minimal_paths(pairs)]
    assert any(len(one.paths) > 1 for one in minimal_paths(pairs))


def test_a_pair_alone_gives_what_it_gives_among_others():
    rng = random.Random(13)
    pairs = [random_pair(rng) for _ in range(60)]
    assert minimal_paths(pairs) == [minimal_paths([pair])[0] for pair in pairs]
