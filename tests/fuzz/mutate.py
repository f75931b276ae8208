"""Seeded damage to JSON values and to bytes, and the promise that every reader must keep: InputError or a result."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

from fusion_jax.errors import InputError

SECONDS = float(os.environ.get("FUSION_JAX_FUZZ_SECONDS", "4"))
PATIENCE = 10.0  # seconds that one case may take on a busy machine
GROWTH = 1 << 20  # KiB that all cases of one kind may add to the peak memory
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, 1e308, -0.0, 10**18, 2**31, -(10**18), 10**250, "", " ", "\n", "0", "x" * 70_000,
    "\ud800", "\x00", "\u202e", "a\rb", "é" * 50, [], {}, [[]], [{}], {"": ""}, ["x"], [None], [1, "x", None],
    {"role": "user", "content": "x"}, [{"role": "assistant", "content": "x"}], {"from": "gpt", "value": "x"}, "../..",
    "/dev/zero", "zoo:target", "NaN", float("nan"), float("inf"),
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = "x"
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def damaged(value: Any, draw: random.Random, words: tuple[str, ...]) -> Any:
    """A copy with one to three faults: values of other types, keys that are lost, renamed, added or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path = draw.choice(list(places(value)))
        if not path:
            continue
        holder = value
        for step in path[:-1]:
            holder = holder[step]
        last = path[-1]
        kind = draw.randrange(8)
        if kind < 3:
            holder[last] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 3:
            del holder[last]
        elif kind == 4 and isinstance(holder, dict):
            holder[draw.choice(words)] = holder.pop(last) if draw.random() < 0.5 else copy.deepcopy(draw.choice(VALUES))
        elif kind == 5:
            holder[last] = [holder[last]] * draw.choice((1, 2, 3))
        elif kind == 6 and isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(draw.choice((*holder, *VALUES))))
        else:
            holder[last] = nested(draw.choice((3, 60, 99, 101, 200)))
    return value


def torn(raw: bytes, draw: random.Random) -> bytes:
    """Bytes that were cut, flipped, doubled or overwritten in one place."""
    at = draw.randrange(len(raw) + 1)
    kind = draw.randrange(5)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :]
    if kind == 2:
        return raw[:at] + raw[at // 2 : at] + raw[at:]
    if kind == 3:
        return (
            raw[:at]
            + draw.choice((b"{", b"[" * 5000, b'"', b"\x00", b"NaN", b"1e999", b"\xff", b"\n", b"&a", b"*a"))
            + raw[at:]
        )
    return raw[:at] + raw[at + draw.randrange(8) :]


def text_of(value: Any) -> bytes:
    """JSON as other programs write it: NaN and lone surrogates may stand in it."""
    return json.dumps(value).encode()


def hold(attempt: Callable[[random.Random], Any], seconds: float = SECONDS) -> tuple[int, int]:
    """Run seeded cases for some time; each gives a result or one InputError of one line, in bounded time and memory.

    Returns how many cases were refused and how many were read.
    """
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = read = seed = 0
    while time.monotonic() - started < seconds or seed < 20:
        began = time.monotonic()
        try:
            attempt(random.Random(seed))
            read += 1
        except InputError as error:
            said = str(error)
            assert said.isprintable() and len(said) < 3000, (seed, said[:200])
            assert len(said) > 20, (seed, said)
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {seed}: {type(error).__name__}: {str(error)[:300]}") from error
        assert time.monotonic() - began < PATIENCE, seed
        seed += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    assert refused and read, (refused, read)
    return refused, read
